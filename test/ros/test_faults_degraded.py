"""Cameras that stop, freeze, never start and come back: the rows of the fault table about them, in every mode.

One node for each choice of the reference camera lives through all rows. As in test_faults.py, each row ends in
`Rig.finish`.
"""

from __future__ import annotations

import signal

import pytest

pytestmark = pytest.mark.dds

OTHER = {"thermal": "rgb", "rgb": "thermal"}

FAULTS = {
    ("thermal", "silent"): r"thermal camera is missing: no new picture for \d+ ms(; no message on /thermal/.*)?",
    ("rgb", "silent"): r"rgb camera is missing: no new picture for \d+ ms(; no message on /rgb/.*)?",
    ("thermal", "old stamp"): r"thermal camera is frozen: its stamps have not advanced for \d+ ms",
    ("rgb", "old stamp"): r"rgb camera is frozen: its stamps have not advanced for \d+ ms",
    ("thermal", "old picture"): r"thermal camera is frozen: it has repeated .* for \d+ ms \(.*\)",
}
"""(stream, what it does) -> what the diagnostics say."""

CONSEQUENCES = {
    "single": ("WARN", "{other} is fused alone"),
    "hold": ("WARN", r"the last fused picture is repeated with its old stamp \(degraded.mode hold\)"),
    "stop": ("ERROR", r"nothing is published \(degraded.mode stop\)"),
}

DROPPED = {"silent": set(), "old stamp": {"duplicate_stamp"}, "old picture": {"frozen"}}
"""Why messages of the camera with the fault are dropped, besides those that had no partner any more."""


@pytest.fixture
def make_ready(shared_rig):
    """Gives the rig with this reference camera, whose node gives a camera up after 200 ms."""

    def make(reference):
        rig = shared_rig(reference)
        rig.set(degraded_timeout_ms=200.0, degraded_identical_bytes=True)
        rig.run(6)
        return rig

    return make


@pytest.fixture
def rig(make_ready):
    return make_ready("rgb")


def mode_of(stream, mode):
    """What the status says while `stream` is dead; None where nothing is published."""
    return {"single": f"{OTHER[stream]}_only", "hold": "held", "stop": None}[mode]


def check_given_up(rig, stream, what, mode):
    """Let a camera have its fault, until the diagnostics say what they should; then look at what is published."""
    fault = {stream: what}
    report = rig.says(f"input {stream}", "ERROR", FAULTS[stream, what], **fault)
    level, said = CONSEQUENCES[mode]
    assert rig.entry(report, "pairing", level, said.format(other=OTHER[stream])), report["fusion: pairing"]
    assert rig.entry(report, f"input {OTHER[stream]}", "OK", "OK")
    assert rig.entry(report, "processing", "OK", "OK.*")
    assert report[f"fusion: input {stream}"][2]["stream_state"] == ("missing" if what == "silent" else "frozen")
    assert report["fusion: pairing"][2]["mode"] == (mode_of(stream, mode) or "none")
    rig.run(1, **fault)
    before = len(rig.pictures())
    rig.run(10, **fault)
    shown = [picture.mode for picture in rig.pictures()[before:]]
    if mode == "stop":
        assert shown == []
    else:
        assert set(shown) == {mode_of(stream, mode)} and len(shown) > 5


def _rows():
    quick = {
        *(("rgb", stream, what, "single") for stream, what in FAULTS),
        *(("thermal", stream, "silent", "single") for stream in OTHER),
        ("rgb", "rgb", "silent", "hold"),
        ("thermal", "thermal", "silent", "hold"),
        ("rgb", "thermal", "old stamp", "stop"),
        ("thermal", "rgb", "silent", "stop"),
    }
    for mode in CONSEQUENCES:
        for reference in OTHER:
            for row in ((reference, stream, what, mode) for stream, what in FAULTS):
                name = f"{row[1]} {row[2]}, {mode}, reference {reference}"
                yield pytest.param(*row, id=name, marks=() if row in quick else pytest.mark.slow)


