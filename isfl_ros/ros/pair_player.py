"""``pair_player``: plays pairs as two camera topics with camera_info, as camera drivers would.

Topics (relative, remappable): ``thermal/image_raw``, ``thermal/camera_info``, ``rgb/image_raw``, ``rgb/camera_info``.
Both pictures of a pair carry one stamp, the node's clock when the pair is played.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.io.sequences import Frame, folder_sequence, night_drive_sequence, parse_size
from isfl_ros.io.staging import write_bytes
from isfl_ros.ros.messages import image_message

FRAME_IDS = {"thermal": "thermal_optical_frame", "rgb": "rgb_optical_frame"}
# An image writer keeps this many pairs for a subscriber that is behind; a camera driver has a few, too.
_DEPTH = 4


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Arguments after those of ROS were taken out."""
    parser = argparse.ArgumentParser(prog="pair_player", description="Plays pairs as two camera topics with camera_info.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pairs", help="folder of pairs (ir/ and vi/, or thermal/ and rgb/); default: the night drive")
    source.add_argument("--size", default="640x480", help="size of the night drive (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the night drive (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="pairs a second (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=0, help="pairs to play; 0 plays until stopped, over and over")
    parser.add_argument("--loop-frames", type=int, default=60, help="length of the loop when --frames is 0 (default: %(default)s)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for subscribers of all topics; 0 does not wait")
    parser.add_argument("--listener", help="node that must have subscribed to rgb/camera_info, too, before --wait is over")
    parser.add_argument("--summary", help="JSON file to write at the end: what was played")
    return parser.parse_args(argv)


def load_frames(args: argparse.Namespace) -> list[Frame]:
    """All frames that will be played, once each.

    Raises:
        InputError: a number is out of range, or the source cannot be read.
    """
    if args.rate <= 0:
        raise InputError("--rate out of range", expected="> 0 pairs a second", got=str(args.rate))
    if args.frames < 0 or args.loop_frames < 1:
        raise InputError("--frames out of range", expected="0 or more", got=str(args.frames))
    count = args.frames or args.loop_frames
    if args.pairs:
        return folder_sequence(args.pairs, count)
    width, height = parse_size(args.size)
    return night_drive_sequence(count, width=width, height=height, rate_hz=args.rate, seed=args.seed)


class PairPlayer(Node):
    """Publishes one pair at a time; the caller keeps the pace."""

    def __init__(self) -> None:
        super().__init__("pair_player")
        qos = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        self._images = {s: self.create_publisher(Image, f"{s}/image_raw", qos) for s in FRAME_IDS}
        self._infos = {s: self.create_publisher(CameraInfo, f"{s}/camera_info", qos) for s in FRAME_IDS}

    def wait_for_subscribers(self, seconds: float, listener: str | None) -> list[str]:
        """Waits until every image topic has a reliable subscriber and every camera_info topic any.

        Args:
            seconds: how long.
            listener: name of a node that must be among the subscribers of ``rgb/camera_info``.

        Returns:
            What is still missing when the time is over.
        """
        deadline = time.monotonic() + seconds
        while True:
            lacking = [p.topic_name for p in self._images.values() if not self._has_reliable_subscriber(p.topic_name)]
            lacking += [p.topic_name for p in self._infos.values() if p.get_subscription_count() == 0]
            if listener and not self._is_heard_by(listener):
                lacking.append(f"{self._infos['rgb'].topic_name} of {listener}")
            if not lacking or time.monotonic() >= deadline:
                return lacking
            rclpy.spin_once(self, timeout_sec=0.1)

    def play(self, frame: Frame) -> None:
        """Publishes one pair under one stamp, camera_info first as drivers do."""
        stamp = self.get_clock().now().to_msg()
        for stream, frame_id in FRAME_IDS.items():
            header = Header(stamp=stamp, frame_id=frame_id)
            pixels = frame.thermal if stream == "thermal" else frame.rgb
            if stream == "rgb":
                encoding = "rgb8"
            else:
                encoding = "mono16" if pixels.dtype == np.uint16 else "mono8"
            self._infos[stream].publish(camera_info(header, pixels.shape[1], pixels.shape[0], frame.camera_matrix))
            self._images[stream].publish(image_message(pixels, encoding=encoding, header=header))

    def _is_heard_by(self, listener: str) -> bool:
        publisher = self._infos["rgb"]
        known = self.get_subscriptions_info_by_topic(publisher.topic_name)
        # The graph knows a subscription before the writer is matched to it; only then does it get what is written.
        return listener in {info.node_name for info in known} and publisher.get_subscription_count() >= len(known)

    def _has_reliable_subscriber(self, topic: str) -> bool:
        return any(
            info.qos_profile.reliability == ReliabilityPolicy.RELIABLE for info in self.get_subscriptions_info_by_topic(topic)
        )


def camera_info(header: Header, width: int, height: int, camera_matrix: np.ndarray | None) -> CameraInfo:
    """Calibration of a camera without distortion; without a matrix K is zero, which means uncalibrated in ROS."""
    info = CameraInfo(header=header, width=width, height=height)
    if camera_matrix is not None:
        info.distortion_model = "plumb_bob"
        info.d = [0.0] * 5
        info.k = camera_matrix.ravel().tolist()
        info.r = np.eye(3).ravel().tolist()
        info.p = np.hstack((camera_matrix, np.zeros((3, 1)))).ravel().tolist()
    return info


def main(args: list[str] | None = None) -> int:
    """Plays and returns the exit status: 0 done or stopped, 2 bad input."""
    argv = sys.argv if args is None else ["pair_player", *args]
    options = parse_arguments(remove_ros_args(argv)[1:])
    try:
        frames = load_frames(options)
    except InputError as error:
        print(f"pair_player: error: {error}", file=sys.stderr)
        return 2
    rclpy.init(args=argv)
    played, lacking, first = 0, [], time.monotonic()
    try:
        player = PairPlayer()
        if options.wait:
            lacking = player.wait_for_subscribers(options.wait, options.listener)
            if lacking:
                player.get_logger().warning(f"playing although there is no subscription to {', '.join(lacking)}")
        total = options.frames or None
        first = due = time.monotonic()
        with tqdm(total=total, desc="playing", unit="pair") as bar:
            while total is None or played < total:
                rclpy.spin_once(player, timeout_sec=max(0.0, due - time.monotonic()))
                if time.monotonic() < due:  # woken by something else
                    continue
                player.play(frames[played % len(frames)])
                played += 1
                bar.update()
                # A late pair does not hurry the next ones: cameras do not catch up either.
                due = max(due + 1.0 / options.rate, time.monotonic())
        time.sleep(0.5)  # reliable writers resend from this process; it must outlive the last pair
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if options.summary:
            seconds = time.monotonic() - first
            document = {"played": played, "seconds": seconds, "rate_hz": options.rate, "unheard_topics": lacking}
            write_bytes(Path(options.summary), json.dumps(document, indent=2).encode())
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
