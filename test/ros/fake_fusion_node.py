"""The real fusion node around a pipeline of a few lines, run as a script by the tests.

FAKE_DELAY_S: how long one pair takes. FAKE_GATES=no: a model without gates. FAKE_PICTURE=mixed: the blue of the fused
picture is the thermal one, so that it shows which messages it was made from (zeros where one is missing).
A thermal picture whose first pixel is 13 cannot be fused; one whose first pixel is 14 takes half a second.
"""

from __future__ import annotations

import os
import sys
import time

from isfl_ros.ros.fusion_node import main


class FakePipeline:
    """Fused luma = thermal brightness; gate = a ramp from left (0) to right (1)."""

    def __init__(self, config):
        self.description = {
            "model": "fake",
            "device": "cpu",
            "device_reason": "it is fake",
            "implementation": "none",
            "implementation_reason": "it is fake",
            "precision": "fp32",
            "precision_reason": "it is fake",
            "gates": os.environ.get("FAKE_GATES", "yes"),
        }
        self.trouble = None
        self.config = config
        self.gain = config.gain

    def warm_up(self, height, width):
        pass

    def set_gain(self, gain):
        self.gain = gain

    def close(self):
        pass

    def fuse(self, thermal, rgb, *, gate=False, stamp_s=None):
        # imported late: the executable must be able to take a signal before anything heavy is loaded
        import cv2
        import numpy as np

        from isfl_ros.backends.frame import RawFrame
        from isfl_ros.pipeline import FusionResult

        time.sleep(float(os.environ.get("FAKE_DELAY_S", "0")))
        seen = 0.0 if thermal is None else float(np.isfinite(thermal).mean())
        fractions = {"thermal": seen, "rgb": float(rgb is not None)}
        if thermal is None:
            thermal = np.zeros(rgb.shape[:2], np.uint8)
        if rgb is None:
            rgb = np.zeros(thermal.shape, np.uint8)
        if thermal[0, 0] == 13:
            raise RuntimeError("thirteen")
        if thermal[0, 0] == 14:
            time.sleep(0.5)
        if self.gain.mode == "fixed":
            thermal = np.clip((thermal - self.gain.low) / (self.gain.high - self.gain.low) * 255.0, 0, 255)
        thermal8 = np.nan_to_num(thermal, posinf=0.0, neginf=0.0).astype(np.uint8)
        rgb = rgb if rgb.ndim == 3 else cv2.cvtColor(rgb, cv2.COLOR_GRAY2RGB)
        if os.environ.get("FAKE_PICTURE") == "mixed":
            rgb = np.dstack([rgb[..., :2], thermal8])
        ramp = np.tile(np.linspace(0.0, 1.0, rgb.shape[1], dtype=np.float32), (rgb.shape[0], 1))
        return FusionResult(
            luma=thermal8,
            rgb=rgb,
            gate=ramp if gate else None,
            valid=None,
            valid_fraction=fractions,
            stages_ms={"preprocess": 0.1, "network": 0.2, "postprocess": 0.3},
            device="cpu",
            frame=RawFrame(thermal=thermal8, black=0.0, white=255.0, thermal_valid=None, rgb=rgb, rgb_valid=None),
        )


if __name__ == "__main__":
    sys.exit(main(make_pipeline=FakePipeline))
