from __future__ import annotations

import time
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image

from isfl_ros.backends.frame import RawFrame
from isfl_ros.pipeline import FusionResult, PipelineConfig
from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.jobs import Frame, HoldJob, PairJob, SingleJob
from isfl_ros.ros.outputs import TABLE, Outputs
from isfl_ros.ros.parameters import TABLE as PARAMETERS
from isfl_ros.ros.parameters import settings_from
from isfl_ros.ros.processing import STAGES, WINDOW, Latency, PairProcessor
from isfl_ros.ros.sync import STREAMS, Pair

SECOND = 10**9


class Pipeline:
    """Notes what it was asked for."""

    def __init__(self):
        self.config = PipelineConfig()
        self.asked = []

    def fuse(self, thermal, rgb, *, gate, stamp_s):
        self.asked.append((gate, stamp_s))
        if thermal[0, 0] == 13:
            raise RuntimeError("thirteen\nand more")
        gate = np.full(thermal.shape, 0.5, np.float32) if gate else None
        fractions = {"thermal": 1.0, "rgb": 1.0}
        stages = {"preprocess": 1.0, "network": 2.0, "postprocess": 3.0}
        frame = RawFrame(thermal=thermal, black=0.0, white=255.0, thermal_valid=None, rgb=rgb, rgb_valid=None)
        return FusionResult(thermal, rgb, gate, None, fractions, stages, "cpu", frame)


class Publisher:
    """Counts as subscribed to where its name is among `subscribed`."""

    def __init__(self, name, subscribed, sent):
        self.name, self.subscribed, self.sent = name, subscribed, sent

    def get_subscription_count(self):
        return int(self.name in self.subscribed)

    def publish(self, message):
        self.sent.append(self.name)


class Bench:
    def __init__(self, *, gates=True, reference="rgb"):
        self.subscribed, self.sent, self.said = set(), [], []
        names = {output.topic: name for name, output in TABLE.items()}
        node = SimpleNamespace(
            create_lifecycle_publisher=lambda kind, topic, qos, **_: Publisher(names[topic], self.subscribed, self.sent)
        )
        self.ledger = Ledger(STREAMS)
        self.pipeline = Pipeline()
        self.processor = PairProcessor(
            pipeline=self.pipeline,
            outputs=Outputs(node, gates=gates),
            ledger=self.ledger,
            settings=settings_from({p.name: p.default for p in PARAMETERS} | {"reference": reference}),
            now_ns=lambda: 12 * SECOND,
            log=SimpleNamespace(
                info=lambda cause, text: self.said.append(cause),
                warning=lambda cause, text: self.said.append(cause),
                error=lambda cause, text: self.said.append(cause),
            ),
        )

    def job(self, *, thermal="mono8", size=(40, 50), value=0):
        frames = []
        for stream, encoding, (height, width) in (("thermal", thermal, size), ("rgb", "rgb8", (40, 50))):
            step = width * (3 if encoding == "rgb8" else 1)
            message = Image(width=width, height=height, encoding=encoding, step=step)
            message.data = array("B", bytes([value]) * (step * height))
            message.header.stamp.sec = 10 if stream == "thermal" else 11
            frames.append(Frame(self.ledger.receive(stream), message, time.monotonic_ns()))
        return PairJob(Pair(*frames, skew_ns=-SECOND), time.monotonic_ns())

    def outcome(self):
        row = self.ledger.snapshot()["rgb"]
        return row.fused, dict(row.dropped), row.pending


def test_without_a_subscriber_nothing_is_computed():
    bench = Bench()
    bench.processor.process(bench.job())
    assert bench.pipeline.asked == [] and bench.sent == []
    assert bench.outcome() == (0, {"no_subscriber": 1}, 0)


@pytest.mark.parametrize("name", TABLE)
def test_only_what_is_subscribed_is_published_and_the_gate_only_where_it_shows(name):
    bench = Bench()
    bench.subscribed.add(name)
    bench.processor.camera_info = CameraInfo(width=50, height=40)
    bench.processor.process(bench.job())
    assert bench.sent == [name]
    assert bench.pipeline.asked == [(name in ("gate", "overlay", "side_by_side"), 11.0)]
    assert bench.outcome() == (1, {}, 0)


def test_a_pair_given_up_while_it_is_fused_is_not_published():
    bench = Bench()
    bench.subscribed.update(TABLE)
    job = bench.job()
    fuse = bench.pipeline.fuse

    def given_up_meanwhile(*args, **kwargs):
        bench.ledger.drop("shutdown", *job.tickets)
        return fuse(*args, **kwargs)

    bench.pipeline.fuse = given_up_meanwhile
    bench.processor.process(job)
    assert bench.sent == [], "it would pass for a fresh picture"
    assert bench.outcome() == (0, {"shutdown": 1}, 0)


@pytest.mark.parametrize(("size", "published"), [((50, 40), True), ((0, 0), True), ((100, 80), False)])
def test_calibration_of_another_size_is_not_published(size, published):
    bench = Bench()
    bench.subscribed.update(("fused", "camera_info"))
    bench.processor.camera_info = CameraInfo(width=size[0], height=size[1])
    bench.processor.process(bench.job())
    assert set(bench.sent) == ({"fused", "camera_info"} if published else {"fused"})
    assert bench.said == ([] if published else ["camera_info size"])


def test_a_model_without_gates_is_never_asked_for_one():
    bench = Bench(gates=False)
    bench.subscribed.update(TABLE)
    bench.processor.process(bench.job())
    assert bench.pipeline.asked == [(False, 11.0)]
    assert set(bench.sent) == {"fused", "status", "side_by_side"}  # no camera_info has come


def test_the_stamp_is_that_of_the_reference():
    bench = Bench(reference="thermal")
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())
    assert bench.pipeline.asked == [(False, 10.0)]
    assert bench.processor.latency.summary()["age"] == (2000.0, 2000.0)


def test_sizes_that_differ_never_reach_the_pipeline():
    bench = Bench()
    bench.subscribed.add("fused")
    bench.processor.process(bench.job(size=(40, 48)))
    assert bench.pipeline.asked == []
    assert bench.outcome() == (0, {"size_mismatch": 1}, 0)
    assert "thermal is 48x40, rgb is 50x40" in bench.processor.size_mismatch
    bench.processor.process(bench.job())
    assert bench.processor.size_mismatch is None


def test_a_palettised_camera_is_mentioned():
    bench = Bench()
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())
    assert bench.said == []
    bench.processor.process(bench.job(thermal="rgb8"))
    assert bench.said == ["palettised"]


def test_a_failure_is_counted_and_kept_in_one_line():
    bench = Bench()
    bench.subscribed.add("fused")
    job = bench.job(value=13)
    with pytest.raises(RuntimeError) as raised:
        bench.processor.process(job)
    assert bench.outcome() == (0, {}, 1)
    bench.processor.failed(job, raised.value)
    assert bench.outcome() == (0, {"failed": 1}, 0)
    assert bench.processor.failure == "RuntimeError: thirteen"


def test_latency_covers_the_last_pairs():
    latency = Latency()
    assert latency.summary() == {}
    for value in range(1000):
        latency.add({stage: float(value) for stage in STAGES})
    first = 1000 - WINDOW
    assert latency.summary()["network"] == (first + (WINDOW - 1) / 2, first + 0.95 * WINDOW)
