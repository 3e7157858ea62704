"""What the worker does with pairs that are, are not yet, or cannot be brought into one frame."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo
from test_processing import Bench, Pipeline

from isfl_ros.backends.frame import RawFrame
from isfl_ros.pipeline import FusionResult
from isfl_ros.registration import Alignment, Homography, Registration

RGB, THERMAL = (50, 40), (48, 36)  # (width, height)
SIZES = {"rgb": RGB, "thermal": THERMAL}
OTHER = {"rgb": "thermal", "thermal": "rgb"}
EVERYTHING = ("fused", "camera_info", "status", "gate", "overlay", "side_by_side")


class WarpingPipeline(Pipeline):
    """Of the size, and refuses the sizes, of the real one."""

    def __init__(self):
        super().__init__()
        self.alignment = Alignment()
        self.changes = []

    def set_registration(self, registration, *, reference):
        self.changes.append(registration)
        self.alignment = Alignment(registration, reference=reference)

    def fuse(self, thermal, rgb, *, gate, stamp_s):
        shapes = {name: p if p is None else p.shape[:2] for name, p in (("thermal", thermal), ("rgb", rgb))}
        grid = self.alignment.grid(**shapes)
        self.alignment.keep(grid)
        self.asked.append({name for name, shape in shapes.items() if shape is not None})
        shape = shapes["rgb"] or shapes["thermal"] if grid is None else grid.shape
        luma, colour = np.zeros(shape, np.uint8), np.zeros((*shape, 3), np.uint8)
        frame = RawFrame(thermal=luma, black=0.0, white=255.0, thermal_valid=None, rgb=colour, rgb_valid=None)
        stages = {"preprocess": 1.0, "network": 2.0, "postprocess": 3.0}
        gate = np.zeros(shape, np.float32) if gate else None
        return FusionResult(luma, colour, gate, None, {"thermal": 1.0, "rgb": 1.0}, stages, "cpu", frame)


class RegisteredBench(Bench):
    """Thermal pictures of 48x36, RGB pictures of 50x40, in frames `thermal` and `rgb`; both cameras calibrated."""

    def __init__(self, *, reference="rgb", ready=True, **parameters):
        super().__init__(reference=reference, **parameters)
        self.pipeline = self.processor._pipeline = WarpingPipeline()
        self.reference, self.other = reference, OTHER[reference]
        self.ready = Registration(
            Homography(matrix=np.eye(3), from_size=SIZES[self.other], to_size=SIZES[self.reference])
        )
        self.registrar.registration = self.ready if ready else None
        self.registrar.missing = None if ready else "no camera_info on /x"
        self.subscribed.update(EVERYTHING)
        self.know("rgb", "thermal")

    def know(self, *streams):
        self.processor.camera_infos = {}
        for stream in streams:
            width, height = SIZES[stream]
            info = self.processor.camera_infos[stream] = CameraInfo(width=width, height=height)
            info.header.frame_id = f"{stream} by its camera_info"

    def job(self, *, size=THERMAL[::-1], **kwargs):
        return super().job(size=size, **kwargs)

    def counts(self):
        return {stream: (row.fused, dict(row.dropped)) for stream, row in self.ledger.snapshot().items()}

    def assert_published(self, mode, frame, size, calibration):
        level, values = self.status()
        assert values["mode"] == mode
        stamps = {(m.header.stamp.sec, m.header.stamp.nanosec) for m in self.messages.values()}
        assert len(stamps) == 1 and {m.header.frame_id for m in self.messages.values()} == {frame}
        for name in ("fused", "gate", "overlay"):
            assert (self.messages[name].width, self.messages[name].height) == size, name
        info = self.messages.get("camera_info")
        assert (info and (info.width, info.height)) == (calibration and SIZES[calibration])


@pytest.fixture(params=["rgb", "thermal"])
def reference(request):
    return request.param


def test_a_pair_is_in_the_frame_of_the_reference(reference):
    bench = RegisteredBench(reference=reference)
    bench.processor.process(bench.job())
    bench.assert_published("pair", reference, SIZES[reference], reference)
    assert bench.pipeline.changes == [bench.ready] and bench.pipeline.alignment.reference == reference
    bench.processor.process(bench.job(stamp=12))
    assert bench.pipeline.changes == [bench.ready], "set once"
    assert bench.counts() == {stream: (2, {}) for stream in SIZES} and bench.processor.size_mismatch is None


@pytest.mark.parametrize("alone", ["rgb", "thermal"])
def test_either_camera_alone_stays_in_the_frame_of_the_reference(reference, alone):
    bench = RegisteredBench(reference=reference)
    bench.processor.process(bench.job())
    bench.processor.process(bench.single(alone, stamp=20))
    bench.assert_published(f"{alone}_only", reference, SIZES[reference], reference)


def test_before_the_first_picture_of_the_reference_its_camera_info_names_the_frame(reference):
    bench = RegisteredBench(reference=reference)
    bench.processor.process(bench.single(bench.other))
    bench.assert_published(f"{bench.other}_only", f"{reference} by its camera_info", SIZES[reference], reference)


def test_where_nothing_names_the_frame_none_is_made_up(reference):
    bench = RegisteredBench(reference=reference)
    bench.know(bench.other)
    bench.processor.process(bench.single(bench.other))
    bench.assert_published(f"{bench.other}_only", "", SIZES[reference], None)


def test_while_unregistered_the_reference_is_fused_alone(reference):
    bench = RegisteredBench(reference=reference, ready=False)
    bench.processor.process(bench.job())
    assert bench.pipeline.asked == [{reference}]
    bench.assert_published(f"{reference}_only", reference, SIZES[reference], reference)
    assert bench.status()[1]["stamp_skew_ms"] == "none"
    assert bench.counts() == {reference: (1, {}), bench.other: (0, {"unregistered": 1})}
    assert bench.said == ["unregistered"]
    bench.registrar.registration = bench.ready
    bench.processor.process(bench.job(stamp=12))
    bench.assert_published("pair", reference, SIZES[reference], reference)
    bench.registrar.registration = None
    bench.processor.process(bench.job(stamp=13))
    bench.assert_published(f"{reference}_only", reference, SIZES[reference], reference)
    assert bench.pipeline.changes == [bench.ready, None]


def test_why_there_is_no_registration_is_said_only_where_it_is_known():
    """The executor's thread is between taking the registration away and saying why."""
    bench = RegisteredBench(ready=False)
    bench.registrar.missing = None
    bench.processor.process(bench.job())
    assert bench.said == [] and bench.counts() == {"rgb": (1, {}), "thermal": (0, {"unregistered": 1})}


