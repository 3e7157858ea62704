"""SIGINT and SIGTERM at random moments of a node's life: exit status 0, and no traceback.

A slow machine may load weights for longer than the node waits after a signal; it says so in one line then. Under load,
signals are rows of test_faults_degraded.py and test_faults_graph.py.
"""

from __future__ import annotations

import random
import re
import signal
import time

import pytest

pytestmark = [pytest.mark.dds, pytest.mark.slow]

SMALL = {"warmup.width": 160, "warmup.height": 120}
BATCH = 2
"""Nodes that start at once."""

SEEDS = 5


def check_ended(node) -> None:
    assert node.process.wait(30.0) == 0, node.output
    assert not re.search("Traceback|Error|ERROR|Exception", node.output), node.output


@pytest.fixture(scope="module")
def start_up_s(start_shared_node):
    """How long `BATCH` nodes take from their signal handlers to being active."""
    nodes = [start_shared_node(parameters=SMALL) for _ in range(BATCH)]
    for node in nodes:
        node.wait_for_signals()
    started = time.monotonic()
    while not all("active: waiting for pairs" in node.output for node in nodes):
        assert time.monotonic() < started + 60.0
        time.sleep(0.05)
    return time.monotonic() - started


@pytest.mark.parametrize("seed", range(SEEDS))
def test_while_it_starts(start_node, start_up_s, seed):
    """Imports, weights, warm-up, subscriptions: evenly from its first moment to a little after its last."""
    rng = random.Random(seed)
    waiting = []
    for place in range(BATCH):
        node = start_node(parameters=SMALL)
        node.wait_for_signals()
        moment = (seed + (place + rng.random()) / BATCH) / SEEDS * 1.1 * start_up_s
        waiting.append((time.monotonic() + moment, node))
    for moment, node in sorted(waiting, key=lambda row: row[0]):
        time.sleep(max(0.0, moment - time.monotonic()))
        node.process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
    for _, node in waiting:
        check_ended(node)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("label", ["configure", "activate", "deactivate", "cleanup", "shutdown"])
def test_during_a_transition(start_node, make_client, label, seed):
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    rng = random.Random(f"{label} {seed}")
    node = start_node(parameters={**SMALL, "autostart": "false"})
    client = make_client(node)
    client.wait_report(lambda r: r["fusion: processing"][2]["state"] == "unconfigured", "a node that waits")
    before = {
        "configure": (),
        "activate": ("configure",),
        "deactivate": ("configure", "activate"),
        "cleanup": ("configure",),
        "shutdown": ("configure", "activate"),
    }
    for earlier in before[label]:
        assert client.transition(earlier)
    service = client.node.create_client(ChangeState, "/fusion/change_state")
    client.wait(service.service_is_ready, "the life cycle")
    service.call_async(ChangeState.Request(transition=Transition(label=label)))
    client.poll(lambda: False, rng.uniform(0.0, 1.0 if label == "configure" else 0.03))
    node.process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
    check_ended(node)


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
def test_an_impatient_user(start_node, make_client, pause_s):
    """The same signal many times."""
    node = start_node()
    client = make_client(node)
    client.wait_report(lambda r: r["fusion: processing"][2]["state"] == "active", "an active node")
    for _ in range(20):
        if node.process.poll() is None:
            node.process.send_signal(signal.SIGINT)
        time.sleep(pause_s)
    check_ended(node)
