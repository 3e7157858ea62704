"""Bad messages, one row of the fault table a test, against one node that lives through all of them.

Each row ends in `Rig.finish`: the node is there, a good pair is shown within a second of good pairs, the diagnostics
are OK again, every message is accounted for, every picture is what its status says, and stamps of pictures never go
back, except after a jump. Cameras that are given up are in test_faults_degraded.py, what comes and goes around the
node in test_faults_graph.py.
"""

from __future__ import annotations

import itertools
import re
from array import array
from pathlib import Path

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.dds

HOUR_NS = 3600 * 10**9


@pytest.fixture
def rig(shared_rig):
    return shared_rig("rgb")


def resident_mib(rig) -> float:
    lines = Path(f"/proc/{rig.node.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


# stamps


@pytest.mark.parametrize(
    ("mode", "shown", "consequence"),
    [
        ("single", "rgb_only", "rgb is fused alone"),
        pytest.param("hold", "held", "the last fused picture is repeated .*", marks=pytest.mark.slow),
        pytest.param("stop", "none", "nothing is published .*", marks=pytest.mark.slow),
    ],
)
def test_stamps_an_hour_apart_are_named_and_an_offset_mends_them(rig, mode, shown, consequence):
    """Both cameras are well, but there are no pairs: that is treated as if one were dead."""
    rig.set(degraded_timeout_ms=300.0, degraded_mode=mode)
    rig.run(3)
    rig.ahead_ns = HOUR_NS
    clocks = r"the clocks of the cameras disagree: closest stamps were 3(599|600)\.\d s apart"
    report = rig.says("pairing", "ERROR", rf"no pair for \d+ ms: {consequence}; {clocks}")
    assert rig.entry(report, "input thermal", "OK", "OK") and rig.entry(report, "input rgb", "OK", "OK")
    assert report["fusion: pairing"][2]["mode"] == shown
    before = len(rig.pictures())
    rig.run(10)
    modes = [picture.mode for picture in rig.pictures()[before:]]
    assert modes == [] if mode == "stop" else set(modes) == {shown} and len(modes) > 5
    rig.set(sync_thermal_offset_ms=-3_600_000.0)
    rig.recover()
    rig.until_well()
    rig.finish()  # the thermal clock is set right: it goes back by an hour


@pytest.mark.slow
def test_stamps_a_little_further_apart_than_the_slop_are_named_with_their_distance(rig):
    rig.ahead_ns = 23_000_000
    rig.says("pairing", "WARN", r"no pair within the slop of 20 ms, closest was 23\.0 ms apart")
    rig.set(sync_thermal_offset_ms=-23.0)
    rig.recover()
    rig.until_well()
    rig.finish()


def test_a_camera_that_counts_from_its_start_beside_one_that_knows_the_date(rig):
    """An offset of half a century is within a microsecond of what was asked for: slop and stamps are kept."""
    rig.ahead_ns = -(rig.stamp_ns - 12 * 10**9)
    said = r"the clocks of the cameras disagree: closest stamps were 1\d{9}\.\d s apart"
    rig.says("pairing", "ERROR", said)
    rig.set(sync_thermal_offset_ms=-rig.ahead_ns * 1e-6)
    rig.recover()
    rig.until_well()
    rig.finish()


@pytest.mark.parametrize("seconds", [-100.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (-1.2, -3600.0))])
def test_time_jumps_back(rig, seconds):
    rig.run(3)
    rig.run(1, rgb="silent")  # a thermal picture waits for its partner
    rig.jump(seconds)
    rig.recover()
    rig.says("pairing", "WARN", "time jumped back: pairing was reset")
    assert rig.recovery[0] <= 1
    assert rig.dropped()["thermal"]["time_jump"] >= 1
    rig.finish()


def test_a_clock_is_set_back_by_less_than_a_jump(rig):
    """Half a second of pictures is as old as what was shown already; new ones come then, or it is taken for a jump."""
    rig.run(3)
    rig.jump(-0.5)
    rig.recover()
    rig.finish()
    for row in rig.dropped().values():
        assert 3 <= row["out_of_order"] <= 11


def test_time_jumps_back_to_just_before_the_last_picture_that_was_shown(rig):
    """While nothing was shown, time went on: a jump to a little before the last picture is a jump all the same."""
    rig.set(degraded_timeout_ms=200.0, degraded_mode="stop")
    rig.run(5)
    rig.run(24, thermal="silent")
    rig.jump(-1.6)
    rig.recover()
    rig.finish()


