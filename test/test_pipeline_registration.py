"""A registration in the pipeline: against pictures that were warped beforehand, with cameras missing, wrong sizes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from isfl_ros.backends.frame import FusedFrame
from isfl_ros.errors import InputError
from isfl_ros.images import GainControl, GainControlConfig, normalise, to_uint8
from isfl_ros.pipeline import FusionPipeline, PipelineConfig
from isfl_ros.registration import (
    CalibratedPlane,
    Calibration,
    Grid,
    Homography,
    Registration,
    SizeMismatch,
    Transform,
    write_homography,
)

THERMAL, RGB = (41, 53), (61, 75)  # (H, W)
SIZES = "from_size: [53, 41]\nto_size: [75, 61]\n"  # of a file: thermal and rgb, (width, height)
OTHER = {"rgb": "thermal", "thermal": "rgb"}
TILTED = np.array([[0.95, 0.05, 4.0], [-0.04, 0.9, 3.0], [3e-4, -2e-4, 1.0]])  # in units of the other camera's picture


@pytest.fixture(scope="module")
def _loaded():
    return FusionPipeline(PipelineConfig(device="cpu", implementation="folded"))


@pytest.fixture
def pipeline(_loaded):
    yield _loaded
    _loaded.set_registration(None)
    _loaded.set_gain(GainControlConfig())


def homography(reference="rgb", shapes=None, matrix=TILTED):
    shapes = shapes or {"thermal": THERMAL, "rgb": RGB}
    (h, w), (to_h, to_w) = shapes[OTHER[reference]], shapes[reference]
    return Homography(matrix=np.diag([to_w / w, to_h / h, 1.0]) @ matrix, from_size=(w, h), to_size=(to_w, to_h))


def thermal(dtype=np.uint8, shape=THERMAL, seed=0):
    top = {np.uint8: 256, np.uint16: 30000, np.float32: 400.0}[dtype]
    return np.random.default_rng(seed).uniform(0, top, shape).astype(dtype)


def rgb(shape=RGB, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def mask(shape, seed=2):
    return np.random.default_rng(seed).random(shape) > 0.05


def assert_same(got, wanted, *names):
    for name in names or ("luma", "rgb", "gate", "thermal8", "visible8", "valid", "valid_fraction"):
        a, b = getattr(got, name), getattr(wanted, name)
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            assert a == b, name


# What comes out


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_thermal_is_warped_after_gain_control(pipeline, dtype, masked):
    """As fusing what was normalised and warped beforehand; limits come from what the reference sees of the picture."""
    raw, visible = thermal(dtype), rgb()
    if dtype == np.float32:
        raw[20:23, 9] = np.nan
    given = mask(THERMAL) if masked else None
    registration = Registration(homography())
    pipeline.set_registration(registration)
    got = pipeline.fuse(raw, visible, thermal_valid=given, gate=True)

    used = registration.grid(THERMAL, RGB).used
    assert 0.5 < used.mean() < 0.99
    black, white, valid = GainControl(GainControlConfig()).limits(raw, valid=given, counted=used)
    picture = normalise(raw, black, white, valid=valid)
    warped, covered = registration.warp(picture, valid=valid)
    assert 0.4 < covered.mean() < 0.95
    pipeline.set_registration(None)
    pipeline.set_gain(GainControlConfig(mode="fixed", low=0.0, high=1.0))
    wanted = pipeline.fuse(warped, visible, thermal_valid=covered, gate=True)
    assert_same(got, wanted)
    assert got.luma.shape == RGB and got.valid is None
    assert got.valid_fraction == {"thermal": covered.mean(), "rgb": 1.0}
    np.testing.assert_array_equal(got.thermal8, to_uint8(warped))


@pytest.mark.parametrize("missing", [None, "rgb"])
@pytest.mark.parametrize("outside", [0, 60000], ids=["sky", "exhaust"])
def test_what_the_reference_does_not_see_takes_no_contrast(pipeline, outside, missing):
    """A person between hot or cold things beside the reference frame is as bright as without them."""
    shape = (64, 80)
    scene = np.random.default_rng(0).normal(7300, 6, shape)
    scene[24:40, 38:43] += 250
    there = scene.copy()
    there[:, :12], there[:12] = outside, outside
    middle = np.array([[2.0, 0, -40.0], [0, 2.0, -32.0], [0, 0, 1]])  # the reference sees the inner half
    pipeline.set_registration(Registration(Homography(matrix=middle, from_size=(80, 64), to_size=(80, 64))))
    visible = None if missing else rgb(shape) // 8
    wanted, got = (pipeline.fuse(raw.astype(np.uint16), visible) for raw in (scene, there))
    assert (got.frame.black, got.frame.white) == (wanted.frame.black, wanted.frame.white)
    assert_same(got, wanted, "luma", "rgb", "thermal8")
    people = np.zeros(shape, bool)
    people[18:46, 38:44] = True
    assert got.thermal8[people].mean() - got.thermal8[~people].mean() > 150


def test_limits_count_all_of_a_thermal_picture_that_is_not_warped(pipeline):
    raw = thermal(np.uint16)
    raw[0, :30] = 60000
    pipeline.set_registration(Registration(homography("thermal")), reference="thermal")
    frame = pipeline.fuse(raw, rgb()).frame
    assert (frame.black, frame.white, None) == GainControl(GainControlConfig()).limits(raw)


def test_sentinels_of_float_pictures_are_missing_pixels(pipeline):
    """The largest float and its negative, of drivers that have no NaN."""
    raw, largest = thermal(np.float32, RGB), np.finfo(np.float32).max
    raw[:6], raw[10:14, 7:30] = largest, -largest
    as_nan = np.where(abs(raw) < 1e30, raw, np.float32(np.nan))
    got, wanted = (pipeline.fuse(picture, rgb(), gate=True) for picture in (raw, as_nan))
    assert_same(got, wanted)
    assert got.valid_fraction["thermal"] == np.isfinite(as_nan).mean() and got.luma.std() > 10


@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_rgb_is_warped_into_the_thermal_frame(pipeline, masked, grey):
    raw, visible = thermal(np.uint16), rgb()
    if grey:
        visible = visible[:, :, 1].copy()
    given = mask(RGB) if masked else None
    registration = Registration(homography("thermal"))
    pipeline.set_registration(registration, reference="thermal")
    got = pipeline.fuse(raw, visible, rgb_valid=given, gate=True)

    assert registration.grid(RGB, THERMAL).shrink == 2
    warped, covered = registration.warp(visible, valid=given)
    assert 0.3 < covered.mean() < 0.95
    pipeline.set_registration(None)
    wanted = pipeline.fuse(raw, warped, rgb_valid=covered, gate=True)
    assert_same(got, wanted)
    assert got.luma.shape == THERMAL and got.valid_fraction == {"thermal": 1.0, "rgb": covered.mean()}
    outside = got.rgb[~covered]
    assert (outside == got.luma[~covered][:, None]).all() and outside.std() > 0, "grey, of thermal alone"


def test_neither_is_valid_where_the_reference_is_masked_outside_the_warp(pipeline):
    registration = Registration(homography())
    pipeline.set_registration(registration)
    covered = registration.grid(THERMAL, RGB).valid
    t_valid, v_valid = np.ones(THERMAL, bool), mask(RGB)
    t_valid[30:, :20], v_valid[:, 60:], v_valid[40:] = False, False, False
    got = pipeline.fuse(thermal(), rgb(), thermal_valid=t_valid, rgb_valid=v_valid)
    seen = registration.grid(THERMAL, RGB).warp(thermal(), valid=t_valid)[1]
    assert seen.sum() < covered.sum() and not (seen | v_valid).all()
    np.testing.assert_array_equal(got.valid, seen | v_valid)
    assert (got.luma[~got.valid] == 0).all() and (got.rgb[~got.valid] == 0).all()
    assert got.valid_fraction == {"thermal": seen.mean(), "rgb": v_valid.mean()}


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_identity_changes_no_byte(pipeline, dtype, masked, reference):
    raw, visible = thermal(dtype), rgb(THERMAL)
    if dtype == np.float32:
        raw[3:9, 5] = np.nan
    masks = {"thermal_valid": mask(THERMAL), "rgb_valid": mask(THERMAL, 3)} if masked else {}
    wanted = pipeline.fuse(raw, visible, gate=True, **masks)
    shapes = {"thermal": THERMAL, "rgb": THERMAL}
    pipeline.set_registration(Registration(homography(reference, shapes, np.eye(3))), reference=reference)
    got = pipeline.fuse(raw, visible, gate=True, **masks)
    assert got.frame.grid is not None
    assert_same(got, wanted, "luma", "rgb", "gate", "thermal8", "valid", "valid_fraction")
    if not masked or reference == "rgb":
        assert_same(got, wanted, "visible8")


def test_mode_none_is_no_registration(pipeline):
    wanted = pipeline.fuse(thermal(), rgb(THERMAL), gate=True)
    pipeline.set_registration(Registration(), reference="thermal")
    assert_same(pipeline.fuse(thermal(), rgb(THERMAL), gate=True), wanted)
    with pytest.raises(SizeMismatch, match="sizes differ.*thermal 53x41, rgb 75x61"):
        pipeline.fuse(thermal(), rgb())


def test_pictures_of_the_caller_are_left_alone(pipeline):
    for reference in OTHER:
        given = [thermal(np.float32), rgb(), mask(THERMAL), mask(RGB)]
        kept = [array.copy() for array in given]
        pipeline.set_registration(Registration(homography(reference)), reference=reference)
        result = pipeline.fuse(given[0], given[1], thermal_valid=given[2], rgb_valid=given[3], gate=True)
        assert result.thermal8.shape == result.visible8.shape[:2] == result.luma.shape
        for array, copy in zip(given, kept):
            np.testing.assert_array_equal(array, copy)


def test_calibrated_cameras(pipeline):
    def camera(shape, focal):
        (h, w) = shape
        matrix = [focal, 0, (w - 1) / 2, 0, focal, (h - 1) / 2, 0, 0, 1]
        return Calibration(size=(w, h), matrix=matrix, distortion=(-0.1, 0.02), name="camera")

    plane = CalibratedPlane(
        reference=camera(RGB, 60.0),
        other=camera(THERMAL, 50.0),
        transform=Transform(rotation=np.eye(3), translation=[0.1, 0.0, 0.0]),
        plane_depth_m=8.0,
    )
    registration = Registration(plane)
    pipeline.set_registration(registration)
    got = pipeline.fuse(thermal(), rgb())
    assert got.luma.shape == RGB and got.valid_fraction["thermal"] == registration.overlap
    warped, _ = registration.warp(thermal())
    assert np.abs(got.thermal8.astype(int) - warped).max() <= 1 and got.thermal8.std() > 0


# One camera missing


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
@pytest.mark.parametrize("missing", ["rgb", "thermal"])
def test_one_modality_is_fused_as_the_pair_with_nothing_valid_of_the_other(pipeline, reference, missing):
    pictures = {"thermal": thermal(np.uint16), "rgb": rgb()}
    nothing = {"thermal": np.zeros(THERMAL, bool), "rgb": np.zeros(RGB, bool)}[missing]
    pipeline.set_registration(Registration(homography(reference)), reference=reference)
    alone = pipeline.fuse(**{**pictures, missing: None}, gate=True)
    as_mask = pipeline.fuse(**pictures, **{f"{missing}_valid": nothing}, gate=True)
    assert_same(alone, as_mask, "luma", "rgb", "gate", "valid_fraction")
    assert alone.luma.shape == {"thermal": THERMAL, "rgb": RGB}[reference]
    assert alone.luma.std() > 0 and alone.valid_fraction[missing] == 0.0
    seen = Registration(homography(reference)).grid(*_from_to(reference)).valid
    if missing == reference:
        np.testing.assert_array_equal(alone.valid, seen)
        assert (alone.luma[~seen] == 0).all() and alone.valid_fraction[OTHER[missing]] == seen.mean()
    else:
        assert alone.valid is None and alone.valid_fraction[OTHER[missing]] == 1.0
    assert not {"thermal": alone.thermal8, "rgb": alone.visible8}[missing].any()


def _from_to(reference):
    shapes = {"thermal": THERMAL, "rgb": RGB}
    return shapes[OTHER[reference]], shapes[reference]


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
def test_the_size_without_the_reference(pipeline, reference):
    """The calibrated one, then that of the last reference picture, alone or in a pair; set anew, all is forgotten."""
    sizes = {"thermal": THERMAL, "rgb": RGB}
    other, own = sizes[OTHER[reference]], sizes[reference]
    twice, half = tuple(2 * side for side in own), tuple(side // 2 * 2 for side in other)

    def fuse(reference_shape, other_shape):
        shapes = {reference: reference_shape, OTHER[reference]: other_shape}
        pictures = {
            "thermal": None if shapes["thermal"] is None else thermal(shape=shapes["thermal"]),
            "rgb": None if shapes["rgb"] is None else rgb(shapes["rgb"]),
        }
        return pipeline.fuse(**pictures).luma.shape

    registration = Registration(homography(reference))
    pipeline.set_registration(registration, reference=reference)
    assert fuse(None, other) == own
    assert fuse(twice, None) == twice
    assert fuse(None, other) == twice
    assert fuse(own, other) == own
    assert fuse(None, other) == own
    assert fuse(twice, half) == twice and fuse(None, other) == twice
    pipeline.set_registration(registration, reference=reference)
    assert fuse(None, other) == own


def test_the_reference_alone_needs_no_registration_that_fits(pipeline):
    pipeline.set_registration(Registration(homography()))
    odd = rgb((64, 64))
    wanted_size = pipeline.fuse(None, odd).luma.shape
    assert wanted_size == (64, 64)
    with pytest.raises(SizeMismatch, match="thermal 53x41 into rgb 64x64: homography: to_size does not fit"):
        pipeline.fuse(thermal(), odd)
    assert pipeline.fuse(thermal(), None).luma.shape == RGB, "a size that does not fit is not one to go on with"


# Wrong sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thermal": thermal(shape=(41, 60))}, "thermal 60x41 into rgb 75x61: homography: from_size.*53x41.*60x41"),
        ({"rgb": rgb((70, 75))}, "thermal 53x41 into rgb 75x70: homography: to_size.*expected 75x61.*75x70"),
        ({"thermal": thermal(shape=RGB), "rgb": rgb(THERMAL)}, "cameras have changed roles.*other value of reference"),
        ({"thermal_valid": mask(RGB)}, "sizes differ.*mask.*thermal 53x41, thermal_valid 75x61"),
        ({"rgb_valid": mask(THERMAL)}, "sizes differ.*mask.*rgb 75x61, rgb_valid 53x41"),
        ({"thermal": thermal(shape=(41, 60)), "rgb": None}, "thermal 60x41 into rgb 75x61: homography: from_size"),
        ({"thermal": np.zeros((21, 27), np.uint8), "rgb": rgb((31, 38))}, "picture too small.*38x31"),
        ({"thermal": None, "rgb": None}, "both modalities are missing"),
        ({"thermal": np.zeros(THERMAL, np.int32)}, "thermal of unsupported kind"),
    ],
)
def test_a_refused_pair_leaves_nothing_behind(pipeline, arguments, message):
    """Neither sizes nor gain control: what follows is as if it had never come."""
    pipeline.set_gain(GainControlConfig(mode="percentile_smoothed", time_constant_s=1.0))
    registration = Registration(homography())
    good = {"thermal": thermal(np.uint16), "rgb": rgb()}

    def run(bad):
        pipeline.set_gain(GainControlConfig(mode="percentile_smoothed", time_constant_s=1.0))
        pipeline.set_registration(registration)
        pipeline.fuse(**good, stamp_s=1.0)
        if bad:
            with pytest.raises(InputError, match=message) as refused:
                pipeline.fuse(**{**good, **arguments}, stamp_s=1.5)
            assert "\n" not in str(refused.value)
        alone = pipeline.fuse(good["thermal"] // 2, None, stamp_s=2.0)
        return alone, pipeline.fuse(**good, stamp_s=2.5)

    for got, wanted in zip(run(True), run(False)):
        assert_same(got, wanted)
        assert (got.frame.black, got.frame.white) == (wanted.frame.black, wanted.frame.white)


def test_a_small_thermal_picture_is_no_small_result(pipeline):
    """A 32x24 array, as cheap sensors have, in a larger reference picture."""
    shapes = {"thermal": (24, 32), "rgb": (96, 128)}
    pipeline.set_registration(Registration(homography("rgb", shapes)))
    assert pipeline.fuse(thermal(shape=(24, 32)), rgb((96, 128))).luma.shape == (96, 128)


def test_an_unknown_reference_is_refused_and_the_old_one_stays(pipeline):
    pipeline.set_registration(Registration(homography("thermal")), reference="thermal")
    with pytest.raises(InputError, match="unknown reference.*rgb, thermal.*'infrared'"):
        pipeline.set_registration(Registration(homography()), reference="infrared")
    assert pipeline.fuse(thermal(), rgb()).luma.shape == THERMAL


# What it costs


@pytest.fixture
def warps(monkeypatch):
    """Counts calls of OpenCV's warp."""
    calls = []
    remap = Grid._remap
    monkeypatch.setattr(Grid, "_remap", lambda grid, picture: (calls.append(picture.dtype), remap(grid, picture))[1])
    return calls


