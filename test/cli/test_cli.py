"""Verbs from the command line: results, one-line errors, exit status 2, nothing half-written."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isfl_ros.cli.main import main
from isfl_ros.io.folders import read_rgb, read_thermal, write_png
from isfl_ros.pipeline import FusionPipeline, PipelineConfig

RNG = np.random.default_rng(0)


@pytest.fixture()
def pairs(tmp_path):
    write_png(tmp_path / "ir" / "a.png", RNG.integers(0, 256, (40, 51)).astype(np.uint8))
    write_png(tmp_path / "ir" / "b.png", RNG.integers(9000, 12000, (64, 48)).astype(np.uint16))
    write_png(tmp_path / "vi" / "a.png", RNG.integers(0, 256, (40, 51, 3)).astype(np.uint8))
    write_png(tmp_path / "vi" / "b.png", RNG.integers(0, 256, (64, 48, 3)).astype(np.uint8))
    return tmp_path


def fuse(pairs, *more):
    return main(["fuse", "--thermal", str(pairs / "ir"), "--rgb", str(pairs / "vi"), "--out", str(pairs / "out"), "--device", "cpu", *more])


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    return next(line for line in reversed(lines) if "error:" in line)


def test_fuse_writes_what_the_pipeline_makes(pairs):
    assert fuse(pairs, "--gates") == 0
    assert sorted(p.name for p in (pairs / "out").iterdir()) == ["a.png", "a_gate.png", "b.png", "b_gate.png"]
    pipeline = FusionPipeline(PipelineConfig(device="cpu"))
    for stem in "ab":
        result = pipeline.fuse(read_thermal(pairs / "ir" / f"{stem}.png"), read_rgb(pairs / "vi" / f"{stem}.png"), gate=True)
        np.testing.assert_array_equal(read_rgb(pairs / "out" / f"{stem}.png"), result.rgb)
        gate = cv2.imread(str(pairs / "out" / f"{stem}_gate.png"), cv2.IMREAD_UNCHANGED)
        assert gate.ndim == 2 and np.abs(gate - result.gate * 255).max() <= 0.51


def test_fuse_luma_is_one_channel(pairs):
    assert fuse(pairs, "--luma") == 0
    assert cv2.imread(str(pairs / "out" / "a.png"), cv2.IMREAD_UNCHANGED).shape == (40, 51)


def test_fuse_keeps_resumes_and_overwrites(pairs, capsys):
    assert fuse(pairs) == 0
    (pairs / "out" / "b.png").unlink()
    (pairs / "out" / "a.png").write_bytes(b"mine")
    assert fuse(pairs) == 2 and "exists" in error_line(capsys)
    assert fuse(pairs, "--resume") == 0
    assert (pairs / "out" / "a.png").read_bytes() == b"mine" and (pairs / "out" / "b.png").exists()
    assert fuse(pairs, "--overwrite") == 0
    assert (pairs / "out" / "a.png").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (lambda d: (d / "vi" / "b.png").write_bytes(b"x"), (), "b.png is no readable picture"),
        (lambda d: write_png(d / "vi" / "b.png", np.zeros((64, 50, 3), np.uint8)), (), "differ in size.*48x64 and 50x64.*register"),
        (lambda d: [write_png(d / m / "b.png", np.zeros((64, 20, 3) if m == "vi" else (64, 20), np.uint8)) for m in ("ir", "vi")], (), "b.png: picture too small"),
        (lambda d: (d / "ir").rename(d / "gone"), (), "ir is not a folder"),
        (lambda d: None, ("--model", "nope"), "no model 'nope'"),
        (lambda d: None, ("--threads", "-1"), "threads out of range"),
        (lambda d: None, ("--agc-mode", "fixed", "--agc-low", "9", "--agc-high", "1"), "agc range empty"),
        (lambda d: None, ("--resume", "--overwrite"), "contradict"),
    ],
)
def test_fuse_refuses_bad_input_in_one_line(pairs, capsys, spoil, more, message):
    import re

    spoil(pairs)
    assert fuse(pairs, *more) == 2
    line = error_line(capsys)
    assert line.startswith("isfl fuse: error:") and re.search(message, line)
    assert not (pairs / "out").exists(), "nothing half-written"


def test_colliding_output_names_are_refused(pairs, capsys):
    for folder in ("ir", "vi"):
        (pairs / folder / "b.png").rename(pairs / folder / "a_gate.png")
    assert fuse(pairs, "--gates") == 2 and "both write" in error_line(capsys)
    assert fuse(pairs) == 0


def test_an_input_folder_is_never_written_into(pairs, capsys):
    before = (pairs / "vi" / "a.png").read_bytes()
    command = ["fuse", "--thermal", str(pairs / "ir"), "--rgb", str(pairs / "vi"), "--out", str(pairs / "vi"), "--overwrite"]
    assert main(command) == 2 and "is an input folder" in error_line(capsys)
    assert (pairs / "vi" / "a.png").read_bytes() == before


@pytest.mark.parametrize("verb", ["fuse", "import-checkpoint", "demo", "evaluate"])
def test_an_out_that_cannot_be_made_is_one_line(pairs, capsys, verb, request):
    (pairs / "file").write_text("x")
    out = ["--out", str(pairs / "file" / "below")]
    arguments = {
        "fuse": ["--thermal", str(pairs / "ir"), "--rgb", str(pairs / "vi")],
        "demo": ["--rate", "5", "--seconds", "1"],
        "evaluate": ["--data", str(pairs), "--baseline", "average"],
    }
    if verb == "import-checkpoint":
        arguments[verb] = [str(request.getfixturevalue("reference_values") / "isfuse_release.safetensors")]
    assert main([verb, *arguments[verb], *out]) == 2
    assert f"isfl {verb}: error:" in error_line(capsys)


def test_debug_shows_the_traceback(pairs):
    from isfl_ros.errors import InputError

    with pytest.raises(InputError):
        fuse(pairs, "--model", "nope", "--debug")


def test_import_checkpoint(reference_values, tmp_path, capsys):
    source = str(reference_values / "isfuse_release.safetensors")
    assert main(["import-checkpoint", source, "--out", str(tmp_path / "release")]) == 0
    assert sorted(p.name for p in (tmp_path / "release").iterdir()) == ["model.json", "weights.safetensors"]
    assert FusionPipeline(PipelineConfig(model=str(tmp_path / "release"))).description["architecture"] == "isfl-release"
    assert main(["import-checkpoint", source, "--out", str(tmp_path / "release")]) == 2 and "exists" in error_line(capsys)
    assert main(["import-checkpoint", str(tmp_path / "no.pth"), "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_train_names_an_unknown_key_and_a_missing_set(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("lozz: 1\n")
    assert main(["train", str(tmp_path / "bad.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "unknown key 'lozz'" in error_line(capsys) and not (tmp_path / "run").exists()
    assert main(["train", "vehicle", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert "MANIFEST.csv not found" in error_line(capsys)
    assert not (tmp_path / "run").exists(), "nothing half-written"
    assert main(["train", "no-such", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2


@pytest.mark.parametrize("arguments", [["--size", "big"], ["--seconds", "0"], ["--rate", "-1"], ["--rate", "nan"], ["--seconds", "inf"], ["--size", "50x50"], ["--pairs", "nowhere"], ["--model", "nope"]])
def test_demo_refuses_bad_input_before_it_starts_anything(tmp_path, capsys, arguments):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *arguments]) == 2
    assert "isfl demo: error:" in error_line(capsys) and not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    assert main(["demo", "--out", str(tmp_path / "mine"), "--overwrite"]) == 2
    assert (tmp_path / "mine" / "file").exists()
