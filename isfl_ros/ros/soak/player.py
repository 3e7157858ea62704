"""``python -m isfl_ros.ros.soak.player``: the night drive as two cameras at a steady rate, at little cost.

Every message is made once and sent again with a new stamp: what the cameras cost must not be taken from the node.
Topics and frames are those of ``pair_player``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from isfl_ros.errors import InputError
from isfl_ros.io.sequences import Frame, night_drive_sequence, parse_size
from isfl_ros.io.staging import write_bytes
from isfl_ros.ros.messages import NANOSECONDS, image_message
from isfl_ros.ros.pair_player import FRAME_IDS, PairPlayer, camera_info

_LAST_MESSAGES_S = 5.0


class PreparedPair:
    """The messages of one pair. Two pairs of a drive differ in every picture: both cameras have noise."""

    def __init__(self, frame: Frame):
        self._headers = {stream: Header(frame_id=frame_id) for stream, frame_id in FRAME_IDS.items()}
        pictures = {"thermal": (frame.thermal, "mono16"), "rgb": (frame.rgb, "rgb8")}
        self.messages: dict[str, tuple[CameraInfo, Image]] = {}
        for stream, (pixels, encoding) in pictures.items():
            header, (height, width) = self._headers[stream], pixels.shape[:2]
            self.messages[stream] = (
                camera_info(header, width, height, frame.camera_matrix),
                image_message(pixels, encoding=encoding, header=header),
            )

    def stamp(self, stamp_ns: int) -> None:
        """Give all messages this stamp."""
        seconds, rest = divmod(stamp_ns, NANOSECONDS)
        for header in self._headers.values():
            header.stamp = Time(sec=seconds, nanosec=rest)


def prepare(size: str, *, distinct: int, rate_hz: float, seed: int = 0) -> list[PreparedPair]:
    """Pairs of the night drive, to be sent one after the other and over again.

    Raises:
        InputError: a number is out of range, or fewer than two pairs: one picture over and over is a frozen camera.
    """
    if distinct < 2:
        raise InputError("--distinct out of range", expected="2 or more", got=str(distinct))
    width, height = parse_size(size)
    return [
        PreparedPair(f) for f in night_drive_sequence(distinct, width=width, height=height, rate_hz=rate_hz, seed=seed)
    ]


class SteadyPlayer(PairPlayer):
    """Sends prepared pairs; the caller keeps the pace."""

    def send(self, pair: PreparedPair) -> int:
        """Publish a pair with the present time as its stamp, which is returned in nanoseconds."""
        stamp_ns = time.time_ns()
        pair.stamp(stamp_ns)
        for stream, (info, image) in pair.messages.items():
            self._infos[stream].publish(info)
            self._images[stream].publish(image)
        return stamp_ns

    def reached_everybody(self) -> bool:
        """Wait until reliable subscribers have what was sent; False if they do not say so in time."""
        limit = Duration(seconds=_LAST_MESSAGES_S)
        return all(publisher.wait_for_all_acked(limit) for publisher in self._images.values())


def play(
    player: SteadyPlayer, pairs: list[PreparedPair], *, rate_hz: float, seconds: float, stamps_ns: list[int]
) -> None:
    """Send pairs on a fixed schedule; a slot that went by while the player could not run stays empty.

    Args:
        player: sends.
        pairs: in turn.
        rate_hz: slots a second.
        seconds: length of the schedule.
        stamps_ns: takes the stamp of every pair that was sent, also of an interrupted schedule.
    """
    start, slot = time.monotonic(), 0
    while slot < round(seconds * rate_hz):
        time.sleep(max(0.0, start + slot / rate_hz - time.monotonic()))
        stamps_ns.append(player.send(pairs[len(stamps_ns) % len(pairs)]))
        # less than a period late is late, no more: then the next pair follows at once
        slot = max(slot + 1, int((time.monotonic() - start) * rate_hz))


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Arguments after those of ROS were taken out."""
    parser = argparse.ArgumentParser(
        prog="python -m isfl_ros.ros.soak.player", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--size", default="640x480", help="of the pictures (default: %(default)s)")
    parser.add_argument("--distinct", type=int, default=40, help="pairs that are rendered (default: %(default)s)")
    parser.add_argument("--rate", type=float, required=True, help="pairs a second")
    parser.add_argument("--seconds", type=float, required=True, help="how long to play")
    parser.add_argument(
        "--wait", type=float, default=60.0, help="seconds to wait for subscribers (default: %(default)s)"
    )
    parser.add_argument("--summary", required=True, help="JSON file to write at the end: the stamps that were sent")
    return parser.parse_args(argv)


def main(args: list[str] | None = None) -> int:
    """Plays and returns the exit status: 0 done or stopped by SIGINT, 2 bad input."""
    argv = sys.argv if args is None else ["soak_player", *args]
    options = parse_arguments(remove_ros_args(argv)[1:])
    stamps_ns: list[int] = []
    lacking: list[str] = []
    try:
        pairs = prepare(options.size, distinct=options.distinct, rate_hz=options.rate)
    except InputError as error:
        print(f"soak_player: error: {error}", file=sys.stderr)
        return 2
    # Python's own handler: the stop falls between two pairs, and the graph is still there to deliver the last one
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    player = SteadyPlayer()
    delivered = False
    try:
        lacking = player.wait_for_subscribers(options.wait, None)
        play(player, pairs, rate_hz=options.rate, seconds=options.seconds, stamps_ns=stamps_ns)
    except KeyboardInterrupt:
        pass
    finally:
        delivered = player.reached_everybody()
        document = {"stamps_ns": stamps_ns, "unheard_topics": lacking, "delivered": delivered}
        write_bytes(Path(options.summary), json.dumps(document).encode())
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
