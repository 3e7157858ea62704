"""``python -m isfl_ros.ros.soak.cycler``: takes a fusion node through its life, once for every line it reads.

A cycle: configure, activate, pairs until some have been fused, deactivate, cleanup. Answers each line with one of JSON:
``{"seconds": {transition: s}, "sent": n, "fused": n}``, or ``{"error": text}`` and the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import Image

from isfl_ros.errors import InputError
from isfl_ros.ros.soak.player import PreparedPair, SteadyPlayer, prepare

_RATE_HZ = 5.0
_PATIENCE_S = 120.0


class Failure(Exception):
    """A cycle that could not be completed, in words."""


class Cycler(SteadyPlayer):
    """Cameras, a listener and a lifecycle manager in one. One cycle at a time."""

    def __init__(self, name: str):
        super().__init__()
        self._manager = self.create_client(ChangeState, f"{name}/change_state")
        self._fused = 0
        reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        # the picture, so that it is computed as for any user; the status says whether it is one of a pair
        self.create_subscription(Image, f"{name}/fused/image", lambda message: None, reliable, raw=True)
        self.create_subscription(DiagnosticArray, f"{name}/fused/status", self._on_status, reliable)

    def cycle(self, pairs: list[PreparedPair], wanted: int) -> dict:
        """One life of the node, in which `wanted` pairs are fused.

        Raises:
            Failure: a transition was refused, or pictures did not come.
        """
        seconds = {}
        for label in ("configure", "activate"):
            seconds[label] = self._transition(label)
        start = time.monotonic()
        sent = self._play(pairs, wanted)
        seconds["pictures"] = time.monotonic() - start
        for label in ("deactivate", "cleanup"):
            seconds[label] = self._transition(label)
        return {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "sent": sent,
            "fused": self._fused,
        }

    def _on_status(self, message: DiagnosticArray) -> None:
        self._fused += message.status[0].message == "pair"

    def _transition(self, label: str) -> float:
        start = time.monotonic()
        if not self._manager.wait_for_service(_PATIENCE_S):
            raise Failure(f"no lifecycle service for {label}")
        future = self._manager.call_async(ChangeState.Request(transition=Transition(label=label)))
        rclpy.spin_until_future_complete(self, future, timeout_sec=_PATIENCE_S)
        if not future.done():
            raise Failure(f"{label}: no answer in {_PATIENCE_S:g} s")
        if not future.result().success:
            raise Failure(f"{label} was refused: see the log of the node")
        return time.monotonic() - start

    def _play(self, pairs: list[PreparedPair], wanted: int) -> int:
        self._fused = sent = 0
        lacking = self.wait_for_subscribers(_PATIENCE_S, None)
        if lacking:
            raise Failure(f"the node did not subscribe to {', '.join(lacking)}")
        deadline = time.monotonic() + _PATIENCE_S
        while self._fused < wanted:
            if time.monotonic() > deadline:
                raise Failure(f"{self._fused} of {wanted} pairs were fused in {_PATIENCE_S:g} s; {sent} were sent")
            self.send(pairs[sent % len(pairs)])
            sent += 1
            due = time.monotonic() + 1.0 / _RATE_HZ
            while self._fused < wanted and (left := due - time.monotonic()) > 0.0:
                rclpy.spin_once(self, timeout_sec=left)
        return sent


def main(args: list[str] | None = None) -> int:
    """Works until its input ends; 1 after a failure, 2 for bad input."""
    argv = sys.argv if args is None else ["soak_cycler", *args]
    parser = argparse.ArgumentParser(
        prog="python -m isfl_ros.ros.soak.cycler", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--node", default="/fusion", help="full name of the node (default: %(default)s)")
    parser.add_argument("--size", default="640x480", help="of the pictures (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="to be fused in each cycle (default: %(default)s)")
    options = parser.parse_args(remove_ros_args(argv)[1:])
    try:
        pairs = prepare(options.size, distinct=10, rate_hz=_RATE_HZ)
    except InputError as error:
        print(f"soak_cycler: error: {error}", file=sys.stderr)
        return 2
    rclpy.init(args=argv)
    cycler = Cycler(options.node)
    try:
        for _ in sys.stdin:
            print(json.dumps(cycler.cycle(pairs, options.pairs)), flush=True)
    except Failure as failure:
        print(json.dumps({"error": str(failure)}), flush=True)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
