"""Fusion nodes in processes of their own, and a client that talks to them over DDS."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from array import array
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LONG = 30.0  # seconds; a busy machine is slow, and every wait ends at its event
FAKE = [sys.executable, str(Path(__file__).with_name("fake_fusion_node.py"))]
REAL = [sys.executable, "-m", "isfl_ros.ros.fusion_node"]

PATIENT = {"degraded.timeout_ms": 60_000, "degraded.identical_bytes": "false"}
"""Parameters of a node that gives no camera up: cameras of most tests send when they like, and the same picture again."""


@pytest.fixture(scope="session", autouse=True)
def ros_environment():
    """On this machine only, with the shipped profile."""
    profile = str(REPOSITORY / "config" / "fastdds_images.xml")
    settings = {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


class NodeProcess:
    """A fusion node in a process of its own.

    Args:
        command: of the executable.
        log: file for what it says.
        domain: DDS domain.
        parameters: name -> value.
        remappings: from -> to.
        environment: added to that of this process.
    """

    def __init__(self, command, log: Path, *, domain: int, parameters=None, remappings=None, environment=None):
        self.log = log
        self.domain = domain
        # no warm-up: nothing here depends on it, and it takes long; reports in quick succession end waits soon
        values = {"warmup.width": 0, "diagnostics.rate_hz": 10, **PATIENT, **(parameters or {})}
        arguments = [part for name, value in values.items() for part in ("-p", f"{name}:={value}")]
        arguments += [part for old, new in (remappings or {}).items() for part in ("-r", f"{old}:={new}")]
        variables = {"ROS_DOMAIN_ID": str(domain), "PYTHONUNBUFFERED": "1", **(environment or {})}
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--ros-args", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **variables},
                cwd=log.parent,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for_signals(self) -> None:
        """Until the process has handlers of its own: Python by itself leaves SIGTERM alone."""
        caught = 0
        deadline = time.monotonic() + LONG
        while not caught >> (signal.SIGTERM - 1) & 1:
            assert time.monotonic() < deadline
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            caught = int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(LONG)

    def close(self, number: int = signal.SIGINT) -> None:
        """End the node as a user would, if it still runs, and check that it ends as it should."""
        if self.process.poll() is not None:
            return
        try:
            assert self.end(number) == 0
        finally:
            self.process.kill()
            self.process.wait()
        assert "Traceback" not in self.output
        assert "left at once" not in self.output


@pytest.fixture(scope="session")
def node_command():
    """The executable under test. The one place where it is decided which pipeline the DDS tests run with."""
    return REAL


@pytest.fixture(scope="session")
def fake_command():
    """The same node around a pipeline that does as it is told (see fake_fusion_node.py)."""
    return FAKE


@pytest.fixture(scope="session")
def domains():
    """DDS domains nobody else uses: nodes of one test never see those of another."""
    workers, worker = (int(os.environ.get(f"PYTEST_XDIST_WORKER{name}", "0").removeprefix("gw")) for name in ("_COUNT", ""))
    first = os.getppid() if workers else os.getpid()  # workers of one run have one parent
    return (1 + number % 100 for number in itertools.count(first + worker, max(1, workers)))


def _starter(command, domains, tmp_path_factory, nodes):
    def start(command=command, **kwargs) -> NodeProcess:
        log = tmp_path_factory.mktemp("node") / "output.txt"
        nodes.append(NodeProcess(command, log, domain=next(domains), **kwargs))
        return nodes[-1]

    return start


@pytest.fixture
def start_node(node_command, domains, tmp_path_factory):
    """Starts fusion nodes that end with the test."""
    nodes: list[NodeProcess] = []
    yield _starter(node_command, domains, tmp_path_factory, nodes)
    for node in nodes:
        node.close()


@pytest.fixture(scope="module")
def start_shared_node(node_command, domains, tmp_path_factory):
    """Starts fusion nodes that end with the module."""
    nodes: list[NodeProcess] = []
    yield _starter(node_command, domains, tmp_path_factory, nodes)
    for node in nodes:
        node.close()


@pytest.fixture(scope="module")
def shared_node(start_shared_node):
    """One fusion node for a module."""
    return start_shared_node()


@pytest.fixture(scope="module")
def fake_node(fake_command, domains, tmp_path_factory):
    """One fusion node with the fake pipeline, as a model without gates, for a module; SIGTERM ends it."""
    nodes: list[NodeProcess] = []
    yield _starter(fake_command, domains, tmp_path_factory, nodes)(environment={"FAKE_GATES": "no"})
    nodes[0].close(signal.SIGTERM)


class Client:
    """Two cameras and a listener in this process, in the domain of a node."""

    WIDTH, HEIGHT = 160, 120

    def __init__(self, domain: int):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = Node("client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.received = defaultdict(list)
        self.subscriptions = {}
        self.publishers = {}
        self.compressed = False
        self.reports = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_report, 50)
        # in the past, so that an age is never negative however fast the pairs are published
        self.stamp_ns = time.time_ns() - 1000 * 10**9

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    # waiting

    def poll(self, condition, timeout: float):
        """What `condition` returns, once that is true; whatever it is after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (value := condition()) and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def wait(self, condition, what: str):
        """What `condition` returns, once that is true."""
        value = self.poll(condition, LONG)
        assert value, f"waited {LONG} s for {what}; nodes {self.node.get_node_names()}, {self.reports[-1:]}"
        return value

    def _on_report(self, message):
        report = {e.name: (e.level, e.message, {v.key: v.value for v in e.values}) for e in message.status}
        if any(name.startswith("fusion: ") for name in report):
            self.reports.append(report)

    def wait_report(self, condition, what: str):
        """The first report from now on for which `condition` holds."""
        start = len(self.reports)

        def look():
            return next((report for report in self.reports[start:] if condition(report)), None)

        return self.wait(look, what)

    def counts(self, report=None, stream="thermal"):
        """received, fused, pending, and dropped by reason; of a report that came from now on by default."""
        report = report or self.wait_report(lambda r: True, "a report")
        values = report[f"fusion: input {stream}"][2]
        dropped = {k.removeprefix("dropped."): int(v) for k, v in values.items() if k.startswith("dropped.")}
        return int(values["received"]), int(values["fused"]), int(values["pending"]), dropped

    def settled(self):
        """A report in which nothing is pending and every count is what it was in the few before."""

        def quiet():
            if len(self.reports) < start + 5:
                return None
            rows = [[self.counts(r, s) for s in ("thermal", "rgb")] for r in self.reports[-4:]]
            return self.reports[-1] if rows == rows[:1] * 4 and all(row[2] == 0 for row in rows[0]) else None

        start = len(self.reports)
        return self.wait(quiet, "a quiet node")

    # cameras

    def cameras(self, *, reliability="RELIABLE", infos=True, names=None, compressed=False):
        """Advertise both cameras, and wait until the node has subscribed with what they offer."""
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        self.compressed = compressed
        kind, suffix = (CompressedImage, "/compressed") if compressed else (Image, "")
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy[reliability])
        for stream in ("thermal", "rgb"):
            name = (names or {}).get(stream, stream)
            self.publishers[stream] = self.node.create_publisher(kind, f"/{name}/image_raw{suffix}", qos)
            if infos:
                self.publishers[f"{stream} info"] = self.node.create_publisher(
                    CameraInfo, f"/{name}/camera_info", qos
                )

        def matched(report):
            inputs = [report[f"fusion: input {stream}"][2] for stream in ("thermal", "rgb")]
            return all(v.get("reliability") == reliability.lower() and v["publishers"] == "1" for v in inputs)

        self.wait_report(matched, "subscriptions that follow the cameras")
        self.wait(
            lambda: all(p.get_subscription_count() == 1 for p in self.publishers.values()), "subscriptions of the node"
        )

    def image(self, stream: str, stamp_ns: int, *, value: int = 80, width: int = WIDTH, height: int = HEIGHT):
        from sensor_msgs.msg import Image

        channels = 3 if stream == "rgb" else 1
        ramp = np.tile(np.arange(width * channels, dtype=np.uint8), (height, 1))
        ramp[0, 0] = value
        message = Image(width=width, height=height, encoding="rgb8" if channels == 3 else "mono8")
        message.step = width * channels
        message.data = array("B", ramp.tobytes())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        message.header.frame_id = f"{stream}_optical"
        return message

    def send(self, stream: str, image) -> None:
        """Publish an image as this camera does: as it is, or as a PNG."""
        if self.compressed:
            from isfl_ros.ros.compressed import compressed_message

            shape = (image.height, image.width, 3) if image.encoding == "rgb8" else (image.height, image.width)
            pixels = np.frombuffer(image.data, np.uint8).reshape(shape)
            image = compressed_message(pixels, encoding=image.encoding, header=image.header, format="png")
        self.publishers[stream].publish(image)

    def next_stamp(self) -> int:
        self.stamp_ns += 100_000_000
        return self.stamp_ns

    def publish_pair(self, *, stamp: int | None = None, skew_ns=0, **kwargs) -> int:
        """Publish a pair `skew_ns` apart; returns the RGB stamp."""
        stamp = stamp or self.next_stamp()
        self.send("thermal", self.image("thermal", stamp + skew_ns, **kwargs))
        self.send("rgb", self.image("rgb", stamp, **kwargs))
        return stamp

    # what the node publishes

    def listen(self, *topics: str):
        """Subscribe to these outputs and no others, and wait until a pair reaches each of them."""
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        kinds = {"camera_info": CameraInfo, "status": DiagnosticArray, "compressed": CompressedImage}
        self.deaf()
        for topic in topics:
            kind = kinds.get(topic.split("/")[-1], Image)
            self.subscriptions[topic] = self.node.create_subscription(
                kind, f"/fusion/{topic}", lambda message, topic=topic: self.received[topic].append(message), 50
            )
        self.forget()
        deadline = time.monotonic() + LONG
        while not all(self.received[topic] for topic in topics):
            assert time.monotonic() < deadline, f"nothing on some of {topics}; last report: {self.reports[-1:]}"
            # the node may not know the subscription yet: then it drops the pair, and another one is needed
            self.publish_pair()
            self.poll(lambda: all(self.received[topic] for topic in topics), 0.2)
        self.settled()
        self.forget()

    def forget(self):
        self.received.clear()

    def deaf(self):
        """Unsubscribe from every output."""
        for subscription in self.subscriptions.values():
            self.node.destroy_subscription(subscription)
        self.subscriptions.clear()

    def arrived(self, topic: str, stamp_ns: int):
        """The message of `topic` with this stamp, once it is here."""

        def look():
            for message in self.received[topic]:
                if message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp_ns:
                    return message
            return None

        return self.wait(look, f"{topic} of {stamp_ns}")

    def set_parameter(self, name: str, value) -> tuple[bool, str]:
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        result = self.call(SetParameters, "/fusion/set_parameters", request).results[0]
        return result.successful, result.reason

    def get_parameter(self, name: str):
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        request = GetParameters.Request(names=[name])
        return parameter_value_to_python(self.call(GetParameters, "/fusion/get_parameters", request).values[0])

    def transition(self, label: str) -> bool:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(label=label))
        return self.call(ChangeState, "/fusion/change_state", request).success

    def call(self, kind, service: str, request):
        client = self.node.create_client(kind, service)
        self.wait(client.service_is_ready, service)
        future = client.call_async(request)
        self.wait(future.done, f"an answer of {service}")
        self.node.destroy_client(client)
        return future.result()


