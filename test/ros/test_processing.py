from __future__ import annotations

import time
from array import array
from dataclasses import replace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, Image

from isfl_ros.backends.frame import RawFrame
from isfl_ros.pipeline import FusionResult, PipelineConfig
from isfl_ros.registration import Registration
from isfl_ros.ros.accounting import Ledger
from isfl_ros.ros.compressed import FORMATS, decode_compressed_rgb
from isfl_ros.ros.inputs import RawReader, Refusals
from isfl_ros.ros.jobs import Frame, HoldJob, PairJob, SingleJob
from isfl_ros.ros.messages import MalformedImage, decode_rgb
from isfl_ros.ros.outputs import TABLE, Outputs
from isfl_ros.ros.parameters import TABLE as PARAMETERS
from isfl_ros.ros.parameters import settings_from
from isfl_ros.ros.latency import STAGES, WINDOW, Latency
from isfl_ros.ros.processing import PairProcessor
from isfl_ros.ros.sync import STREAMS, Pair
from isfl_ros.visualization import colour_gate

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

    is_activated = False

    def publish(self, message):
        self.sent.append(self.name)
        self.messages[self.name] = message


class Bench:
    def __init__(self, *, gates=True, stand_in=False, reference="rgb", **parameters):
        self.subscribed, self.sent, self.said, self.messages = set(), [], [], {}
        names = {output.topic + "/compressed" * output.is_compressed: name for name, output in TABLE.items()}
        node = SimpleNamespace(
            resolve_topic_name=lambda topic: topic,
            destroy_lifecycle_publisher=lambda publisher: None,
            create_lifecycle_publisher=lambda kind, topic, qos, **_: Publisher(
                names[topic], self.subscribed, self.sent, self.messages
            ),
        )
        log = SimpleNamespace(
            info=lambda cause, text: self.said.append(cause),
            warning=lambda cause, text: self.said.append(cause),
            error=lambda cause, text: self.said.append(cause),
        )
        self.ledger = Ledger(STREAMS)
        self.refusals = Refusals(self.ledger, log)
        self.pipeline = Pipeline()
        self.registrar = SimpleNamespace(registration=Registration(), missing=None)
        self.outputs = Outputs(node, gates=gates, stand_in=stand_in)
        self.processor = PairProcessor(
            pipeline=self.pipeline,
            outputs=self.outputs,
            ledger=self.ledger,
            refusals=self.refusals,
            registrar=self.registrar,
            settings=settings_from({p.name: p.default for p in PARAMETERS} | {"reference": reference} | parameters),
            now_ns=lambda: 12 * SECOND,
            log=log,
        )

    def job(self, *, thermal="mono8", size=(40, 50), value=0, stamp=11):
        """Thermal a second before RGB."""
        frames = []
        for stream, encoding, (height, width) in (("thermal", thermal, size), ("rgb", "rgb8", (40, 50))):
            step = width * (3 if encoding == "rgb8" else 1)
            message = Image(width=width, height=height, encoding=encoding, step=step)
            message.data = array("B", bytes([value]) * (step * height))
            seconds = stamp - 1 if stream == "thermal" else stamp
            message.header.stamp.sec, rest = divmod(round(seconds * SECOND), SECOND)
            message.header.stamp.nanosec = rest
            message.header.frame_id = stream
            image = RawReader(stream, decode_rgb).read(message)
            frames.append(Frame(self.ledger.receive(stream), image, time.monotonic_ns()))
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
    bench.outputs.set_compressed("png")
    bench.subscribed.add(name)
    bench.processor.camera_infos["rgb"] = CameraInfo(width=50, height=40)
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
    bench.processor.camera_infos["rgb"] = CameraInfo(width=size[0], height=size[1])
    bench.processor.process(bench.job())
    assert set(bench.sent) == ({"fused", "camera_info"} if published else {"fused"})
    assert bench.said == ([] if published else ["rgb camera_info size"])
    text = "camera_info is for 100x80, the image is 50x40: ~/fused/camera_info is not published"
    assert bench.processor.info_misfits == ({} if published else {"rgb": text})
    bench.processor.camera_infos["rgb"] = CameraInfo(width=50, height=40)
    bench.processor.process(bench.job(stamp=12))
    assert bench.processor.info_misfits == {}