@pytest.mark.parametrize("seconds", [2.0, pytest.param(3600.0, marks=pytest.mark.slow)])
def test_time_jumps_forward(rig, seconds):
    rig.run(3)
    rig.run(1, rgb="silent")
    rig.jump(seconds)
    rig.recover()
    rig.finish()
    assert rig.dropped()["thermal"]["unmatched"] == 1
    rig.check_dropped("unmatched")


def test_one_corrupt_stamp_in_the_future(rig):
    rig.run(3)
    rig.run(1, thermal=lambda shot: [shot.take(stamp=shot.stamp + HOUR_NS, shown=None)])
    rig.recover()
    rig.finish()
    assert rig.recovery[0] <= 1


def test_duplicate_stamps(rig):
    twice = lambda shot: [shot.take(), shot.take(shown=None)]  # noqa: E731
    rig.run(20, thermal=twice, rgb=twice)
    pictures = rig.finish()
    for stream in ("thermal", "rgb"):
        assert rig.dropped()[stream]["duplicate_stamp"] > 10
    assert len({picture.stamp for picture in pictures}) == len(pictures) > 10


def test_stamps_out_of_order(rig):
    def late(shot):
        """Its predecessor comes after it: a picture that must not be shown any more."""
        return [shot.take(), shot.take(stamp=shot.stamp - 10_000_000, pixels=shot.last_pixels, shown=None)]

    rig.run(20, thermal=late, rgb=late)
    pictures = rig.finish()
    for stream in ("thermal", "rgb"):
        assert rig.dropped()[stream]["out_of_order"] > 10
    assert len(pictures) > 10


# pictures that cannot be


SHORT = "data_shorter_than_step_times_height"
RUDE = "\n[ERROR] gel\u00f6scht " + 10_000 * "x"

IMPOSSIBLE = {
    "short data": (
        {"data": array("B", bytes(16000))},
        SHORT,
        "16000 bytes of data; expected {size} (step {step} x 120 rows)",
    ),
    "empty data": (
        {"data": array("B")},
        SHORT,
        "0 bytes of data; expected {size} (step {step} x 120 rows)",
    ),
    # as large as may be, and next to nothing behind it
    "4096x2048": (
        {"width": 4096, "height": 2048, "step": 12288},
        SHORT,
        "{size} bytes of data; expected 25165824 (step 12288 x 2048 rows)",
    ),
    "short rows": (
        {"step": 17},
        "step_smaller_than_row",
        "step 17; expected at least {step} bytes for 160 pixels of {encoding}",
    ),
    "unknown encoding": (
        {"encoding": "64FC9"},
        "unsupported_encoding",
        "encoding '64FC9'; expected one of {encoding}, ",
    ),
    "rude encoding": (
        {"encoding": RUDE},
        "unsupported_encoding",
        f"encoding {RUDE[:40]!r}; expected one of {{encoding}}, ",
    ),
    **{
        f"{width}x{height}": (
            {"width": width, "height": height, "step": step},
            "bad_size",
            f"{width}x{height}; expected 32 to ",
        )
        for width, height, step in (
            (100_000, 100_000, 300_000),
            (2**32 - 1, 2**32 - 1, 2**32 - 1),
            (16384, 16384, 49152),
            (160, 31, 480),
            (0, 0, 0),
        )
    },
}
"""Fields of the message, the cause under which it is counted, and how what is said of it begins."""

FACTS = {
    "thermal": {"size": 19200, "step": 160, "encoding": "mono8"},
    "rgb": {"size": 57600, "step": 480, "encoding": "rgb8"},
}