@pytest.fixture
def make_client():
    """Makes clients that end with the test."""
    clients = []

    def make(node: NodeProcess) -> Client:
        clients.append(Client(node.domain))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def _connected(node: NodeProcess):
    client = Client(node.domain)
    client.cameras()
    yield client
    client.close()


@pytest.fixture(scope="module")
def shared_client(shared_node):
    """A client of the shared node, both cameras connected."""
    yield from _connected(shared_node)


@pytest.fixture(scope="module")
def fake_client(fake_node):
    """A client of the node with the fake pipeline, both cameras connected."""
    yield from _connected(fake_node)


@pytest.fixture(scope="session")
def _rigs(fake_command, domains, tmp_path_factory):
    """Makes cameras and a listener around a new node with the fake pipeline (see rig.py), or gives the ones that are
    there. The last rows of the fault table end their nodes; SIGTERM ends those that are left."""
    from rig import NODE_PARAMETERS, Rig

    nodes: list[NodeProcess] = []
    rigs: dict[str, Rig] = {}
    start = _starter(fake_command, domains, tmp_path_factory, nodes)

    def give(reference: str) -> Rig:
        rig = rigs.get(reference)
        if rig is None or rig.node.process.poll() is not None:
            if rig is not None:
                rig.client.close()
            node = start(
                environment={"FAKE_PICTURE": "mixed"}, parameters={**NODE_PARAMETERS, "reference": reference}
            )
            rigs[reference] = Rig(node, Client(node.domain), reference=reference)
        return rigs[reference]

    yield give
    for rig in rigs.values():
        rig.client.close()
    for node in nodes:
        node.close(signal.SIGTERM)


@pytest.fixture
def shared_rig(_rigs):
    """Gives the rig with this reference camera, ready for a row."""
    used = []

    def give(reference: str):
        rig = _rigs(reference)
        rig.reset()
        used.append(rig)
        return rig

    yield give
    for rig in used:
        if rig.recovery is not None:  # seen with -rP
            pairs, seconds = rig.recovery
            print(f"shown again: good pair number {pairs + 1}, {seconds:.3f} s after the first was sent")