def test_a_model_without_gates_is_never_asked_for_one():
    bench = Bench(gates=False)
    bench.subscribed.update(TABLE)
    bench.processor.process(bench.job())
    assert bench.pipeline.asked == [(False, 11.0)]
    assert set(bench.sent) == {"fused", "status", "side_by_side"}  # no camera_info has come


def test_what_stands_in_for_the_gate_is_shown_side_by_side_alone():
    """BAFFM: no gate topics, and the entropy in the last quarter of the debug picture."""
    bench = Bench(gates=False, stand_in=True)
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (40, 1))
    fuse = bench.pipeline.fuse
    bench.pipeline.fuse = lambda *a, **k: replace(fuse(*a, **k), gate=None, entropy=ramp if k["gate"] else None)
    bench.subscribed.update(TABLE)
    bench.processor.process(bench.job())
    assert bench.pipeline.asked == [(True, 11.0)]
    assert set(bench.sent) == {"fused", "status", "side_by_side"}
    message = bench.messages["side_by_side"]
    shown = np.frombuffer(message.data, np.uint8).reshape(80, 100, 3)[40:, 50:]
    np.testing.assert_array_equal(shown, colour_gate(ramp))
    bench.subscribed.remove("side_by_side")
    bench.processor.process(bench.job(stamp=12))
    assert bench.pipeline.asked[-1] == (False, 12.0), "nothing else needs it"


def test_the_stamp_is_that_of_the_reference():
    bench = Bench(reference="thermal")
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())
    assert bench.pipeline.asked == [(False, 10.0)]
    assert bench.processor.latency.summary()["age"] == (2000.0, 2000.0)


def test_of_pictures_whose_sizes_differ_the_reference_is_fused_alone():
    bench = Bench()
    bench.subscribed.update(("fused", "status"))
    bench.processor.process(bench.job(size=(40, 48)))
    assert bench.pipeline.missing == {"thermal"}
    assert bench.status()[1]["mode"] == "rgb_only"
    assert bench.outcome() == (1, {}, 0) and bench.ledger.snapshot()["thermal"].dropped == {"size_mismatch": 1}
    assert "thermal is 48x40, rgb is 50x40" in bench.processor.size_mismatch
    bench.processor.process(replace(bench.job(), epoch=1))
    assert bench.processor.size_mismatch is None


@pytest.mark.parametrize("mode", ["hold", "stop"])
def test_pictures_whose_sizes_differ_follow_the_degraded_mode(mode):
    bench = Bench(**{"degraded.mode": mode})
    bench.subscribed.add("fused")
    bench.processor.process(bench.job(size=(40, 48)))
    assert bench.pipeline.asked == [] and bench.sent == []
    assert bench.outcome() == (0, {"size_mismatch": 1}, 0)


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
    bench.processor.camera_infos["rgb"] = CameraInfo(width=50, height=40)
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


@pytest.mark.parametrize(
    ("stamp", "epoch", "shown"), [(12, 0, True), (11, 0, False), (10, 0, False), (9, 0, False), (9, 1, True), (12, 1, True)]
)
def test_no_picture_that_is_older_than_the_last_one_passes_for_fresh(stamp, epoch, shown):
    bench = Bench()
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())  # of second 11
    bench.processor.process(replace(bench.single("rgb", stamp=stamp), epoch=epoch))
    assert len(bench.sent) == 1 + shown
    assert bench.outcome() == ((2, {}, 0) if shown else (1, {"outdated": 1}, 0))


