from __future__ import annotations

import time
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
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
        self.missing = {name for name, pixels in (("thermal", thermal), ("rgb", rgb)) if pixels is None}
        thermal = np.zeros(rgb.shape[:2], np.uint8) if thermal is None else thermal
        rgb = np.zeros((*thermal.shape, 3), np.uint8) if rgb is None else rgb
        if thermal[0, 0] == 13:
            raise RuntimeError("thirteen\nand more")
        gate = np.full(thermal.shape, 0.5, np.float32) if gate else None
        fractions = {"thermal": 1.0, "rgb": 1.0}
        stages = {"preprocess": 1.0, "network": 2.0, "postprocess": 3.0}
        frame = RawFrame(thermal=thermal, black=0.0, white=255.0, thermal_valid=None, rgb=rgb, rgb_valid=None)
        return FusionResult(thermal, rgb, gate, None, fractions, stages, "cpu", frame)


class Publisher:
    """Counts as subscribed to where its name is among `subscribed`."""

    def __init__(self, name, subscribed, sent, messages):
        self.name, self.subscribed, self.sent, self.messages = name, subscribed, sent, messages

    def get_subscription_count(self):
        return int(self.name in self.subscribed)

    def publish(self, message):
        self.sent.append(self.name)
        self.messages[self.name] = message


class Bench:
    def __init__(self, *, gates=True, reference="rgb", **parameters):
        self.subscribed, self.sent, self.said, self.messages = set(), [], [], {}
        names = {output.topic: name for name, output in TABLE.items()}
        node = SimpleNamespace(
            create_lifecycle_publisher=lambda kind, topic, qos, **_: Publisher(
                names[topic], self.subscribed, self.sent, self.messages
            )
        )
        self.ledger = Ledger(STREAMS)
        self.pipeline = Pipeline()
        self.processor = PairProcessor(
            pipeline=self.pipeline,
            outputs=Outputs(node, gates=gates),
            ledger=self.ledger,
            settings=settings_from({p.name: p.default for p in PARAMETERS} | {"reference": reference} | parameters),
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
            message.header.frame_id = stream
            frames.append(Frame(self.ledger.receive(stream), message, time.monotonic_ns()))
        return PairJob(Pair(*frames, skew_ns=-SECOND), time.monotonic_ns())

    def single(self, stream, *, stamp=None, **kwargs):
        frame = self.job(**kwargs).frames[stream]
        if stamp is not None:
            frame.message.header.stamp.sec = stamp
        return SingleJob(stream, frame, time.monotonic_ns())

    def status(self):
        entry = self.messages["status"].status[0]
        return entry.level, {value.key: value.value for value in entry.values}

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


@pytest.mark.parametrize("stream", STREAMS)
def test_a_picture_fused_alone_says_so(stream):
    bench = Bench()
    bench.subscribed.update(("fused", "camera_info", "status"))
    bench.processor.camera_info = CameraInfo(width=50, height=40)
    bench.processor.process(bench.job())
    bench.processor.process(bench.single(stream, stamp=20))
    assert bench.pipeline.missing == set(STREAMS) - {stream}
    level, values = bench.status()
    assert level == DiagnosticStatus.WARN
    assert (values["mode"], values["stamp_skew_ms"]) == (f"{stream}_only", "none")
    for name in ("fused", "camera_info", "status"):
        assert bench.messages[name].header.stamp.sec == 20
        assert bench.messages[name].header.frame_id == "rgb", "the picture is in the frame of the reference camera"
    assert bench.ledger.snapshot()[stream].fused == 2


@pytest.mark.parametrize(("reference", "expected"), [("rgb", 20 * SECOND + 5_000_000), ("thermal", 20 * SECOND)])
def test_thermal_alone_is_stamped_on_the_clock_of_the_reference(reference, expected):
    bench = Bench(reference=reference, **{"sync.thermal_offset_ms": 5.0})
    bench.subscribed.add("fused")
    bench.processor.process(bench.single("thermal", stamp=20))
    stamp = bench.messages["fused"].header.stamp
    assert stamp.sec * SECOND + stamp.nanosec == expected


def test_rgb_alone_is_stamped_on_the_clock_of_the_reference():
    bench = Bench(reference="thermal", **{"sync.thermal_offset_ms": 5.0})
    bench.subscribed.add("fused")
    bench.processor.process(bench.single("rgb", stamp=20))
    stamp = bench.messages["fused"].header.stamp
    assert stamp.sec * SECOND + stamp.nanosec == 20 * SECOND - 5_000_000


def test_before_the_reference_camera_sent_anything_the_frame_is_that_of_the_picture():
    bench = Bench()
    bench.subscribed.update(("fused", "camera_info"))
    bench.processor.process(bench.single("thermal"))
    assert bench.sent == ["fused"] and bench.messages["fused"].header.frame_id == "thermal"


@pytest.mark.parametrize(("stamp", "shown"), [(12, True), (11, False), (10, False), (9, True)])
def test_no_picture_that_is_older_than_the_last_one_passes_for_fresh(stamp, shown):
    bench = Bench()
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())  # of second 11
    bench.processor.process(bench.single("rgb", stamp=stamp))
    assert len(bench.sent) == 1 + shown
    assert bench.outcome() == ((2, {}, 0) if shown else (1, {"outdated": 1}, 0))


def test_the_held_picture_keeps_its_stamp_and_is_called_held():
    bench = Bench()
    bench.processor.process(HoldJob())
    bench.subscribed.update(("fused", "camera_info", "status", "gate"))
    bench.processor.process(HoldJob())
    assert bench.sent == [], "there is nothing to hold yet"
    bench.processor.camera_info = CameraInfo(width=50, height=40)
    bench.processor.process(bench.job())
    first, fused = dict(bench.messages), bench.ledger.snapshot()
    bench.sent.clear()
    bench.processor.camera_info = CameraInfo(width=50, height=40, distortion_model="another")
    bench.processor.process(HoldJob())
    assert sorted(bench.sent) == ["camera_info", "fused", "gate", "status"]
    assert bench.messages["fused"] == first["fused"] and bench.messages["camera_info"] == first["camera_info"]
    level, values = bench.status()
    assert level == DiagnosticStatus.WARN and values["mode"] == "held" and values["age_ms"] == "1000.000"
    assert bench.ledger.snapshot() == fused and len(bench.pipeline.asked) == 1


def test_a_gate_that_was_not_computed_is_not_held():
    bench = Bench()
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())
    bench.subscribed.update(TABLE)
    bench.processor.process(HoldJob())
    assert not {"gate", "overlay"} & set(bench.sent)


def test_a_new_session_holds_nothing_of_the_last():
    bench = Bench()
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())
    bench.processor.start_session()
    bench.processor.process(HoldJob())
    assert bench.sent == ["fused"]


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
