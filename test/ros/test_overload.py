"""More input than the node can fuse: it shows the newest, accounts for the rest, and leaves nothing behind.

What is true in every schedule of the machine is asserted exactly, with a pipeline that is stopped and released by the
test. The steady run at 120 Hz goes through the soak itself; there a busy machine may hold up any single message, so its
age bound is asserted for nine pictures of ten, and the figures are those that `make soak` judges without exception.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from isfl_ros.benchmarks import soak
from isfl_ros.benchmarks.soak import SoakConfig, run_soak

pytestmark = pytest.mark.dds

GATED = (sys.executable, str(Path(__file__).with_name("gated_fusion_node.py")))
PERIOD_S = 1 / 120


@pytest.fixture
def gate(tmp_path) -> Path:
    return tmp_path / "closed"


@pytest.fixture
def log(tmp_path) -> Path:
    path = tmp_path / "begun.txt"
    path.touch()
    return path


def begun(log: Path) -> list[int]:
    """Stamps of the fusions that have begun, in nanoseconds give or take some hundred: the pipeline gets a float."""
    return [int(line) for line in log.read_text().split()]


def test_the_pair_that_is_fused_is_the_newest_that_had_arrived(start_node, make_client, gate, log):
    node = start_node(GATED, parameters={"qos.depth": 100}, environment={"FAKE_LOG": str(log), "FAKE_GATE": str(gate)})
    client = make_client(node)
    client.cameras()
    client.listen("fused/image", "fused/status")

    def counts(report=None):
        return [client.counts(report or client.reports[-1], stream) for stream in ("thermal", "rgb")]

    for burst in (0, 1, 2, 40):
        before = counts(client.settled())
        client.forget()
        fusions = len(begun(log))
        gate.touch()
        first = client.publish_pair()
        client.wait(lambda fusions=fusions: len(begun(log)) == fusions + 1, "a fusion that does not end")
        start = time.monotonic()
        for number in range(burst):
            client.publish_pair(value=20 + number)
            time.sleep(max(0.0, start + (number + 1) * PERIOD_S - time.monotonic()))

        def newest():
            # DDS may lose some of the burst, but this one is there when the counts say so
            client.poll(lambda: False, 0.5)
            received = [row[0] for row in counts()]
            stamp = client.publish_pair()
            arrived = client.poll(lambda: [row[0] for row in counts()] == [n + 1 for n in received], 5.0)
            return stamp if arrived else None

        newest = client.wait(newest, "a pair that arrives")
        report = client.wait_report(lambda r: [row[2] for row in counts(r)] == [2, 2], "one pair that waits, no more")
        arrived = [row[0] - earlier[0] for row, earlier in zip(counts(report), before, strict=True)]
        assert [row[1] for row in counts(report)] == [row[1] for row in before], "the first is being fused still"
        gate.unlink()
        client.arrived("fused/status", newest)
        after = counts(client.settled())

        published = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in client.received["fused/status"]]
        assert published == [first, newest]
        assert begun(log)[fusions:] == pytest.approx([first, newest], rel=0, abs=1000)
        for now, earlier, messages in zip(after, before, arrived, strict=True):
            received, fused, pending, dropped = now
            assert received == fused + pending + sum(dropped.values())
            assert (received - earlier[0], fused - earlier[1], pending) == (messages, 2, 0)
            gained = {reason: count - earlier[3].get(reason, 0) for reason, count in dropped.items()}
            assert {reason for reason, count in gained.items() if count} <= {"superseded", "unmatched"}
            assert burst < 2 or gained["superseded"] > 0


def small_soak(out: Path, domains, node, **values) -> SoakConfig:
    """A soak of a few seconds on a graph that nobody else uses, around a pipeline whose rate is known."""
    variables = {"ROS_DOMAIN_ID": str(next(domains)), **values.pop("environment", {})}
    more = {"size": "160x120", "alone_hz": 33.0, "parameters": {"warmup.width": 0, "diagnostics.rate_hz": 10}}
    return SoakConfig(out=out, node=tuple(node), environment=variables, **(more | values))


def findings(document: dict) -> dict[str, dict]:
    return {finding["name"]: finding for finding in document["findings"]}


def exact_accounting(document: dict) -> dict:
    """Counts of the streams, after everything that must hold in any run was checked."""
    found = findings(document)
    accounting = found["received = fused + dropped + pending"]
    assert accounting["passed"] and accounting["values"]["reports"] > 10
    lost = found["lost by DDS (sent - received)"]["values"]
    streams = accounting["values"]["streams"]
    for stream, counts in streams.items():
        assert counts["pending"] == 0
        assert counts["received"] == counts["fused"] + sum(counts["dropped"].values())
        assert counts["received"] + lost["before_the_node"][stream] == lost["sent"] > 0
        assert lost["before_the_node"][stream] >= 0
    assert found["exit status after SIGINT"]["passed"]
    return streams


def test_a_steady_overload_keeps_pictures_young(tmp_path, domains, fake_command, capsys):
    config = small_soak(
        tmp_path,
        domains,
        fake_command,
        parts=("overloaded",),
        overload_hz=120.0,
        minutes=0.1,
        environment={"FAKE_DELAY_S": "0.03"},
    )
    (document,) = run_soak(config).values()
    assert json.loads((tmp_path / "overloaded.json").read_text()) == document and document["complete"]
    streams = exact_accounting(document)
    assert streams["rgb"]["dropped"]["superseded"] > streams["rgb"]["fused"] > 30
    found = findings(document)
    assert found["keeps up"]["figure"].startswith("no: 33.00 Hz alone")
    bound = found["age <= one period + processing"]["values"]
    assert bound["judged"] > 30 and bound["beyond"] <= 0.1 * bound["judged"], bound
    assert found["resident memory grows"]["values"]["first_bytes"]["resident"] > 10e6
    assert set(found["cores used"]["values"]["cores"]) == {"node", "player", "listener", "others"}
    assert document["node"]["model"] == "fake" and document["environment"]["commit"]
    said = capsys.readouterr().out
    assert "age <= one period + processing" in said


@pytest.mark.slow
def test_an_interrupted_soak_writes_what_it_has(tmp_path, domains, fake_command, monkeypatch):
    read = soak._Tail.read
    interrupts = [KeyboardInterrupt]

    def interrupted(self):
        read(self)
        if len(self._run.pictures) > 20 and interrupts:
            raise interrupts.pop()

    monkeypatch.setattr(soak._Tail, "read", interrupted)
    config = small_soak(tmp_path, domains, fake_command, parts=("sustained", "lifecycle"), minutes=20.0)
    with pytest.raises(KeyboardInterrupt):
        run_soak(config)
    document = json.loads((tmp_path / "sustained.json").read_text())
    assert not document["complete"] and not (tmp_path / "lifecycle.json").exists()
    exact_accounting(document)


def test_lifecycle_cycles_leave_no_thread_and_no_file(tmp_path, domains, fake_command):
    config = small_soak(tmp_path, domains, fake_command, parts=("lifecycle",), cycles=5)
    (document,) = run_soak(config).values()
    found = findings(document)
    assert document["complete"] and found["cycles completed"]["passed"] and found["exit status after SIGINT"]["passed"]
    for what in ("thread", "file"):
        assert found[f"no {what} left over"]["passed"], found[f"no {what} left over"]
        assert len(found[f"no {what} left over"]["values"]["by_cycle"]) == 5
    assert found["a cycle takes"]["values"]["fused"] >= 15


@pytest.mark.slow
def test_a_node_that_ends_fails_its_part_and_not_the_others(tmp_path, domains, fake_command):
    parameters = {"warmup.width": 0, "diagnostics.rate_hz": 10, "reference": "depth"}
    config = small_soak(tmp_path, domains, fake_command, parts=("sustained", "overloaded"), parameters=parameters)
    documents = run_soak(config)
    assert list(documents) == ["sustained", "overloaded"]
    for part, document in documents.items():
        assert not document["passed"]
        assert document["findings"][0]["figure"] == f"the node ended with status 2: see logs/{part}.node.log"
        assert "one of rgb, thermal" in (tmp_path / "logs" / f"{part}.node.log").read_text()