def test_the_held_picture_keeps_its_stamp_and_is_called_held():
    bench = Bench()
    bench.processor.process(HoldJob())
    bench.subscribed.update(("fused", "camera_info", "status", "gate"))
    bench.processor.process(HoldJob())
    assert bench.sent == [], "there is nothing to hold yet"
    bench.processor.camera_infos["rgb"] = CameraInfo(width=50, height=40)
    bench.processor.process(bench.job())
    first, fused = dict(bench.messages), bench.ledger.snapshot()
    bench.sent.clear()
    bench.processor.camera_infos["rgb"] = CameraInfo(width=50, height=40, distortion_model="another")
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


def spoil(job, *streams):
    """The same job, but the worker will find out that these messages are no pictures."""

    def refuse():
        raise MalformedImage("undecodable", "image is damaged")

    frames = {
        name: replace(frame, message=replace(frame.message, decode=refuse)) if name in streams else frame
        for name, frame in job.frames.items()
    }
    if isinstance(job, SingleJob):
        return replace(job, frame=frames[job.stream])
    return replace(job, pair=replace(job.pair, **frames))


@pytest.mark.parametrize("stream", STREAMS)
def test_the_partner_of_a_picture_that_cannot_be_decoded_is_fused_alone(stream):
    bench = Bench()
    bench.subscribed.update(("fused", "status"))
    (other,) = set(STREAMS) - {stream}
    bench.processor.process(spoil(bench.job(), stream))
    assert bench.pipeline.missing == {stream}
    assert bench.status()[1]["mode"] == f"{other}_only" and bench.status()[1]["stamp_skew_ms"] == "none"
    assert bench.messages["fused"].header.stamp.sec == {"thermal": 10, "rgb": 11}[other]
    counts = bench.ledger.snapshot()
    assert (counts[stream].fused, counts[stream].dropped, counts[stream].pending) == (0, {"undecodable": 1}, 0)
    assert (counts[other].fused, counts[other].dropped, counts[other].pending) == (1, {}, 0)
    assert bench.refusals.last(stream) == "image is damaged" and bench.said == [f"{stream} undecodable"]


@pytest.mark.parametrize("mode", ["hold", "stop"])
@pytest.mark.parametrize("stream", STREAMS)
def test_where_no_picture_is_fused_alone_the_partner_is_dropped(mode, stream):
    bench = Bench(**{"degraded.mode": mode})
    bench.subscribed.update(("fused", "status"))
    bench.processor.process(bench.job())
    bench.sent.clear()
    bench.processor.process(spoil(bench.job(stamp=12), stream))
    assert len(bench.pipeline.asked) == 1
    assert bench.sent == (["fused", "status"] if mode == "hold" else [])
    assert bench.status()[1]["mode"] == ("held" if mode == "hold" else "pair")
    (other,) = set(STREAMS) - {stream}
    counts = bench.ledger.snapshot()
    assert (counts[stream].dropped, counts[other].dropped) == ({"undecodable": 1}, {"partner_malformed": 1})
    assert counts[stream].pending == counts[other].pending == 0


@pytest.mark.parametrize("mode", ["single", "hold"])
def test_nothing_is_left_of_a_pair_of_damaged_pictures(mode):
    bench = Bench(**{"degraded.mode": mode})
    bench.subscribed.add("fused")
    bench.processor.process(spoil(bench.job(), *STREAMS))
    bench.processor.process(spoil(bench.single("rgb"), "rgb"))
    assert bench.pipeline.asked == bench.sent == []
    assert bench.ledger.snapshot()["thermal"].dropped == {"undecodable": 1}


