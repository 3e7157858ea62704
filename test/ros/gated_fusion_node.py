"""The fusion node around the fake pipeline, stopped and watched from outside; run as a script by the tests.

FAKE_LOG: file that takes the stamp (nanoseconds) of every pair when its fusion begins.
FAKE_GATE: while this file exists, a fusion that has begun does not go on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from fake_fusion_node import FakePipeline

from isfl_ros.ros.fusion_node import main


class GatedPipeline(FakePipeline):
    """A pipeline whose fusions begin and end when the test says so."""

    def fuse(self, thermal, rgb, *, stamp_s=None, **kwargs):
        with open(os.environ["FAKE_LOG"], "a", encoding="ascii") as log:
            log.write(f"{round(stamp_s * 1e9)}\n")
        gate = Path(os.environ["FAKE_GATE"])
        while gate.exists():
            time.sleep(0.001)
        return super().fuse(thermal, rgb, stamp_s=stamp_s, **kwargs)


if __name__ == "__main__":
    sys.exit(main(make_pipeline=GatedPipeline))
