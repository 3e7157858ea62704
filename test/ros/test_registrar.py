from __future__ import annotations

import re
import sys
import warnings
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo

from isfl_ros.errors import InputError
from isfl_ros.registration import (
    CalibratedPlane,
    Calibration,
    Homography,
    Registration,
    Transform,
    parse_homography,
    write_homography,
)
from isfl_ros.ros.registrar import STEADY_S, NoTransform, Registrar, RegistrationConfig

TOPICS = {"thermal": "/lwir/camera_info", "rgb": "/front/camera_info"}
SIZE = {"thermal": (80, 60), "rgb": (160, 120)}
FOCAL = {"thermal": 90.0, "rgb": 150.0}
QUARTER = 0.5**0.5


def info(stream, **changes):
    width, height = SIZE[stream]
    k = [FOCAL[stream], 0.0, (width - 1) / 2, 0.0, FOCAL[stream], (height - 1) / 2, 0.0, 0.0, 1.0]
    message = CameraInfo(**{"width": width, "height": height, "k": k, "distortion_model": "plumb_bob"} | changes)
    message.header.frame_id = f"{stream}_optical"
    return message


def calibration(stream):
    return Calibration(size=SIZE[stream], matrix=info(stream).k)


def by_hand(reference, transform, plane_depth_m=20.0):
    other = "thermal" if reference == "rgb" else "rgb"
    return Registration(
        CalibratedPlane(
            reference=calibration(reference),
            other=calibration(other),
            transform=transform,
            plane_depth_m=plane_depth_m,
        )
    )