def test_pictures_above_the_rate_are_dropped_before_they_are_decoded():
    bench = Bench(**{"output.max_rate_hz": 10.0})
    bench.subscribed.add("fused")
    stamps = [20.0 + index / 30 for index in range(30)]
    for stamp in stamps:
        job = bench.job(stamp=stamp)
        wanted = len(bench.sent)
        bench.processor.process(job if abs(stamp * 10 - round(stamp * 10)) < 1e-6 else spoil(job, *STREAMS))
        assert len(bench.sent) - wanted == (abs(stamp * 10 - round(stamp * 10)) < 1e-6)
    assert bench.outcome() == (10, {"rate_limited": 20}, 0)


def test_the_rate_of_a_picture_alone_is_that_of_a_pair():
    """By the stamp in the clock of the reference camera: when one camera dies, the schedule goes on."""
    bench = Bench(**{"output.max_rate_hz": 1.0, "sync.thermal_offset_ms": 1000.0})
    bench.subscribed.add("fused")
    bench.processor.process(bench.job(stamp=20))
    bench.processor.process(bench.single("thermal", stamp=19))  # 20 s there: outdated, were it not too soon
    assert bench.ledger.snapshot()["thermal"].dropped == {"rate_limited": 1}
    bench.processor.process(bench.single("thermal", stamp=20))
    bench.processor.process(bench.single("rgb", stamp=22))
    assert bench.sent == ["fused"] * 3


def test_a_pair_that_failed_leaves_its_place_in_the_rate():
    bench = Bench(**{"output.max_rate_hz": 1.0, "degraded.mode": "stop"})
    bench.subscribed.add("fused")
    with pytest.raises(RuntimeError):
        bench.processor.process(bench.job(value=13, stamp=20))
    bench.processor.process(bench.job(stamp=20.1))
    assert bench.sent == ["fused"]


def test_costly_pictures_have_a_rate_of_their_own():
    bench = Bench(**{"debug.max_rate_hz": 1.0})
    bench.subscribed.update(("fused", "overlay", "side_by_side"))
    for stamp in (20, 20.2, 20.4, 21):
        bench.processor.process(bench.job(stamp=stamp))
    assert bench.sent.count("fused") == 4
    assert bench.sent.count("overlay") == bench.sent.count("side_by_side") == 2
    assert [gate for gate, _ in bench.pipeline.asked] == [True, False, False, True]
    bench.subscribed.remove("fused")
    bench.processor.process(bench.job(stamp=21.2))
    assert bench.outcome() == (4, {"rate_limited": 1}, 0), "nothing else is wanted: the network does not run"


def test_a_held_picture_is_not_repeated_more_often_than_pictures_come():
    bench = Bench(**{"output.max_rate_hz": 0.1})
    bench.subscribed.add("fused")
    bench.processor.process(bench.job())
    for _ in range(5):
        bench.processor.process(HoldJob())
    assert bench.sent == ["fused"] * 2


@pytest.mark.parametrize("encoding", ["rgb8", "mono8"])
@pytest.mark.parametrize("compression", FORMATS)
def test_the_compressed_picture_is_the_other_one_compressed(compression, encoding):
    bench = Bench(**{"output.encoding": encoding})
    bench.outputs.set_compressed(compression)
    bench.subscribed.update(("fused", "fused_compressed"))
    bench.processor.process(bench.job(value=80))
    raw, packed = bench.messages["fused"], bench.messages["fused_compressed"]
    assert packed.header == raw.header
    target = {"rgb8": "bgr8", "mono8": "mono8" if compression == "jpeg" else ""}[encoding]
    assert packed.format == f"{encoding}; {compression} compressed {target}"
    pixels = decode_compressed_rgb(packed)
    assert np.abs(pixels.astype(int) - decode_rgb(raw)).max() <= (0 if compression == "png" else 1)


def test_the_compressed_picture_comes_and_goes_while_others_are_published():
    bench = Bench()
    bench.subscribed.update(("fused", "fused_compressed"))
    for stamp, compression in ((20, None), (21, "png"), (22, "jpeg"), (23, None)):
        bench.outputs.set_compressed(compression)
        bench.processor.process(bench.job(stamp=stamp))
        sent, bench.sent[:] = list(bench.sent), []
        assert sent == (["fused"] if compression is None else ["fused", "fused_compressed"])
    assert "jpeg" in bench.messages["fused_compressed"].format