QUICK = ("short data", "empty data", "rude encoding", "100000x100000")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in IMPOSSIBLE]
)
def test_pictures_that_cannot_be(rig, name):
    """One camera sends nothing else for a second, and is given up; every third picture of the other is bad as well."""
    fields, cause, text = IMPOSSIBLE[name]
    said = {stream: rf"{stream} image (has|is) {re.escape(text.format(**FACTS[stream]))}.*" for stream in FACTS}
    memory = resident_mib(rig)
    rig.set(degraded_timeout_ms=200.0)
    rig.run(3)
    bad = lambda shot: [shot.take(shown=None, **fields)]  # noqa: E731
    turns = itertools.cycle((False, False, True))
    at_times = lambda shot: bad(shot) if next(turns) else [shot.take()]  # noqa: E731
    everything = rf"(\d+) of \1 messages refused: {said['rgb']}"
    report = rig.says("input rgb", "ERROR", everything, rgb=bad, thermal=at_times)
    assert rig.entry(report, "input thermal", "WARN", rf"\d+ of \d+ messages refused: {said['thermal']}")
    assert rig.entry(report, "pairing", "WARN", "thermal is fused alone")
    rig.recover()
    pictures = rig.finish()
    assert "thermal_only" in {picture.mode for picture in pictures}
    dropped = rig.dropped()
    assert dropped["rgb"][cause] > 10 and dropped["thermal"][cause] > 3
    rig.check_dropped(cause, "unmatched", "outdated")
    assert resident_mib(rig) < memory + 40


def test_each_cause_is_logged_once(rig):
    """However many such messages there were in the rows above, and in this one."""
    empty = lambda shot: [shot.take(shown=None, data=array("B"))]  # noqa: E731
    unknown = lambda shot: [shot.take(shown=None, encoding="nonesuch")]  # noqa: E731
    rig.run(5, thermal=empty, rgb=unknown)
    rig.recover()
    rig.finish()
    lines = rig.node.output.splitlines()
    for stream, cause in (("thermal", "data_shorter_than_step_times_height"), ("rgb", "unsupported_encoding")):
        assert sum(f"message dropped ({cause}): {stream} image" in line for line in lines) == 1


# pictures that change


def test_both_sizes_change_in_mid_stream(rig):
    rig.run(5)
    rig.size = 80, 64
    rig.recover()
    assert rig.until_well()["fusion: input rgb"][2]["size"] == "80x64"
    rig.size = 161, 121
    rig.run(5)
    assert {p.pixels.shape[:2] for p in rig.finish()} == {(120, 160), (64, 80), (121, 161)}


@pytest.mark.parametrize("stream", ["thermal", "rgb"])
def test_one_size_changes_in_mid_stream(rig, stream):
    """Pictures of different sizes cannot be laid over each other: the reference camera is shown alone."""
    rig.run(3)
    small = lambda shot: [shot.take(pixels=np.ascontiguousarray(shot.pixels[:64, :80]))]  # noqa: E731
    rig.run(5, **{stream: small})
    sizes = {"thermal": "160x120", "rgb": "160x120", stream: "80x64"}
    report = rig.says(
        "processing",
        "ERROR",
        f"size mismatch: thermal is {sizes['thermal']}, rgb is {sizes['rgb']}; expected aligned images of one size",
        **{stream: small},
    )
    assert report[f"fusion: input {stream}"][2]["size"] == "80x64"
    rig.recover()
    modes = [picture.mode for picture in rig.finish()]
    assert rig.dropped()["thermal"]["size_mismatch"] == modes.count("rgb_only") > 3


def thermal_as(encoding):
    def send(shot):
        if encoding in ("rgb8", "bgr8"):
            colour = np.dstack([shot.pixels, shot.pixels, 255 - shot.pixels])
            code = {"rgb8": cv2.COLOR_RGB2GRAY, "bgr8": cv2.COLOR_BGR2GRAY}[encoding]
            return [shot.take(pixels=colour, encoding=encoding, shown=cv2.cvtColor(colour, code))]
        kind = {"mono16": "<u2", "16UC1": ">u2", "32FC1": "<f4", "8UC1": "u1"}[encoding]
        return [
            shot.take(
                pixels=shot.pixels.astype(kind), encoding=encoding, is_bigendian=int(kind[0] == ">"), shown=shot.pixels
            )
        ]

    return send