def test_a_registration_that_the_pipeline_cannot_take_leaves_the_reference_alone(reference):
    bench = RegisteredBench(reference=reference)

    def fail(registration, *, reference):
        raise MemoryError("no room for the map")

    bench.pipeline.set_registration = fail
    bench.processor.process(bench.job())
    bench.assert_published(f"{reference}_only", reference, SIZES[reference], reference)
    assert bench.counts() == {reference: (1, {}), bench.other: (0, {"failed": 1})}
    assert bench.processor.failure == "MemoryError: no room for the map"


@pytest.mark.parametrize("mode", ["hold", "stop"])
def test_who_wants_no_single_camera_gets_none(reference, mode):
    bench = RegisteredBench(reference=reference, **{"degraded.mode": mode})
    bench.processor.process(bench.job())
    bench.registrar.registration = None
    bench.messages.clear()
    bench.processor.process(bench.job(stamp=12))
    assert bench.pipeline.asked == [{"thermal", "rgb"}]
    assert bench.counts() == {stream: (1, {"unregistered": 1}) for stream in SIZES}
    if mode == "hold":
        bench.assert_published("held", reference, SIZES[reference], reference)
    else:
        assert not bench.messages


def test_unregistered_and_without_the_reference_the_other_camera_is_shown_as_it_is(reference):
    """In its own frame, with its own calibration: nobody becomes invisible, and nothing is said that is wrong."""
    bench = RegisteredBench(reference=reference, ready=False)
    bench.processor.process(bench.job())
    bench.processor.process(bench.single(bench.other, stamp=20))
    bench.assert_published(f"{bench.other}_only", bench.other, SIZES[bench.other], bench.other)


def test_a_size_that_does_not_fit_leaves_the_reference_alone(reference):
    bench = RegisteredBench(reference=reference)
    bench.processor.process(bench.job())
    bench.processor.process(bench.job(size=(48, 36), stamp=12))  # the thermal camera turned by 90 degrees
    size = SIZES[reference] if reference == "rgb" else (36, 48)
    calibration = reference if reference == "rgb" else None
    bench.messages.pop("camera_info", None)
    bench.processor.process(bench.job(size=(48, 36), stamp=13))
    bench.assert_published(f"{reference}_only", reference, size, calibration)
    assert bench.counts() == {reference: (3, {}), bench.other: (1, {"size_mismatch": 2})}
    assert "size mismatch: " in bench.processor.size_mismatch and "36x48" in bench.processor.size_mismatch
    assert {said for said in bench.said if "size" in said} - {f"{reference} camera_info size"} == {"size_mismatch"}
    bench.processor.process(bench.job(stamp=14))
    bench.assert_published("pair", reference, SIZES[reference], reference)
    assert bench.processor.size_mismatch is None and bench.pipeline.changes == [bench.ready]


@pytest.mark.parametrize("mode", ["hold", "stop"])
def test_a_size_that_does_not_fit_where_no_single_camera_is_wanted(reference, mode):
    bench = RegisteredBench(reference=reference, **{"degraded.mode": mode})
    bench.processor.process(bench.job(size=(48, 36)))
    assert bench.counts() == {stream: (0, {"size_mismatch": 1}) for stream in SIZES} and not bench.messages


def test_alone_and_of_a_size_that_does_not_fit_it_is_shown_as_it_is():
    bench = RegisteredBench(reference="rgb")
    bench.processor.process(bench.job())
    bench.processor.process(bench.single("thermal", size=(48, 36), stamp=20))
    assert (bench.messages["fused"].width, bench.messages["fused"].header.frame_id) == (36, "thermal")
    assert bench.counts()["thermal"] == (2, {})
    bench.processor.process(bench.single("thermal", stamp=21))
    bench.assert_published("thermal_only", "rgb", RGB, "rgb")
    assert bench.pipeline.changes == [bench.ready, None, bench.ready]


def test_binning_and_region_are_no_wrong_size():
    bench = RegisteredBench()
    info = bench.processor.camera_infos["rgb"]
    info.width, info.height, info.binning_x, info.binning_y = 100, 80, 2, 2
    bench.processor.process(bench.job())
    assert bench.messages["camera_info"].binning_x == 2 and bench.said == []


def test_without_registration_the_pipeline_is_left_alone():
    bench = Bench()
    bench.subscribed.update(EVERYTHING)
    bench.processor.process(bench.job())  # its pipeline has no set_registration
    assert bench.outcome() == (1, {}, 0)