class Device:
    """A backend that does not touch the host's pictures, as CUDA's does not."""

    trouble = None

    def fuse(self, frame, *, gate):
        blank = np.zeros(frame.size, np.uint8)
        rgb = np.zeros((*frame.size, 3), np.uint8)
        stages = dict.fromkeys(("preprocess", "network", "postprocess"), 0.0)
        return FusedFrame(luma=blank, rgb=rgb, gate=None, stages_ms=stages, device="cuda")


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
def test_the_host_warps_once_and_a_device_nothing_until_asked(pipeline, warps, monkeypatch, reference):
    pipeline.set_registration(Registration(homography(reference)), reference=reference)
    result = pipeline.fuse(thermal(), rgb(), gate=True)
    assert len(warps) == 1
    assert result.valid_fraction[OTHER[reference]] == Registration(homography(reference)).overlap
    result.thermal8, result.visible8
    assert len(warps) == 1, "what the network saw is kept"
    warps.clear()
    on_host = result
    monkeypatch.setattr(pipeline, "_backend", Device())
    result = pipeline.fuse(thermal(), rgb())
    assert warps == [] and result.valid is None and result.valid_fraction == on_host.valid_fraction
    assert_same(result, on_host, "thermal8", "visible8")
    assert len(warps) == 1
    warps.clear()
    given = {"thermal_valid": mask(THERMAL)} if reference == "rgb" else {"rgb_valid": mask(RGB)}
    result = pipeline.fuse(thermal(), rgb(), **given)
    assert len(warps) == 1, "the mask alone"


