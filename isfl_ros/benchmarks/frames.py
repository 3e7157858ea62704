"""The contender of the whole-frame measurement: 8-bit pictures in, fused picture and gate out, as the node does it."""

from __future__ import annotations

import contextlib

from isfl_ros.benchmarks.inputs import RandomPair
from isfl_ros.benchmarks.timing import Timing
from isfl_ros.pipeline import FusionPipeline, PipelineConfig


class WholeFrame:
    """A pipeline and the rotating pairs that it fuses. Close it after use."""

    def __init__(self, config: PipelineConfig, pairs: list[RandomPair]):
        self._pipeline = FusionPipeline(config)
        self._pairs = pairs
        self._stages: list[dict[str, float]] = []
        self._device = config.device
        if self._pipeline.trouble:
            trouble = self._pipeline.trouble
            self._pipeline.close()
            raise RuntimeError(f"not fused on {config.device}: {trouble}")
        self._pipeline.warm_up(*pairs[0].thermal.shape)

    def settings(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def run(self, index: int) -> None:
        """Fuses one pair.

        Raises:
            RuntimeError: it was fused elsewhere than on the device that is measured.
        """
        pair = self._pairs[index % len(self._pairs)]
        result = self._pipeline.fuse(pair.thermal, pair.rgb, gate=True)
        if result.device != self._device:
            raise RuntimeError(f"fused on {result.device}: {self._pipeline.description['device_reason']}")
        self._stages.append(result.stages_ms)

    def stages(self, frames: int) -> dict[str, Timing]:
        """Each stage in the last so many frames."""
        last = self._stages[-frames:]
        return {name: Timing.of([stages[name] for stages in last]) for name in last[0]}

    def close(self) -> None:
        self._pipeline.close()