def rgb_as(encoding):
    def send(shot):
        turned = {
            "bgr8": lambda: shot.pixels[..., ::-1],
            "rgba8": lambda: np.dstack([shot.pixels, shot.pixels[..., :1]]),
            "bgra8": lambda: np.dstack([shot.pixels[..., ::-1], shot.pixels[..., :1]]),
            "mono8": lambda: shot.pixels[..., 0],
        }
        if encoding in turned:
            seen = np.dstack([shot.pixels[..., 0]] * 3) if encoding == "mono8" else shot.pixels
            return [shot.take(pixels=turned[encoding](), encoding=encoding, shown=seen)]
        if encoding.startswith("bayer"):
            plane = np.ascontiguousarray(shot.pixels[..., 0])
            return [shot.take(pixels=plane, encoding=encoding, shown=cv2.cvtColor(plane, cv2.COLOR_BayerRGGB2RGB))]
        pairs = np.ascontiguousarray(shot.pixels[..., :2])
        return [shot.take(pixels=pairs, encoding=encoding, shown=cv2.cvtColor(pairs, cv2.COLOR_YUV2RGB_YUY2))]

    return send


def test_encodings_change_in_mid_stream(rig):
    thermal = ["mono16", "16UC1", "rgb8", "32FC1", "8UC1", "bgr8"]
    rgb = ["bgr8", "mono8", "bayer_rggb8", "yuv422_yuy2", "rgba8", "bgra8"]
    for one, other in zip(thermal, rgb):
        rig.run(2)
        rig.run(3, thermal=thermal_as(one), rgb=rgb_as(other))

    def told():
        values = [rig.client.reports[-1][f"fusion: input {stream}"][2] for stream in ("thermal", "rgb")]
        return [row["encoding"] for row in values] == ["bgr8", "yuv422_yuy2"]

    rig.until(told, "the encodings in a report", thermal=thermal_as("bgr8"), rgb=rgb_as("yuv422_yuy2"))
    rig.finish()
    assert rig.node.output.count("palettised, their luma is taken") == 1
    rig.check_dropped()


def test_nan_and_infinity(rig):
    """Part of the thermal picture, and all of it, is missing; the fake pipeline sees zeros there."""

    def holes(value, area):
        def send(shot):
            pixels = shot.pixels.astype(np.float32)
            pixels[area] = value
            seen = np.where(np.isfinite(pixels), pixels, 0).astype(np.uint8)
            return [shot.take(pixels=pixels, encoding="32FC1", shown=seen)]

        return send

    rig.set(degraded_timeout_ms=300.0, degraded_identical_bytes=True)
    for value, area in ((np.nan, np.s_[10:70, 20:]), (np.inf, np.s_[5:]), (-np.inf, np.s_[:, 7]), (np.nan, np.s_[:])):
        rig.run(4, thermal=holes(value, area))
    report = rig.says("processing", "OK", "OK.*", thermal=holes(np.nan, np.s_[:]))
    assert rig.entry(report, "input thermal", "OK", "OK"), "a picture of nothing is no frozen picture"
    pictures = rig.finish()
    fractions = {round(picture.valid["thermal"], 4) for picture in pictures}
    assert {0.0, 1.0, round(1 - 60 * 140 / 19200, 4), round(5 / 120, 4), round(159 / 160, 4)} <= fractions
    assert not any("failed" in row for row in rig.dropped().values())


@pytest.mark.parametrize("value", [0, 255])
def test_constant_pictures_are_not_frozen_ones(rig, value):
    """A lens cap, or a wall of one temperature, for longer than the timeout."""
    flat = lambda shot: [shot.take(pixels=np.full_like(shot.pixels, value))]  # noqa: E731
    rig.set(degraded_timeout_ms=200.0, degraded_identical_bytes=True)
    rig.run(3)
    before = len(rig.pictures())
    rig.run(12, thermal=flat, rgb=flat)
    report = rig.says("processing", "OK", "OK.*", thermal=flat, rgb=flat)
    assert rig.entry(report, "input thermal", "OK", "OK") and rig.entry(report, "pairing", "OK", "OK")
    shown = [picture.mode for picture in rig.pictures()[before:]]
    assert shown.count("pair") > 8 and set(shown) == {"pair"}
    rig.finish()


def test_pairs_that_cannot_be_fused(rig):
    def thirteen(shot):
        pixels = shot.pixels.copy()
        pixels[0, 0] = 13
        return [shot.take(pixels=pixels, shown=None)]

    rig.says("processing", "ERROR", r"\d+ pairs could not be fused: RuntimeError: thirteen", thermal=thirteen)
    rig.recover()
    modes = [picture.mode for picture in rig.finish()]
    assert rig.dropped()["thermal"]["failed"] == modes.count("rgb_only") > 0, "the reference camera is shown alone"