@pytest.mark.parametrize("at", [-5.0, -1.3])
@pytest.mark.parametrize("stream", STREAMS)
def test_stamps_before_1970_are_clamped_in_headers_only(stream, at):
    """By an offset that is larger than the stamps of a camera that counts from when it was switched on."""
    offset = {"thermal": -10_000.0, "rgb": 10_000.0}[stream]
    reference = {"thermal": "rgb", "rgb": "thermal"}[stream]
    bench = Bench(reference=reference, **{"sync.thermal_offset_ms": offset, "output.max_rate_hz": 10.0})
    bench.subscribed.add("fused")
    for index in range(10):
        job = bench.single(stream, stamp=0)
        at_ns = round((at + 10.0 + index / 10.0) * SECOND)
        stamp = job.frame.message.header.stamp
        stamp.sec, stamp.nanosec = divmod(at_ns, SECOND)
        bench.processor.process(job)
        shown = bench.messages["fused"].header.stamp
        assert shown.sec * SECOND + shown.nanosec == max(0, at_ns - 10 * SECOND)
    assert bench.ledger.snapshot()[stream].fused == 10
    bench.processor.process(job)
    assert bench.ledger.snapshot()[stream].fused == 10, "the same once more is not new"


def late(job, by_ns):
    """The same job of messages that arrived that much earlier."""
    frames = {name: replace(frame, arrived_ns=frame.arrived_ns - by_ns) for name, frame in job.frames.items()}
    return replace(job, pair=replace(job.pair, **frames))


@pytest.mark.parametrize(("by_ms", "level"), [(0, DiagnosticStatus.OK), (60_100, DiagnosticStatus.WARN)])
def test_how_long_a_picture_took_is_said_by_a_clock_that_no_camera_has(by_ms, level):
    bench = Bench(**{"degraded.timeout_ms": 60_000.0})
    bench.subscribed.update(("fused", "status"))
    bench.processor.process(late(bench.job(), by_ms * 10**6))
    assert bench.messages["status"].status[0].message == "pair"
    said, values = bench.status()
    assert said == level and by_ms <= float(values["delay_ms"]) < by_ms + 60_000
    assert values["age_ms"] == "1000.000" and bench.processor.age_s == 1.0


def test_the_delay_counts_from_the_newest_message_and_the_age_is_of_new_pictures():
    bench = Bench(**{"degraded.timeout_ms": 60_000.0})
    bench.subscribed.update(("fused", "status"))
    job = bench.job()
    old = late(job, 100 * SECOND)
    bench.processor.process(replace(job, pair=replace(job.pair, thermal=old.pair.thermal)))
    assert bench.status()[0] == DiagnosticStatus.OK
    bench.processor.age_s = None
    bench.processor.process(HoldJob())
    assert bench.status()[1]["mode"] == "held" and bench.processor.age_s is None
    bench.processor.process(bench.job(stamp=12))
    assert bench.processor.age_s == 0.0
    bench.processor.start_session()
    assert bench.processor.age_s is None


def refuse(bench, *refused):
    """The pipeline fails wherever it gets these streams, and perhaps others."""
    fuse = bench.pipeline.fuse

    def failing(thermal, rgb, **how):
        there = {name for name, pixels in (("thermal", thermal), ("rgb", rgb)) if pixels is not None}
        if there >= set(refused):
            raise RuntimeError(f"not {' and '.join(sorted(there))}\nand more")
        return fuse(thermal, rgb, **how)

    bench.pipeline.fuse = failing