def assert_same(got, wanted):
    one, two = (r.grid(wanted.from_shape, wanted.to_shape) for r in (got, wanted))
    for name in ("corner", "weight", "valid"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


class Tf:
    """Knows what it was told."""

    def __init__(self):
        self.known = {}
        self.asked = []

    def lookup(self, *, target, source):
        self.asked.append((target, source))
        if (target, source) not in self.known:
            raise NoTransform("frame does not exist")
        return self.known[target, source]


def registrar(reference="rgb", *, submit=None, transforms=None, clock=None, **config):
    config = {"mode": "calibrated", "transform_source": "parameters" if transforms is None else "tf"} | config
    more = {name: value for name, value in (("submit", submit), ("clock", clock)) if value is not None}
    return Registrar(
        RegistrationConfig(**config), reference=reference, info_topics=TOPICS, transforms=transforms, **more
    )


def calibrated(*args, **kwargs):
    made = registrar(*args, **kwargs)
    for stream in SIZE:
        made.take_info(stream, info(stream))
    return made


# none, homography


def test_without_registration_there_is_nothing_to_wait_for():
    made = registrar(mode="none")
    assert made.registration.mode == "none" and made.missing is None and made.concern is None
    assert made.description == {"registration": "none"}


def test_a_homography_is_read_at_once(tmp_path):
    matrix = [[2.0, 0.0, 10.0], [0.0, 2.0, 6.0], [0.0, 0.0, 1.0]]
    homography = Homography(matrix=matrix, from_size=(80, 60), to_size=(160, 120), residual_px=0.731)
    write_homography(tmp_path / "h.yaml", homography)
    made = registrar(mode="homography", homography_file=str(tmp_path / "h.yaml"))
    assert_same(made.registration, Registration(homography))
    assert made.missing is None
    overlap = Registration(homography).overlap
    assert 0.5 < overlap < 1.0
    assert made.description == {
        "registration": "homography",
        "registration.overlap": f"{overlap:.4f}",
        "registration.residual_px": "0.73",
    }
    made.take_info("rgb", info("rgb"))
    made.take_frame_id("rgb", "x")
    made.forget()
    assert_same(made.registration, Registration(homography))


def test_a_concern_is_passed_on(tmp_path):
    small = Homography(matrix=np.diag([0.25, 0.25, 1.0]), from_size=(160, 120), to_size=(160, 120))
    write_homography(tmp_path / "h.yaml", small)
    made = registrar(mode="homography", homography_file=str(tmp_path / "h.yaml"))
    assert "with the inverse matrix it would be" in made.concern


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "cannot be read"),
        ("a: [", "is no YAML"),
        ("matrix: 1", "wrong keys"),
        ("!!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, said):
    path = tmp_path / "h.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said) as raised:
        registrar(mode="homography", homography_file=str(path))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_example_in_the_documentation_is_a_homography():
    text = (Path(__file__).parents[2] / "docs" / "node.md").read_text()  # documents are not installed
    (example,) = re.findall("```yaml\n(matrix: .*?)```", text, re.DOTALL)
    homography = parse_homography(yaml.safe_load(example), "docs/node.md")
    assert Registration(homography).overlap > 0.3 and not Registration(homography).concerns


# calibrated, transform from parameters


def test_it_says_what_it_waits_for():
    made = registrar()
    assert made.registration is None
    assert made.missing == "no camera_info on /front/camera_info and /lwir/camera_info"
    made.take_info("rgb", info("rgb"))
    assert made.missing == "no camera_info on /lwir/camera_info"
    assert made.description["registration.overlap"] == "unknown"
    made.take_info("thermal", info("thermal"))
    assert made.missing is None and made.registration is not None
    assert made.description == {
        "registration": "calibrated",
        "registration.overlap": f"{made.registration.overlap:.4f}",
        "registration.residual_px": "unknown",
    }


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
def test_the_parameters_say_where_the_thermal_camera_is_whatever_is_the_reference(reference):
    """A point straight ahead of the RGB camera, and where the thermal camera has it."""
    config = RegistrationConfig(translation=(0.5, 0.0, 0.0), quaternion=(0.0, 0.0, QUARTER, QUARTER))  # a quarter turn
    transform = config.transform(reference)
    in_rgb, in_thermal = np.array([0.0, 0.0, 10.0]), np.array([0.0, 0.5, 10.0])
    # the thermal camera's x axis is the RGB camera's y axis, its y axis points to minus x
    source, target = (in_rgb, in_thermal) if reference == "rgb" else (in_thermal, in_rgb)
    np.testing.assert_allclose(transform.rotation @ source + transform.translation, target, atol=1e-12)


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
def test_it_is_the_map_of_these_cameras(reference):
    made = calibrated(reference, translation=(0.3, -0.1, 0.02), quaternion=(0.0, 0.02, 0.0, 0.9998), plane_depth_m=6.0)
    transform = Transform.from_quaternion((0.0, 0.02, 0.0, 0.9998), (0.3, -0.1, 0.02))
    transform = transform.inverse() if reference == "rgb" else transform
    assert_same(made.registration, by_hand(reference, transform, 6.0))
    assert made.registration.to_shape == SIZE[reference][::-1]


def test_only_what_is_new_makes_a_new_map():
    made = calibrated(translation=(0.3, 0.0, 0.0))
    first = made.registration
    later = info("thermal")
    later.header.stamp.sec, later.p = 7, [1.0] * 12
    made.take_info("thermal", later)
    made.take_frame_id("thermal", "elsewhere")  # parameters know no frames
    made.update()
    assert made.registration is first
    made.take_info("thermal", info("thermal", d=[-0.2, 0.05]))
    assert made.registration is not first


def test_depth_and_transform_change_at_run_time():
    made = calibrated(translation=(0.3, 0.0, 0.0))
    for change in ({"plane_depth_m": 3.0}, {"plane_depth_m": 3.0, "translation": (0.1, 0.0, 0.0)}):
        config = {"translation": (0.3, 0.0, 0.0)} | change
        made.configure(RegistrationConfig(mode="calibrated", transform_source="parameters", **config))
        transform = Transform(rotation=np.eye(3), translation=-np.array(config["translation"]))
        assert_same(made.registration, by_hand("rgb", transform, 3.0))


def test_a_camera_that_turns_out_to_be_uncalibrated_ends_it():
    made = calibrated()
    made.take_info("thermal", info("thermal", k=[0.0] * 9))
    assert made.registration is None
    assert made.missing.startswith("thermal camera: not calibrated; expected a focal length in K; got K of zeros")
    made.take_info("rgb", info("rgb", k=[0.0] * 9))
    assert "rgb camera: not calibrated" in made.missing and "thermal camera: not calibrated" in made.missing
    for stream in SIZE:
        made.take_info(stream, info(stream))
    assert made.registration is not None and made.missing is None


def test_cameras_that_see_nothing_in_common_are_named():
    made = calibrated(quaternion=(0.0, 1.0, 0.0, 0.0))  # back to back
    assert made.registration is None and "nothing that the reference camera sees" in made.missing
    made.update()
    assert made.registration is None and "nothing that the reference camera sees" in made.missing
    made.configure(RegistrationConfig(mode="calibrated", transform_source="parameters"))
    assert made.registration is not None and made.missing is None


def test_a_new_session_knows_nothing():
    made = calibrated()
    made.forget()
    assert made.registration is None and made.missing.startswith("no camera_info on")


# transform from TF


def test_tf_is_asked_for_the_reference_seen_from_the_other_camera():
    tf = Tf()
    made = calibrated("rgb", transforms=tf)
    assert made.registration is None
    assert made.missing == "no transform from rgb_optical to thermal_optical on /tf, /tf_static: frame does not exist"
    tf.known["thermal_optical", "rgb_optical"] = transform = Transform(rotation=np.eye(3), translation=[0.2, 0.0, 0.0])
    made.update()
    assert_same(made.registration, by_hand("rgb", transform))
    assert made.missing is None


def test_the_frames_are_those_of_the_pictures():
    tf = Tf()
    made = registrar("thermal", transforms=tf)
    for stream in SIZE:
        message = info(stream)
        message.header.frame_id = ""
        made.take_info(stream, message)
    assert made.missing == "the messages of the thermal camera have no frame_id"
    made.take_frame_id("thermal", "lwir")
    assert made.missing == "the messages of the rgb camera have no frame_id"
    made.take_info("rgb", info("rgb"))
    assert tf.asked[-1] == ("rgb_optical", "lwir")
    made.take_frame_id("rgb", "front")
    assert tf.asked[-1] == ("front", "lwir")
    made.take_frame_id("rgb", "lwir")
    assert made.missing == "both cameras have the frame_id lwir, which must differ; set them in the drivers"


def test_a_transform_that_is_lost_stays_in_force_and_one_that_moves_is_followed():
    tf = Tf()
    key = "thermal_optical", "rgb_optical"
    tf.known[key] = Transform(rotation=np.eye(3), translation=[0.2, 0.0, 0.0])
    made = calibrated(transforms=tf)
    first = made.registration
    tf.known[key] = Transform(rotation=np.eye(3), translation=[0.2001, 0.0, 0.0])
    made.update()
    assert made.registration is first, "a tenth of a millimetre is not seen"
    del tf.known[key]
    made.update()
    assert made.registration is first and made.missing is None
    tf.known[key] = moved = Transform(rotation=np.eye(3), translation=[0.3, 0.0, 0.0])
    made.update()
    assert_same(made.registration, by_hand("rgb", moved))
    made.take_frame_id("rgb", "another")
    assert made.registration is None, "of another frame nothing is known"


def test_a_transform_that_is_none_is_named():
    def lookup(**_):
        return Transform.from_quaternion((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0))

    made = calibrated(transforms=SimpleNamespace(lookup=lookup))
    assert made.registration is None and "no unit quaternion" in made.missing


_WILD = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e12, -1e12, 1e13, 1e308, -1e308])
_SIDES = st.sampled_from([0, 1, 33, 64, 2**32 - 1])