@pytest.mark.parametrize(("reference", "stream", "what", "mode"), _rows())
def test_a_camera_is_given_up_and_comes_back(make_ready, reference, stream, what, mode):
    rig = make_ready(reference)
    rig.set(degraded_mode=mode)
    log = len(rig.node.output)
    check_given_up(rig, stream, what, mode)
    before = len(rig.pictures())
    rig.recover()
    rig.run(5)
    assert "pair" in [picture.mode for picture in rig.pictures()[before:]][:3], "it returns with its first messages"
    rig.finish()
    dropped = rig.dropped()
    others = {"single": set(), "hold": {"held"}, "stop": {"degraded_stop"}}[mode]
    assert DROPPED[what] <= set(dropped[stream]) <= DROPPED[what] | {"unmatched", "superseded", *others}
    assert others <= set(dropped[OTHER[stream]]) <= others | {"unmatched", "superseded", "outdated"}
    said = rig.node.output[log:]
    assert 1 <= said.count(f"{stream} camera is {'missing' if what == 'silent' else 'frozen'}") <= 2, said
    assert 1 <= said.count(f"{stream} camera is back after") <= 2, said


@pytest.mark.parametrize("what", ["old stamp", "old picture"])
def test_the_shutter_of_the_thermal_camera_closes_for_two_seconds(rig, what):
    """With the timeout that users have: half a second of pairs with the last picture, then RGB alone."""
    rig.set(degraded_timeout_ms=500.0)
    rig.run(10)
    rig.run(40, thermal=what)
    rig.recover()
    modes = [picture.mode for picture in rig.finish()]
    assert modes.count("rgb_only") > 15
    assert modes[-1] == "pair"
    # repeated pictures are pairs until they are no longer believed; repeated stamps have no partner from the beginning
    changes = [mode for mode, previous in zip(modes, [None, *modes]) if mode != previous]
    assert changes == ["pair", "rgb_only", "pair"], modes


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
def test_a_single_picture_is_stamped_on_the_clock_of_the_reference_camera(make_ready, reference):
    rig = make_ready(reference)
    rig.set(sync_thermal_offset_ms=730.0)
    rig.ahead_ns = -730_000_000
    rig.recover()
    dead = rig.reference
    before = len(rig.pictures())
    rig.run(16, **{dead: "silent"})
    single = [picture for picture in rig.pictures()[before:] if picture.mode != "pair"]
    assert len(single) > 3 and {picture.mode for picture in single} == {f"{OTHER[dead]}_only"}
    own = {stamp for stamp, (tick, _) in rig._originals[OTHER[dead]].items()}
    assert {picture.stamp for picture in single} <= own
    rig.finish()


def test_both_stop(rig):
    silent = {"thermal": "silent", "rgb": "silent"}
    rig.says("pairing", "ERROR", "nothing is published, neither camera brings new pictures", **silent)
    for stream in OTHER:
        rig.says(f"input {stream}", "ERROR", rf"{FAULTS[stream, 'silent']}", **silent)
    before = len(rig.pictures())
    rig.run(5, **silent)
    assert len(rig.pictures()) == before
    rig.recover()
    rig.finish()


@pytest.mark.parametrize(
    ("first", "mode"),
    [
        ("thermal", "single"),
        pytest.param("rgb", "single", marks=pytest.mark.slow),
        pytest.param("thermal", "hold", marks=pytest.mark.slow),
        pytest.param("rgb", "hold", marks=pytest.mark.slow),
    ],
)
def test_a_bag_loops_after_a_pause(rig, first, mode):
    """Both cameras fall silent, and come back together at stamps from before: pairs at once, and nothing else."""
    rig.set(degraded_mode=mode)
    rig.order = first, OTHER[first]
    rig.run(5)
    for _ in range(2):
        rig.run(9, thermal="silent", rgb="silent")
        rig.jump(-60.0)
        rig.run(8)
    pictures = list(rig.pictures())
    rig.recover()
    rig.finish()
    assert {picture.mode for picture in pictures} == {"pair"}
    assert len(pictures) > 15
    # paused for longer than the timeout, without a jump
    assert rig.node.output.count("neither camera brings new pictures") >= 2