def test_warm_up_makes_the_map_and_no_size_to_remember(pipeline):
    for sizes in ({}, {"other": THERMAL}):
        registration = Registration(homography())
        pipeline.set_registration(registration)
        twice = (2 * RGB[0], 2 * RGB[1])
        pipeline.warm_up(*twice, **sizes)
        made = registration._grids.cache_info().misses
        assert pipeline.fuse(thermal(), rgb(twice)).luma.shape == twice
        assert registration._grids.cache_info().misses == made
        pipeline.set_registration(registration)
        pipeline.warm_up(*twice, **sizes)
        assert pipeline.fuse(thermal(), None).luma.shape == RGB, "blank pictures came from no camera"
    pipeline.warm_up(*twice, other=(2 * THERMAL[0], 2 * THERMAL[1]))
    with pytest.raises(InputError, match="from_size does not fit"):
        pipeline.warm_up(*RGB, other=(41, 60))
    assert pipeline.measure(*RGB, frames=1) > 0


# The command line does the same


@pytest.mark.parametrize("reference", ["rgb", "thermal"])
def test_fuse_from_a_file(pipeline, tmp_path, capsys, reference):
    from isfl_ros.cli.main import main
    from isfl_ros.io.folders import read_rgb, write_png

    write_png(tmp_path / "ir" / "a.png", raw := thermal(np.uint16))
    write_png(tmp_path / "vi" / "a.png", visible := rgb())
    write_homography(tmp_path / "h.yaml", homography(reference))
    command = ["fuse", "--thermal", str(tmp_path / "ir"), "--rgb", str(tmp_path / "vi"), "--device", "cpu"]
    command += ["--implementation", "folded", "--out", str(tmp_path / "out"), "--homography", str(tmp_path / "h.yaml")]
    assert main(command + (["--reference", reference] if reference != "rgb" else [])) == 0
    assert f"{OTHER[reference]} warped into {reference}" in capsys.readouterr().out
    pipeline.set_registration(Registration(homography(reference)), reference=reference)
    np.testing.assert_array_equal(read_rgb(tmp_path / "out" / "a.png"), pipeline.fuse(raw, visible).rgb)


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (None, (), "h.yaml cannot be read"),
        ("matrix: [1, 2]\n", (), "h.yaml: wrong keys.*no from_size, to_size"),
        (f"matrix: [1, 0, 900, 0, 1, 0, 0, 0, 1]\n{SIZES}", (), "h.yaml: homography: nothing of"),
        ("good", ("--reference", "thermal"), "a.png: .*changed roles"),
    ],
)
def test_fuse_refuses_a_bad_file_in_one_line(tmp_path, capsys, text, more, message):
    import re

    from isfl_ros.cli.main import main
    from isfl_ros.io.folders import write_png

    write_png(tmp_path / "ir" / "a.png", thermal())
    write_png(tmp_path / "vi" / "a.png", rgb())
    if text == "good":
        write_homography(tmp_path / "h.yaml", homography())
    elif text is not None:
        (tmp_path / "h.yaml").write_text(text)
    command = ["fuse", "--thermal", str(tmp_path / "ir"), "--rgb", str(tmp_path / "vi"), "--out", str(tmp_path / "out")]
    assert main([*command, "--homography", str(tmp_path / "h.yaml"), *more]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"^isfl fuse: error: .*{message}", lines[-1]), lines
    assert not (tmp_path / "out").exists()


def test_reference_without_a_homography_is_refused(tmp_path, capsys):
    from isfl_ros.cli.main import main

    command = ["fuse", "--thermal", str(tmp_path), "--rgb", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, "--reference", "rgb"]) == 2
    assert "--reference without --homography" in capsys.readouterr().err


def test_a_frame_can_be_replaced_in_part(pipeline):
    """What is made when first asked for belongs to one frame."""
    pipeline.set_registration(Registration(homography()))
    frame = pipeline.fuse(thermal(), rgb()).frame
    assert frame.infrared.any()
    assert not dataclasses.replace(frame, thermal=np.zeros(THERMAL, np.uint8)).infrared.any()
