"""A process behind the node that pairs its outputs by exact stamp, as a detector with a camera model does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sensor_msgs.msg import CameraInfo

pytestmark = pytest.mark.dds

FRAMES = 500
TOPICS = ("fused/image", "fused/camera_info", "gate/image", "fused/status")


class Downstream:
    """The process, and what it has said so far; read without waiting."""

    def __init__(self, domain: int, log: Path):
        self._log = log
        self._offset = 0
        self.ready = False
        self.lines: list[dict] = []
        self.complete: list[int] = []
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("downstream.py"))],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
            )

    def wait_for(self, stamp: int) -> None:
        """Until the outputs of this stamp are complete."""
        deadline = time.monotonic() + 30.0
        while stamp not in self.read().complete[-1:]:
            assert time.monotonic() < deadline, [line for line in self.lines if line["stamp"] == stamp]
            time.sleep(0.001)

    def read(self) -> Downstream:
        with self._log.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.decode().splitlines():
            if text == "ready":
                self.ready = True
            elif "complete" in (line := json.loads(text)):
                self.complete.append(line["complete"])
            else:
                self.lines.append(line)
        return self


@pytest.fixture
def make_downstream(tmp_path):
    processes = []

    def make(node) -> Downstream:
        downstream = Downstream(node.domain, tmp_path / "downstream.txt")
        processes.append(downstream.process)
        return downstream

    yield make
    for process in processes:
        process.terminate()
        assert process.wait(30.0) is not None


def test_outputs_pair_by_exact_stamp(start_node, make_client, fake_command, make_downstream):
    node = start_node(fake_command)
    client = make_client(node)
    client.cameras()
    downstream = make_downstream(node)
    client.wait(lambda: downstream.read().ready, "a consumer that knows the publishers")
    info = CameraInfo(width=client.WIDTH, height=client.HEIGHT)
    info.k[0] = 200.0
    client.publishers["rgb info"].publish(info)

    def first_complete():
        # the node may not know all subscriptions or the camera_info yet: then another pair is needed
        client.publish_pair()
        return client.poll(lambda: downstream.read().complete, 0.2)

    client.wait(first_complete, "a first picture with everything that belongs to it")
    client.settled()
    downstream.read()
    before = client.counts()
    start = len(downstream.lines), len(downstream.complete)

    values = {}
    for number in range(FRAMES):
        stamp = client.next_stamp() + number  # no two steps between stamps alike, down to the nanosecond
        values[stamp] = 20 + number % 200
        client.publish_pair(stamp=stamp, value=values[stamp], skew_ns=-(number % 7) * 1_000_000)
        # the next one when this one is there: nothing is superseded, and no output waits behind another
        downstream.wait_for(stamp)
    after = client.counts(client.settled())
    downstream.read()

    lines = downstream.lines[start[0] :]
    assert downstream.complete[start[1] :] == list(values), "each once, in order"
    assert Counter(line["topic"] for line in lines) == {topic: FRAMES for topic in TOPICS}
    assert {(line["topic"], line["stamp"]) for line in lines} == {(t, s) for t in TOPICS for s in values}
    assert {line["frame_id"] for line in lines} == {"rgb_optical"}
    shown = {line["stamp"]: line["first"] for line in lines if line["topic"] == "fused/image"}
    assert shown == values, "each picture is that of its stamp"
    assert (after[0] - before[0], after[1] - before[1], after[3]) == (FRAMES, FRAMES, before[3])