@pytest.mark.parametrize("reference", STREAMS)
def test_of_a_pair_that_cannot_be_fused_the_reference_is_shown_alone(reference):
    bench = Bench(reference=reference)
    bench.subscribed.update(("fused", "status"))
    refuse(bench, "thermal", "rgb")
    (other,) = set(STREAMS) - {reference}
    bench.processor.process(bench.job())
    assert bench.sent == ["fused", "status"] and bench.status()[1]["mode"] == f"{reference}_only"
    counts = bench.ledger.snapshot()
    assert (counts[reference].fused, counts[reference].dropped, counts[reference].pending) == (1, {}, 0)
    assert (counts[other].fused, counts[other].dropped, counts[other].pending) == (0, {"failed": 1}, 0)
    assert bench.processor.failure == "RuntimeError: not rgb and thermal" and bench.said == ["failed RuntimeError"]


def test_where_the_reference_alone_fails_too_both_have_failed():
    bench = Bench()
    bench.subscribed.update(("fused", "status"))
    refuse(bench, "rgb")
    job = bench.job()
    with pytest.raises(RuntimeError) as raised:
        bench.processor.process(job)
    assert bench.ledger.snapshot()["thermal"].dropped == {"failed": 1} and bench.outcome() == (0, {}, 1)
    bench.processor.failed(job, raised.value)
    assert bench.outcome() == (0, {"failed": 1}, 0) and bench.ledger.snapshot()["thermal"].dropped == {"failed": 1}
    assert bench.processor.failure == "RuntimeError: not rgb" and bench.sent == []


@pytest.mark.parametrize("mode", ["hold", "stop"])
def test_a_pair_that_fails_where_no_camera_may_be_fused_alone(mode):
    bench = Bench(**{"degraded.mode": mode})
    bench.subscribed.add("fused")
    refuse(bench, "thermal", "rgb")
    with pytest.raises(RuntimeError):
        bench.processor.process(bench.job())
    assert bench.sent == [] and bench.outcome() == (0, {}, 1)


def test_what_fails_while_it_is_published_is_not_published_once_more():
    bench = Bench()
    bench.subscribed.update(("fused", "gate"))
    bench.outputs._publishers["gate"].publish = lambda message: 1 / 0
    with pytest.raises(ZeroDivisionError):
        bench.processor.process(bench.job())
    assert bench.sent == ["fused"] and len(bench.pipeline.asked) == 1


@pytest.mark.parametrize("stream", STREAMS)
def test_what_is_left_of_a_damaged_pair_and_fails_is_not_tried_again(stream):
    bench = Bench()
    bench.subscribed.add("fused")
    (other,) = set(STREAMS) - {stream}
    refuse(bench, other)
    with pytest.raises(RuntimeError):
        bench.processor.process(spoil(bench.job(), stream))
    assert bench.ledger.snapshot()[stream].dropped == {"undecodable": 1}
    assert bench.ledger.snapshot()[other].pending == 1


def test_a_failure_is_counted_and_kept_in_one_line():
    bench = Bench(**{"degraded.mode": "stop"})
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


@pytest.mark.parametrize("height", [40, 34])
def test_thermal_alone_is_in_the_frame_of_the_reference_only_where_their_pixels_are_the_same(height):
    bench = Bench()
    bench.subscribed.update(("fused", "camera_info"))
    bench.processor.process(bench.job())
    bench.processor.camera_infos = {"rgb": CameraInfo(width=50, height=40), "thermal": CameraInfo(width=50, height=34)}
    bench.processor.process(bench.single("thermal", stamp=20, size=(height, 50)))
    assert bench.messages["fused"].header.frame_id == ("rgb" if height == 40 else "thermal")
    assert bench.messages["camera_info"].height == height


def test_a_size_mismatch_is_over_with_the_next_picture_that_fits():
    bench = Bench()
    bench.subscribed.add("fused")
    bench.processor.process(bench.job(size=(40, 48)))
    assert bench.processor.size_mismatch is not None
    bench.processor.process(bench.single("rgb", stamp=20))
    assert bench.processor.size_mismatch is None