@settings(max_examples=300, deadline=None)
@given(
    k=st.dictionaries(st.integers(0, 8), _WILD, max_size=2),
    d=st.lists(_WILD, max_size=14),
    model=st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant", "", "a\nb"]),
    size=st.tuples(_SIDES, _SIDES),
    binning=st.tuples(st.sampled_from([0, 1, 2, 2**32 - 1]), st.integers(0, 3)),
    roi=st.just((0, 0, 0, 0)) | st.tuples(*[st.integers(0, 40) | st.just(2**32 - 1)] * 4),
)
def test_no_camera_info_brings_more_than_a_reason(k, d, model, size, binning, roi):
    message = CameraInfo(width=size[0], height=size[1], distortion_model=model, d=d)
    matrix = np.array([50.0, 0.0, 16.0, 0.0, 50.0, 16.0, 0.0, 0.0, 1.0])
    matrix[list(k)] = list(k.values())
    message.k = matrix
    message.binning_x, message.binning_y = binning
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = roi
    made = registrar()
    made.take_info("rgb", info("rgb"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy, of what it makes of such numbers
        made.take_info("thermal", message)
    assert made.registration is not None or (made.missing and "\n" not in made.missing and len(made.missing) < 2000)


@pytest.mark.parametrize(
    "model, d",
    [
        ("plumb_bob", [0.0, 0.0, 0.0, 0.0, 1e308]),
        ("equidistant", [1e300] * 4),
        ("rational_polynomial", [-1e13] * 8),
    ],
)
def test_coefficients_that_no_lens_has_are_named(model, d):
    made = calibrated()
    made.take_info("thermal", info("thermal", d=d, distortion_model=model))
    assert made.registration is None
    assert made.missing.startswith("thermal camera: distortion coefficients unusable; expected numbers from -1e+12 to")
    made.take_info("thermal", info("thermal", d=[0.0] * 5))
    assert made.registration is not None


def test_a_lens_that_numpy_cannot_make_is_a_reason(monkeypatch):
    def fail(coefficients):
        raise np.linalg.LinAlgError("eigenvalues\ndid not converge")

    monkeypatch.setattr("isfl_ros.registration.cameras.PolynomialLens", fail)
    made = registrar()
    for stream in SIZE:
        made.take_info(stream, info(stream))
    assert "thermal camera: distortion coefficients make no lens (eigenvalues did not converge); exp" in made.missing


def test_coefficients_of_a_strong_telephoto_lens_are_taken():
    telephoto = info("thermal", d=[5.0, -1e4, 0.0, 0.0, 1e8])
    telephoto.k[0] = telephoto.k[4] = 6000.0
    made = registrar()
    for stream, message in (("rgb", info("rgb")), ("thermal", telephoto)):
        made.take_info(stream, message)
    assert made.registration is not None


# maps that are made elsewhere


class Bench:
    """Work that is done when told to."""

    def __init__(self):
        self.waiting = []

    def __call__(self, work):
        future = Future()
        self.waiting.append((work, future))
        return future

    def do(self):
        work, future = self.waiting.pop(0)
        future.set_result(work())


def plane(made, depth):
    config = {"mode": "calibrated", "transform_source": "parameters", "translation": (0.3, 0.0, 0.0)}
    made.configure(RegistrationConfig(plane_depth_m=depth, **config))


def test_the_old_map_serves_until_the_new_one_is_ready():
    bench = Bench()
    made = calibrated(submit=bench, translation=(0.3, 0.0, 0.0))
    assert made.busy and made.registration is None and made.missing == "the map between the pictures is being made"
    bench.do()
    made.update()
    first = made.registration
    assert not made.busy and first is not None and made.missing is None
    for depth in (3.0, 4.0, 5.0):
        plane(made, depth)
        assert made.registration is first and made.busy
    assert len(bench.waiting) == 1, "one at a time, however fast they change"
    bench.do()
    made.update()
    assert made.registration is not first and len(bench.waiting) == 1
    bench.do()
    made.update()
    transform = Transform(rotation=np.eye(3), translation=[-0.3, 0.0, 0.0])
    assert_same(made.registration, by_hand("rgb", transform, 5.0))
    assert not made.busy and not bench.waiting


def test_a_map_that_comes_too_late_is_not_used():
    bench = Bench()
    made = calibrated(submit=bench)
    made.take_info("thermal", info("thermal", k=[0.0] * 9))
    bench.do()
    made.update()
    assert made.registration is None and "not calibrated" in made.missing


class Clock:
    seconds = 1000.0

    def __call__(self):
        return self.seconds


def several_thermal_cameras(clock):
    """Of which /tf knows different transforms, with a map of the first in force."""
    bench, tf = Bench(), Tf()
    for number, frame in enumerate(("front", "rear", "side")):
        tf.known[frame, "rgb"] = Transform(rotation=np.eye(3), translation=[0.1 * number, 0.0, 0.0])
    made = registrar(submit=bench, transforms=tf, clock=clock)
    made.take_frame_id("rgb", "rgb")
    made.take_frame_id("thermal", "front")
    for stream in SIZE:
        made.take_info(stream, info(stream))
    bench.do()
    made.update()
    assert_same(made.registration, by_hand("rgb", tf.known["front", "rgb"]))
    return made, bench, tf


def test_a_picture_of_another_frame_is_not_fused_with_the_map_of_the_last():
    made, bench, tf = several_thermal_cameras(Clock())
    made.take_frame_id("thermal", "rear")
    assert made.registration is None and made.missing == "the map between the pictures is being made" and made.busy
    bench.do()
    made.update()
    assert_same(made.registration, by_hand("rgb", tf.known["rear", "rgb"]))
    assert made.missing is None


def test_a_map_that_is_finished_after_the_frame_has_changed_is_not_used():
    clock = Clock()
    made, bench, tf = several_thermal_cameras(clock)
    made.take_frame_id("thermal", "rear")
    clock.seconds += 2 * STEADY_S
    made.take_frame_id("thermal", "side")
    assert len(bench.waiting) == 1, "one at a time"
    bench.do()
    made.update()
    assert made.registration is None and len(bench.waiting) == 1
    bench.do()
    made.update()
    assert_same(made.registration, by_hand("rgb", tf.known["side", "rgb"]))


def test_a_frame_id_that_keeps_changing_makes_no_maps_until_it_stays():
    clock = Clock()
    made, bench, tf = several_thermal_cameras(clock)
    done = 0
    for number in range(300):
        clock.seconds += STEADY_S / 30
        made.take_frame_id("thermal", ("rear", "front")[number % 2])
        made.update()
        assert made.registration is None
        while bench.waiting:
            bench.do()
            done += 1
    assert done == 1, "what the first change asked for"
    keeps = "frame_id or calibration of the thermal camera keeps changing; is there more than one publisher?"
    assert made.missing == keeps
    clock.seconds += 0.99 * STEADY_S
    made.update()
    assert made.missing == keeps and not bench.waiting
    clock.seconds += 0.02 * STEADY_S
    made.update()
    assert made.missing == "the map between the pictures is being made"
    bench.do()
    made.update()
    assert_same(made.registration, by_hand("rgb", tf.known["front", "rgb"]))
    assert made.concern is None


def test_a_calibration_that_keeps_changing_leaves_the_map_there_is():
    clock = Clock()
    made, bench, _ = several_thermal_cameras(clock)
    first = made.registration
    for number in range(30):
        clock.seconds += STEADY_S / 30
        made.take_info("thermal", info("thermal", d=[-0.01 * (1 + number % 2)] * 2))
    assert made.registration is first and len(bench.waiting) == 1
    assert "of the thermal camera keeps changing" in made.concern and made.missing is None
    bench.do()
    clock.seconds += 1.01 * STEADY_S
    made.update()
    assert len(bench.waiting) == 1 and made.concern is None, "of the calibration that has stayed"


def test_work_that_fails_is_a_reason_and_no_end():
    def submit(work):
        future = Future()
        future.set_exception(MemoryError("8 GiB"))
        return future

    made = calibrated(submit=submit)
    assert made.registration is None and made.missing == "MemoryError: 8 GiB"


# tf2_ros


class FakeNode:
    def __init__(self):
        self.subscriptions = {}

    def create_subscription(self, kind, topic, callback, qos):
        self.subscriptions[topic] = callback
        return topic

    def destroy_subscription(self, topic):
        del self.subscriptions[topic]


def stamped():
    from geometry_msgs.msg import TransformStamped

    message = TransformStamped(child_frame_id="rgb")
    message.header.frame_id = "thermal"
    message.transform.translation.x = 0.25
    message.transform.rotation.z = message.transform.rotation.w = QUARTER
    return message


@pytest.fixture
def fake_tf(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("fake_tf")))
    monkeypatch.delitem(sys.modules, "tf2_ros", raising=False)
    yield
    sys.modules.pop("tf2_ros", None)


def test_the_adapter_subscribes_asks_and_leaves(fake_tf):
    from isfl_ros.ros.tf_adapter import TfTransforms

    node = FakeNode()
    tf = TfTransforms(node)
    assert not node.subscriptions
    with pytest.raises(NoTransform, match="not listening"):
        tf.lookup(target="thermal", source="rgb")
    tf.start()
    with pytest.raises(NoTransform, match='"thermal" passed to lookupTransform argument target_frame does not exist.'):
        tf.lookup(target="thermal", source="rgb")
    node.subscriptions["/tf_static"](stamped())
    found = tf.lookup(target="thermal", source="rgb")
    np.testing.assert_allclose(found.rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    assert found.translation.tolist() == [0.25, 0.0, 0.0]
    tf.stop()
    assert not node.subscriptions
    tf.start()
    with pytest.raises(NoTransform):
        tf.lookup(target="thermal", source="rgb")


def test_without_tf2_ros_it_says_what_to_install(monkeypatch):
    from isfl_ros.ros.tf_adapter import TfTransforms

    monkeypatch.setitem(sys.modules, "tf2_ros", None)  # as where it is not installed
    with pytest.raises(InputError, match="tf2_ros.*install it .*-tf2-ros-py") as raised:
        TfTransforms(FakeNode())
    assert "\n" not in str(raised.value) and "registration.transform.source to parameters" in str(raised.value)


def test_the_real_tf2_ros(monkeypatch):
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros comes with a ROS distribution, not from the package index")
    import rclpy

    from isfl_ros.ros.tf_adapter import TfTransforms

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("tf_test", context=context)
    try:
        before = {name for name, _ in node.get_service_names_and_types_by_node("tf_test", "/")}
        tf = TfTransforms(node)
        tf.start()
        with pytest.raises(NoTransform):
            tf.lookup(target="thermal", source="rgb")
        tf._buffer.set_transform_static(stamped(), "test")
        assert tf.lookup(target="thermal", source="rgb").translation.tolist() == [0.25, 0.0, 0.0]
        # the inverse, which TF works out
        np.testing.assert_allclose(tf.lookup(target="rgb", source="thermal").translation, [0.0, 0.25, 0.0], atol=1e-9)
        assert {name for name, _ in node.get_service_names_and_types_by_node("tf_test", "/")} == before
        tf.stop()
        assert issubclass(tf2_ros.LookupException, tf2_ros.TransformException)
    finally:
        node.destroy_node()
        context.try_shutdown()
