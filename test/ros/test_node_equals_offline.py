"""The node's pictures are those of the offline tool: one pipeline, one meaning."""

from __future__ import annotations

import numpy as np
import pytest
from std_msgs.msg import Header

from isfl_ros.cli.main import main
from isfl_ros.images import to_uint8
from isfl_ros.io.folders import read_rgb, read_thermal, write_png
from isfl_ros.io.sequences import Frame, night_drive_sequence
from isfl_ros.pipeline import FusionPipeline, FusionResult, PipelineConfig
from isfl_ros.ros.messages import image_message

pytestmark = pytest.mark.dds


THERMAL_ENCODINGS = {"uint8": "mono8", "uint16": "mono16", "float32": "32FC1"}


def through_the_node(client, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Fused picture and gate that come back for one pair."""
    client.listen("fused/image", "gate/image")
    stamp = client.next_stamp()
    for stream, pixels in (("thermal", frame.thermal), ("rgb", frame.rgb)):
        header = Header(frame_id=f"{stream}_optical")
        header.stamp.sec, header.stamp.nanosec = divmod(stamp, 10**9)
        encoding = "rgb8" if stream == "rgb" else THERMAL_ENCODINGS[pixels.dtype.name]
        client.publishers[stream].publish(image_message(pixels, encoding=encoding, header=header))
    fused, gate = (client.arrived(topic, stamp) for topic in ("fused/image", "gate/image"))
    shape = frame.rgb.shape
    assert (fused.encoding, gate.encoding) == ("rgb8", "mono8")
    return np.array(fused.data).reshape(shape), np.array(gate.data).reshape(shape[:2])


def through_fuse(folder, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """What ``isfl fuse`` writes for the same pair."""
    write_png(folder / "thermal" / "x.png", frame.thermal)
    write_png(folder / "rgb" / "x.png", frame.rgb)
    command = ["fuse", "--thermal", str(folder / "thermal"), "--rgb", str(folder / "rgb"), "--out", str(folder / "out"), "--gates"]
    assert main(command) == 0
    return read_rgb(folder / "out" / "x.png"), read_thermal(folder / "out" / "x_gate.png")


def assert_equal_to_one_level(client, folder, frame: Frame) -> None:
    for got, wanted in zip(through_the_node(client, frame), through_fuse(folder, frame), strict=True):
        assert got.shape == wanted.shape
        assert np.abs(got.astype(int) - wanted).max() <= 1
        assert np.ptp(wanted) > 0


def test_sixteen_bit_night_drive(shared_client, tmp_path):
    assert_equal_to_one_level(shared_client, tmp_path, night_drive_sequence(1, width=161, height=121, rate_hz=5, seed=2)[0])


def test_real_pair(shared_client, tmp_path, real_data):
    stem = "FLIR_00288"
    thermal, rgb = (real_data / "roadscene" / folder / f"{stem}.jpg" for folder in ("ir", "vi"))
    assert_equal_to_one_level(shared_client, tmp_path, Frame(read_thermal(thermal), read_rgb(rgb), None))


def shown(result: FusionResult) -> tuple[np.ndarray, np.ndarray]:
    """Fused picture and gate as 8-bit pixels."""
    return result.rgb, to_uint8(result.gate)


def test_thermal_pictures_with_missing_pixels(shared_client):
    """32FC1 with NaN and infinity: in a part of the picture, then in all of it: as good as no thermal picture."""
    frame = night_drive_sequence(1, width=161, height=121, rate_hz=5, seed=3)[0]
    holes = frame.thermal.astype(np.float32)
    holes[20:70, 30:100] = np.nan
    holes[90, ::3], holes[100, ::3] = np.inf, -np.inf
    nothing = np.full_like(holes, np.nan)
    pipeline = FusionPipeline(PipelineConfig())
    try:
        whole = pipeline.fuse(frame.thermal, frame.rgb, gate=True)
        for thermal, offline in ((holes, holes), (nothing, None)):
            wanted = pipeline.fuse(offline, frame.rgb, gate=True)
            got = through_the_node(shared_client, Frame(thermal, frame.rgb, None))
            for pixels, result, undamaged in zip(got, shown(wanted), shown(whole)):
                assert np.abs(pixels.astype(int) - result).max() <= 1
                assert np.abs(pixels.astype(int) - undamaged).max() > 10, "missing pixels make a difference"
    finally:
        pipeline.close()
