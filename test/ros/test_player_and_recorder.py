"""Player and recorder: what they compute without a graph, and the whole demo on a real one."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from std_msgs.msg import Header

from isfl_ros.cli.demo import check, counts, percentiles, stage_latencies
from isfl_ros.errors import InputError
from isfl_ros.io.folders import write_png
from isfl_ros.io.sequences import folder_sequence, night_drive_sequence, parse_size
from isfl_ros.ros.pair_player import camera_info
from isfl_ros.ros.recorder import Thinned, Video, fit, sheet


def test_thinned_keeps_an_even_sample_of_any_length():
    for length in (1, 5, 24, 25, 1000):
        kept = Thinned(24)
        for item in range(length):
            kept.offer(item)
        assert len(kept.items) <= 24 and kept.items[0] == 0
        gaps = np.diff(kept.items)
        assert gaps.size == 0 or (gaps == gaps[0]).all()
        assert length - kept.items[-1] <= (gaps[0] if gaps.size else 1)
        six = kept.evenly(6)
        assert len(six) == min(6, len(kept.items)) and six[0] == 0 and six[-1] == kept.items[-1]


def test_fit_keeps_proportions():
    picture = np.full((40, 80, 3), 200, np.uint8)
    out = fit(picture, 100, 100)
    assert out.shape == (100, 100, 3)
    rows = np.nonzero(out[:, 50, 0])[0]
    assert (rows.min(), rows.max()) == (25, 74) and out[50].min() == 200
    assert fit(picture, 80, 40) is picture


def test_sheet_puts_the_four_panels_of_each_moment_in_a_row():
    grey = [40, 90, 140, 190]
    top, bottom = (np.hstack([np.full((30, 40, 3), g, np.uint8) for g in pair]) for pair in (grey[:2], grey[2:]))
    out = sheet([np.vstack((top, bottom))] * 2)
    height, width = out.shape[0] // 2, out.shape[1] // 4
    second = [out[height + height // 2, column * width + width // 2, 0] for column in range(4)]
    assert second == grey


def test_video_takes_frames_of_changing_size(tmp_path):
    video = Video(tmp_path / "v.mp4", 5.0)
    for size in ((64, 96), (96, 64), (64, 96)):
        video.write(np.full((*size, 3), 128, np.uint8))
    video.close()
    reader = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    frames = 0
    while True:
        ok, frame = reader.read()
        if not ok:
            break
        assert frame.shape == (64, 96, 3)
        frames += 1
    assert frames == 3


def test_camera_info_of_a_calibrated_and_an_uncalibrated_camera():
    matrix = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    info = camera_info(Header(frame_id="f"), 640, 480, matrix)
    np.testing.assert_array_equal(np.array(info.k).reshape(3, 3), matrix)
    np.testing.assert_array_equal(np.array(info.p).reshape(3, 4), np.hstack((matrix, np.zeros((3, 1)))))
    assert (info.width, info.height, info.header.frame_id, list(info.d)) == (640, 480, "f", [0.0] * 5)
    assert not any(camera_info(Header(), 640, 480, None).k), "K of zeros means uncalibrated"


def test_sequences(tmp_path):
    frames = night_drive_sequence(2, width=96, height=80, rate_hz=5.0, seed=1)
    assert [f.thermal.shape for f in frames] == [(80, 96)] * 2 and frames[0].camera_matrix.shape == (3, 3)
    write_png(tmp_path / "ir" / "a.png", np.zeros((40, 50), np.uint8))
    write_png(tmp_path / "vi" / "a.png", np.zeros((40, 50, 3), np.uint8))
    assert len(folder_sequence(tmp_path, 5)) == 1
    write_png(tmp_path / "vi" / "a.png", np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(InputError, match="differ in size"):
        folder_sequence(tmp_path, 5)
    assert parse_size("640x480") == (640, 480)
    for text in ("640", "axb", "1x2x3"):
        with pytest.raises(InputError, match="WIDTHxHEIGHT"):
            parse_size(text)


def summary(**changes):
    stream = {"received": "10", "fused": "7", "dropped.superseded": "3", "pending": "0"}
    base = {
        "played": 10,
        "diagnostics": {"fusion: input thermal": dict(stream), "fusion: input rgb": dict(stream)},
        "stamps_not_of_the_reference": 0,
        "frame_ids_not_of_the_reference": 0,
        "exit_status": {"node": 0, "recorder": 0},
        "unheard_topics": [],
        "recorded": 7,
        "companions": {"gate/image": {"received": 7, "other_frame_id": 0}},
    }
    return base | changes


def test_the_demo_checks_its_own_books():
    fine = summary()
    assert check(fine) == [] and fine["streams"]["rgb"]["dropped"] == {"superseded": 3}
    wrong = summary()
    wrong["diagnostics"]["fusion: input rgb"]["fused"] = "6"
    assert any("received 10, but fused + dropped + pending = 9" in p for p in check(wrong))
    lost = summary(played=12)
    assert check(lost) == [] and lost["streams"]["thermal"]["lost_in_transport"] == 2
    assert any("received 10 of 9 played" in p for p in check(summary(played=9)))
    assert any("stamps" in p for p in check(summary(stamps_not_of_the_reference=1)))
    assert any("status -9" in p for p in check(summary(exit_status={"node": -9, "recorder": 0})))
    assert any("no subscription to /a" in p for p in check(summary(unheard_topics=["/a"])))
    assert any("recorded 8 pictures, 7 were fused" in p for p in check(summary(recorded=8)))
    assert any("nothing on gate/image" in p for p in check(summary(companions={"gate/image": {"received": 0, "other_frame_id": 0}})))
    nothing = {"gate/image": {"received": 0, "other_frame_id": 0}, "fused/status": {"received": 0, "other_frame_id": 0}}
    without_gates = summary(companions=nothing)
    without_gates["diagnostics"]["fusion: processing"] = {"gates": "no"}
    assert [p for p in check(without_gates) if "nothing on" in p] == ["nothing on fused/status"]
    nothing = summary(diagnostics={}, recorded=0)
    assert any("0 pairs were fused, expected at least 1" in p for p in check(nothing))
    assert any("7 pairs were fused, expected at least 30" in p for p in check(summary(), least_fused=30))


def test_reading_figures_from_diagnostics():
    values = {"fusion: processing": {"network_ms.p50": "5.5", "network_ms.p95": "7", "rate_hz": "3", "device": "cpu"}}
    assert stage_latencies(values) == {"network": {"p50": 5.5, "p95": 7.0}}
    assert counts({})["rgb"] == {"received": 0, "fused": 0, "dropped": {}, "pending": 0}
    assert percentiles([]) is None and percentiles([1.0, 2.0, 3.0])["p50"] == 2.0


def run_demo(tmp_path, *arguments):
    command = [sys.executable, "-m", "isfl_ros.cli.main", "demo", "--out", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return done, tmp_path / "out"


@pytest.mark.dds
def test_demo_over_a_real_graph(tmp_path):
    for index in range(3):
        rng = np.random.default_rng(index)
        write_png(tmp_path / "pairs" / "thermal" / f"{index}.png", rng.integers(0, 256, (120, 160)).astype(np.uint8))
        write_png(tmp_path / "pairs" / "rgb" / f"{index}.png", rng.integers(0, 256, (120, 160, 3)).astype(np.uint8))
    done, out = run_demo(tmp_path, "--pairs", str(tmp_path / "pairs"), "--rate", "4", "--seconds", "3")
    assert done.returncode == 0, done.stderr
    assert {"fused.mp4", "sheet.png", "latency.png", "summary.json"} <= {p.name for p in out.iterdir()}
    report = json.loads((out / "summary.json").read_text())
    assert report["problems"] == [] and report["played"] == 12 and report["recorded"] > 0
    for stream in report["streams"].values():
        assert stream["received"] == stream["fused"] + sum(stream["dropped"].values()) + stream["pending"]
        assert stream["pending"] == 0
    assert report["recorded"] <= report["streams"]["rgb"]["fused"]
    assert report["latency_ms"]["network"]["p50"] > 0 and report["age_at_recorder_ms"]["p50"] > 0
    assert cv2.VideoCapture(str(out / "fused.mp4")).read()[0]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")], "nothing is left aside"
