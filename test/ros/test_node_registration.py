"""Registration in a running node: its pictures are those of the offline pipeline with the same registration."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from isfl_ros.images import to_uint8
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
from isfl_ros.registration import (
    CalibratedPlane,
    Calibration,
    Homography,
    Registration,
    Transform,
    write_homography,
)
from isfl_ros.ros.messages import image_message

pytestmark = pytest.mark.dds

STREAMS = ("thermal", "rgb")
SIZE = {"reference": (160, 120), "other": (80, 60)}
"""(width, height); a test client sends 160x120 from both until it is heard, which fits as well."""
DISTORTION = {"thermal": [-0.2, 0.05, 0.001, 0.0, 0.0], "rgb": [0.03, -0.01, 0.0, 0.002, 0.0]}
COMPUTED = {"device": "cpu", "implementation": "folded", "precision": "fp32"}
OUTPUTS = ("fused/image", "fused/camera_info", "fused/status", "gate/image")


def first_on_path(folder: Path) -> dict[str, str]:
    """Environment of a node that imports from this folder first."""
    folders = (str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


@pytest.fixture(scope="module")
def offline():
    pipeline = FusionPipeline(PipelineConfig(**COMPUTED))
    yield pipeline
    pipeline.close()


@pytest.fixture
def start(start_node, make_client):
    """Starts a node with a registration, and a client that hears it."""

    def pair(*, parameters, environment=None):
        node = start_node(parameters={**COMPUTED, **parameters}, environment=environment)
        client = make_client(node)
        client.cameras()
        return node, client

    return pair


class Cameras:
    """What the cameras see and say, by which of them is the reference."""

    def __init__(self, reference):
        self.reference, self.other = reference, next(stream for stream in STREAMS if stream != reference)
        self.size = {self.reference: SIZE["reference"], self.other: SIZE["other"]}

    def picture(self, stream, seed):
        """Something smooth with edges, so that every pixel that is moved shows."""
        width, height = self.size[stream]
        noise = np.random.default_rng(seed).normal(size=(height, width, 3)).cumsum(0).cumsum(1)
        scaled = (noise - noise.min()) / np.ptp(noise)
        return (scaled[..., 0] * 20_000 + 7_000).astype(np.uint16) if stream == "thermal" else to_uint8(scaled)

    def info(self, stream, **changes):
        width, height = self.size[stream]
        k = [0.9 * width, 0.0, width / 2 - 1.5, 0.0, 0.9 * width, height / 2 + 0.5, 0.0, 0.0, 1.0]
        values = {"width": width, "height": height, "k": k, "d": DISTORTION[stream], "distortion_model": "plumb_bob"}
        message = CameraInfo(**values | changes)
        message.header.frame_id = f"{stream}_optical"
        return message

    def calibration(self, stream):
        k = self.info(stream).k
        return Calibration(size=self.size[stream], matrix=k, model="plumb_bob", distortion=tuple(DISTORTION[stream]))

    def registration(self, transform, plane_depth_m):
        return Registration(
            CalibratedPlane(
                reference=self.calibration(self.reference),
                other=self.calibration(self.other),
                transform=transform,
                plane_depth_m=plane_depth_m,
            )
        )

    def assert_as_offline(self, client, stamp, result):
        """Pictures to a grey level in a thousandth of their values; stamp, frame and calibration of the reference camera on every topic. Gives the mode."""
        fused, gate = (client.arrived(topic, stamp) for topic in ("fused/image", "gate/image"))
        apart = np.abs(np.array(fused.data).reshape(fused.height, fused.width, 3).astype(int) - result.rgb)
        # Another process may divide the sums among its threads otherwise; a value on the edge of two grey levels then tips.
        assert apart.max() <= 1 and np.count_nonzero(apart) <= 1e-3 * apart.size
        gate_apart = np.array(gate.data).reshape(gate.height, gate.width).astype(int) - to_uint8(result.gate)
        assert np.abs(gate_apart).max() <= 1 and np.count_nonzero(gate_apart) <= 1e-3 * gate_apart.size
        calibration = client.arrived("fused/camera_info", stamp)
        assert {m.header.frame_id for m in (fused, gate, calibration)} == {f"{self.reference}_optical"}
        expected = self.info(self.reference)
        expected.header = calibration.header
        assert calibration == expected
        values = status(client, stamp)
        for modality in STREAMS:
            assert values[f"valid_fraction.{modality}"] == f"{result.valid_fraction[modality]:.4f}"
        return values["mode"]


def send(client, **pictures) -> int:
    stamp = client.next_stamp()
    for stream, pixels in pictures.items():
        header = Header(frame_id=f"{stream}_optical")
        header.stamp.sec, header.stamp.nanosec = divmod(stamp, 10**9)
        encoding = "rgb8" if stream == "rgb" else "mono16"
        client.publishers[stream].publish(image_message(pixels, encoding=encoding, header=header))
    return stamp


def status(client, stamp):
    return {value.key: value.value for value in client.arrived("fused/status", stamp).status[0].values}


def wait_registered(client):
    """The first report that says so."""

    def ready(report):
        return report["fusion: processing"][2].get("registration.overlap", "unknown") != "unknown"

    return client.wait_report(ready, "the registration")


def test_homography(start, offline, tmp_path):
    """Twice the size and a shift; then the thermal camera alone, in the frame of the RGB camera."""
    cameras = Cameras("rgb")
    matrix = [[2.0, 0.0, 21.5], [0.0, 2.0, 10.5], [0.0, 0.0, 1.0]]
    homography = Homography(matrix=matrix, from_size=SIZE["other"], to_size=SIZE["reference"], residual_px=0.4)
    write_homography(tmp_path / "h.yaml", homography)
    parameters = {"registration.mode": "homography", "registration.homography_file": tmp_path / "h.yaml"}
    node, client = start(parameters=parameters | {"warmup.width": 640})
    for stream in STREAMS:
        client.publishers[f"{stream} info"].publish(cameras.info(stream))
    client.listen(*OUTPUTS)
    thermal, rgb = cameras.picture("thermal", 1), cameras.picture("rgb", 2)
    offline.set_registration(Registration(homography))
    result = offline.fuse(thermal, rgb, gate=True)
    assert 0.5 < result.valid_fraction["thermal"] < 0.9

    assert cameras.assert_as_offline(client, send(client, thermal=thermal, rgb=rgb), result) == "pair"
    values = client.settled()["fusion: processing"][2]
    overlap = f"{Registration(homography).overlap:.4f}"
    keys = ("registration", "registration.overlap", "registration.residual_px")
    assert [values[key] for key in keys] == ["homography", overlap, "0.40"]
    assert "cameras registered (homography): the thermal camera covers" in node.output

    assert client.set_parameter("degraded.timeout_ms", 200) == (True, "")
    alone = offline.fuse(thermal, None, gate=True)

    def given_up():
        send(client, thermal=thermal)
        return client.poll(lambda: client.received["fused/status"], 0.1)

    client.settled()
    client.forget()
    client.wait(given_up, "the thermal camera alone")
    stamp = send(client, thermal=thermal)
    assert cameras.assert_as_offline(client, stamp, alone) == "thermal_only"
    assert client.set_parameter("degraded.timeout_ms", 60_000) == (True, "")

    send(client, rgb=rgb)
    client.wait_report(lambda r: r["fusion: pairing"][2]["mode"] == "pair", "the RGB camera again")
    turned = np.ascontiguousarray(np.swapaxes(thermal, 0, 1))
    for _ in range(2):
        stamp = send(client, thermal=turned, rgb=rgb)
        assert status(client, stamp)["mode"] == "rgb_only"
    report = client.wait_report(lambda r: "size mismatch" in r["fusion: processing"][1], "the size that does not fit")
    assert "thermal 60x80 into rgb 160x120" in report["fusion: processing"][1]
    assert client.counts(client.settled())[3]["size_mismatch"] == 2


def test_calibrated_by_parameters(start, offline):
    """The thermal camera is the reference; before the RGB camera is calibrated, it is fused alone."""
    cameras = Cameras("thermal")
    quaternion, translation = (0.01, -0.02, 0.005, 0.99974), (0.25, 0.05, -0.01)
    names = {f"q{axis}": value for axis, value in zip("xyzw", quaternion)} | dict(zip("xyz", translation))
    parameters = {
        "reference": "thermal",
        "registration.mode": "calibrated",
        "registration.plane_depth_m": 5.0,
        "registration.transform.source": "parameters",
        **{f"registration.transform.{name}": value for name, value in names.items()},
    }
    node, client = start(parameters=parameters)
    thermal, rgb = cameras.picture("thermal", 3), cameras.picture("rgb", 4)
    client.publishers["thermal info"].publish(cameras.info("thermal"))
    client.listen(*OUTPUTS)
    offline.set_registration(None)
    stamp = send(client, thermal=thermal, rgb=rgb)
    alone = offline.fuse(thermal, None, gate=True)
    assert cameras.assert_as_offline(client, stamp, alone) == "thermal_only"
    report = client.settled()
    assert report["fusion: processing"][:2] == (b"\x01", "cameras not registered: no camera_info on /rgb/camera_info")
    assert report["fusion: pairing"][2]["mode"] == "thermal_only"
    counts = {stream: client.counts(report, stream) for stream in STREAMS}
    assert counts["rgb"][1] == 0 and counts["rgb"][3]["unregistered"] == counts["thermal"][1] > 0

    client.publishers["rgb info"].publish(cameras.info("rgb"))
    report = wait_registered(client)
    assert report["fusion: processing"][2]["registration"] == "calibrated"
    transform = Transform.from_quaternion(quaternion, translation)
    for depth in (5.0, 2.0):
        if depth == 2.0:
            before = report["fusion: processing"][2]["registration.overlap"]
            assert client.set_parameter("registration.plane_depth_m", depth) == (True, "")
            client.wait_report(lambda r: r["fusion: processing"][2]["registration.overlap"] != before, "a new map")
        offline.set_registration(cameras.registration(transform, depth), reference="thermal")
        result = offline.fuse(thermal, rgb, gate=True)
        assert 0.2 < result.valid_fraction["rgb"] < 1.0
        stamp = send(client, thermal=thermal, rgb=rgb)
        assert cameras.assert_as_offline(client, stamp, result) == "pair"

    good, reason = client.set_parameter("registration.transform.qx", 0.7)
    assert not good and "a quaternion of length 1" in reason and "all four at once" in reason
    assert "registered (calibrated): the rgb camera covers" in node.output


def test_calibrated_by_tf(start, offline):
    """A stand-in for tf2_ros. First no transform, then one, then a camera that is calibrated no longer."""
    from geometry_msgs.msg import TransformStamped

    cameras = Cameras("rgb")
    node, client = start(
        parameters={"registration.mode": "calibrated"},
        environment=first_on_path(Path(__file__).with_name("fake_tf")),
    )
    thermal, rgb = cameras.picture("thermal", 5), cameras.picture("rgb", 6)
    for stream in STREAMS:
        client.publishers[f"{stream} info"].publish(cameras.info(stream))
    client.listen(*OUTPUTS)
    missing = (
        "cameras not registered: no transform from rgb_optical to thermal_optical on /tf, /tf_static:"
        ' "thermal_optical" passed to lookupTransform argument target_frame does not exist.'
    )
    client.wait_report(lambda r: r["fusion: processing"][:2] == (b"\x01", missing), "the missing transform")
    assert status(client, send(client, thermal=thermal, rgb=rgb))["mode"] == "rgb_only"

    message = TransformStamped(child_frame_id="rgb_optical")
    message.header.frame_id = "thermal_optical"
    message.transform.translation.x = -0.3
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    client.node.create_publisher(TransformStamped, "/tf_static", latched).publish(message)
    wait_registered(client)
    transform = Transform(rotation=np.eye(3), translation=[-0.3, 0.0, 0.0])
    offline.set_registration(cameras.registration(transform, 20.0))
    result = offline.fuse(thermal, rgb, gate=True)
    stamp = send(client, thermal=thermal, rgb=rgb)
    assert cameras.assert_as_offline(client, stamp, result) == "pair"

    client.publishers["thermal info"].publish(cameras.info("thermal", k=[0.0] * 9))
    client.wait_report(lambda r: "thermal camera: not calibrated" in r["fusion: processing"][1], "the lost calibration")
    assert status(client, send(client, thermal=thermal, rgb=rgb))["mode"] == "rgb_only"
    assert "cameras no longer registered: thermal camera: not calibrated" in node.output

    assert client.transition("deactivate")
    assert client.transition("activate")
    nothing_known = "cameras not registered: no camera_info on /rgb/camera_info and /thermal/camera_info"
    client.wait_report(lambda r: r["fusion: processing"][1] == nothing_known, "a new session")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"registration.mode": "homography"}, "cannot start: parameter registration.homography_file; expected a file"),
        (
            {"registration.mode": "homography", "registration.homography_file": "/nonesuch/h.yaml"},
            "cannot configure: /nonesuch/h.yaml cannot be read; got No such file or directory",
        ),
        (
            {"registration.mode": "calibrated"},
            "cannot configure: registration.transform.source tf needs the package tf2_ros_py",
        ),
    ],
)
def test_what_cannot_be_used_ends_with_one_line_and_status_2(fake_command, start_node, tmp_path, parameters, said):
    (tmp_path / "tf2_ros.py").write_text("raise ModuleNotFoundError(\"No module named 'tf2_ros'\")")
    node = start_node(fake_command, parameters=parameters, environment=first_on_path(tmp_path))
    assert node.process.wait(30.0) == 2
    lines = [line for line in node.output.splitlines() if line.strip()]
    assert len(lines) == 1 and said in lines[0]