def test_one_of_two_that_stopped_comes_back_alone(rig):
    rig.run(9, thermal="silent", rgb="silent")
    before = len(rig.pictures())
    rig.run(12, thermal="silent")
    shown = [picture.mode for picture in rig.pictures()[before:]]
    assert set(shown) == {"rgb_only"} and len(shown) > 4
    rig.recover()
    rig.finish()


def test_what_waited_for_a_camera_that_died_is_shown_at_once(rig):
    """The newest of it, without another message: it may be the last for a long time."""
    rig.set(degraded_timeout_ms=600.0)
    rig.run(5)
    rig.run(8, thermal="silent")
    pairs = list(rig.pictures())
    rig.run(10, thermal="silent", rgb="silent")
    (picture,) = rig.pictures()[len(pairs) :]
    assert (picture.mode, picture.tick) == ("rgb_only", pairs[-1].tick + 8)
    rig.recover()
    rig.finish()
    assert rig.dropped()["rgb"]["unmatched"] == 7


def test_the_mode_changes_while_a_camera_is_dead(rig):
    for mode in ("hold", "stop", "single"):
        rig.set(degraded_mode=mode)
        check_given_up(rig, "thermal", "silent", mode)
    rig.recover()
    rig.finish()


def test_a_longer_timeout_rides_out_a_gap(rig):
    rig.set(degraded_timeout_ms=5000.0)
    rig.run(3)
    rig.run(10, thermal="silent")
    assert {picture.mode for picture in rig.pictures()} == {"pair"}
    rig.recover()
    rig.finish()
    assert set(rig.dropped()["rgb"]) == {"unmatched"}


def test_repeated_pictures_are_pairs_by_option(rig):
    rig.set(degraded_identical_bytes=False)
    before = len(rig.pictures())
    rig.run(20, thermal="old picture")
    modes = [picture.mode for picture in rig.pictures()[before:]]
    assert set(modes) == {"pair"} and len(modes) > 15
    rig.finish()


def test_stamps_that_are_never_set(rig):
    """A driver that leaves every stamp at zero."""
    zero = lambda shot: [shot.take(stamp=0, shown=None)]  # noqa: E731
    rig.says("input thermal", "ERROR", FAULTS["thermal", "old stamp"], thermal=zero)
    rig.recover()
    rig.finish()


@pytest.mark.parametrize("stream", ["thermal", "rgb"])
def test_a_camera_never_starts(make_ready, stream):
    """It is the reference camera, and has never said what its frame is called: then it is that of the other."""
    rig = make_ready(stream)
    assert rig.client.transition("deactivate")
    assert rig.client.transition("activate")
    rig.frame_ids.add(f"{OTHER[stream]}_optical")
    rig.client.wait(lambda: all(rig.subscribers(name) for name in OTHER), "subscriptions of the node")
    said = rf"{stream} camera is missing: no picture in the \d+ ms since activation; no message on /{stream}/.*"
    rig.says(f"input {stream}", "ERROR", said, **{stream: "silent"})
    before = len(rig.pictures())
    rig.run(6, **{stream: "silent"})
    shown = rig.pictures()[before:]
    assert {picture.mode for picture in shown} == {f"{OTHER[stream]}_only"}
    assert {picture.frame_id for picture in shown} == {f"{OTHER[stream]}_optical"}
    rig.recover()
    assert rig.finish()[-1].frame_id == f"{stream}_optical"


def test_ended_under_load(make_ready):
    """SIGTERM here, SIGINT in test_faults_graph.py. A next row would have a node of its own."""
    make_ready("thermal").end_under_load(signal.SIGTERM)
