"""Predict, score and report, through the command line."""

from __future__ import annotations

import argparse
import csv
import json

import cv2
import numpy as np
import pytest
import torch

from isfl_ros.cli import evaluate
from isfl_ros.errors import InputError
from isfl_ros.evaluation import predict, report
from isfl_ros.evaluation.baselines import BASELINES
from isfl_ros.evaluation.metrics import METRICS, score
from isfl_ros.images import split_luma
from isfl_ros.io.folders import read_rgb, read_thermal, write_png
from isfl_ros.network.checkpoint import ModelInfo, save_model
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet
from isfl_ros.pipeline import FusionPipeline, PipelineConfig

TINY = IsflConfig(width=4, grid=2, gate_width=2)
SIZES = {"a": (47, 61), "b": (64, 48), "c": (53, 53)}  # stem to (height, width)


def _write_set(root, *, labelled=("a", "b"), depth=np.uint8, seed=0):
    random = np.random.default_rng(seed)
    for stem, (height, width) in SIZES.items():
        infrared = cv2.GaussianBlur(random.uniform(0, 255, (height, width)), (0, 0), 1)
        infrared[15:35, 20:28] = 250
        scale = 1 if depth == np.uint8 else 37
        write_png(root / "ir" / f"{stem}.png", (infrared * scale).astype(depth))
        write_png(root / "vi" / f"{stem}.png", random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if stem in labelled:
            label = np.zeros((height, width), np.uint8)
            label[15:35, 20:28] = 2
            write_png(root / "labels" / f"{stem}.png", label)
    return root


@pytest.fixture
def pairs(tmp_path):
    return _write_set(tmp_path / "night")


@pytest.fixture
def tiny_model(tmp_path):
    torch.manual_seed(0)
    info = ModelInfo(name="tiny", model="isfl", architecture="isfl", recipe="untrained", config=TINY)
    save_model(tmp_path / "tiny", IsflNet(TINY), info)
    return tmp_path / "tiny"


def _evaluate(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(word) for word in words]))


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_was_kept(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    assert _evaluate("--data", pairs, "--out", out, "--jobs", 1) == 0
    rows = _rows(out / "per_image.csv")
    assert [(row["stem"], row["method"]) for row in rows] == [(stem, name) for stem in SIZES for name in BASELINES]
    for row in rows:
        infrared = read_thermal(pairs / "ir" / f"{row['stem']}.png")
        luma = split_luma(read_rgb(pairs / "vi" / f"{row['stem']}.png"))[0]
        fused = read_thermal(out / "predictions" / row["method"] / "night" / f"{row['stem']}.png")
        np.testing.assert_array_equal(fused, BASELINES[row["method"]](infrared, luma))
        assert {name: float(row[name]) for name in METRICS} == score(fused, infrared, luma)
    summary = json.loads((out / "summary.json").read_text())
    entry = summary["sets"]["night"]
    assert (entry["pairs"], entry["labelled_pairs"]) == (3, 2)
    for method, means in entry["methods"].items():
        mine = [row for row in rows if row["method"] == method]
        for metric in METRICS:
            assert means[metric] == pytest.approx(sum(float(row[metric]) for row in mine) / 3, rel=1e-12)
        contrasts = [float(row["contrast"]) for row in _rows(out / "per_person.csv") if row["method"] == method]
        assert means["people"] == len(contrasts) == 2
        assert means["person_median"] == pytest.approx(sum(contrasts) / 2)
        assert means["person_p10"] == pytest.approx(0.9 * min(contrasts) + 0.1 * max(contrasts))
    assert entry["methods"]["infrared"]["person_median"] == 1
    assert summary["versions"]["numpy"] == np.__version__
    text = (out / "summary.md").read_text()
    assert "## night\n\n3 pairs" in text and text in capsys.readouterr().out
    sheet = read_rgb(out / "sheet_night.png")
    assert sheet.shape[1] == 320 * (2 + 3)  # infrared, visible and the three that fuse


def test_processes_change_nothing(pairs, tmp_path):
    baselines = ("--baseline", "average", "laplacian")
    for jobs in (1, 2):
        _evaluate("--data", pairs, *baselines, "--out", tmp_path / f"jobs{jobs}", "--jobs", jobs)
    for name in ("per_image.csv", "per_person.csv", "summary.json", "summary.md"):
        assert (tmp_path / "jobs1" / name).read_bytes() == (tmp_path / "jobs2" / name).read_bytes()


def test_an_error_crosses_from_the_scoring_process(pairs, tmp_path):
    pair_set = predict.read_set(str(pairs))
    predict.predict([predict.Baseline("average")], [pair_set], tmp_path)
    (tmp_path / "average" / "night" / "b.png").unlink()
    with pytest.raises(InputError, match=r"average/night/b\.png"):
        report.score_predictions(["average"], [pair_set], tmp_path, jobs=2)


def test_models_run_through_the_pipeline(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "COMPLEXITY_SIZE", (48, 64))
    deep = _write_set(tmp_path / "deep", depth=np.uint16, labelled=())
    out = tmp_path / "out"
    models = ("--model", tiny_model, f"again={tiny_model}")
    _evaluate("--data", deep, *models, "--baseline", "infrared", "--out", out, "--jobs", 1)
    pipeline = FusionPipeline(PipelineConfig(model=str(tiny_model)))
    for stem in SIZES:
        result = pipeline.fuse(read_thermal(deep / "ir" / f"{stem}.png"), read_rgb(deep / "vi" / f"{stem}.png"))
        for method, expected in (("tiny", result.luma), ("again", result.luma), ("infrared", result.thermal8)):
            kept = read_thermal(out / "predictions" / method / "deep" / f"{stem}.png")
            np.testing.assert_array_equal(kept, expected, err_msg=method)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["models"]) == ["tiny", "again"]
    model = summary["models"]["tiny"]
    assert model["parameters"] == sum(p.numel() for p in IsflNet(TINY).parameters())
    assert model["latency_ms"] > 0
    assert model["description"]["implementation"] == pipeline.description["implementation"]
    assert model["description"]["torch"] == torch.__version__
    assert not (out / "per_person.csv").exists()  # no labels, no person columns
    assert "person" not in (out / "summary.md").read_text()


def test_multiply_accumulates_of_a_network_that_can_be_counted_by_hand(tmp_path, monkeypatch):
    # One scale, no CFI: two encoders of two 3x3 convolutions (1 to 4, 4 to 4) each, and whatever follows them.
    monkeypatch.setattr(predict, "COMPLEXITY_SIZE", (48, 64))
    config = IsflConfig(width=4, scales=1, cfi=False, refine=False, head_kernel=1)
    info = ModelInfo(name="plain", model="isfl", architecture="isfl", recipe="untrained", config=config)
    network = IsflNet(config)
    save_model(tmp_path / "plain", network, info)
    by_hooks = 0

    def count(layer, _inputs, output):
        nonlocal by_hooks
        by_hooks += output[0, 0].numel() * layer.weight.numel()  # every output pixel uses every weight once

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 1, 48, 64), torch.zeros(1, 1, 48, 64))
    model = predict.Model("plain", str(tmp_path / "plain"))
    assert model.complexity().macs == by_hooks >= 2 * 48 * 64 * 9 * (4 + 16)


def test_fused_pictures_by_stem(pairs, tmp_path):
    random = np.random.default_rng(1)
    colour = {stem: random.integers(0, 256, (*size, 3), dtype=np.uint8) for stem, size in SIZES.items()}
    for stem, picture in colour.items():
        write_png(tmp_path / "theirs" / f"{stem}.png", picture)
    data = ("--data", pairs, "--baseline", "average", "--jobs", 1)
    theirs = ("--images", f"theirs={tmp_path / 'theirs'}")
    _evaluate(*data, *theirs, "--out", tmp_path / "out")
    for stem, picture in colour.items():
        kept = read_thermal(tmp_path / "out" / "predictions" / "theirs" / "night" / f"{stem}.png")
        np.testing.assert_array_equal(kept, split_luma(picture)[0])

    # With several sets a flat folder would be ambiguous: one folder a set.
    with pytest.raises(InputError, match="theirs needs one fused picture of night/a"):
        _evaluate(*data, "--data", f"b={pairs}", *theirs, "--out", tmp_path / "out2")
    (tmp_path / "theirs" / "b.png").unlink()
    with pytest.raises(InputError, match="theirs needs one fused picture of night/b"):
        _evaluate(*data, *theirs, "--out", tmp_path / "out2")
    write_png(tmp_path / "theirs" / "b.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match=r"b\.png has another size than its pair; expected 48x64; got 9x9"):
        _evaluate(*data, *theirs, "--out", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def _break_thermal(root):
    (root / "ir" / "b.png").write_bytes(b"no picture")


def _break_size(root):
    write_png(root / "vi" / "b.png", np.zeros((64, 50, 3), np.uint8))


def _break_partner(root):
    (root / "vi" / "b.png").unlink()


def _break_label(root):
    write_png(root / "labels" / "b.png", np.zeros((64, 50), np.uint8))


def _shrink(root):
    for modality in ("ir", "vi"):
        write_png(root / modality / "b.png", np.zeros((40, 64), np.uint8))


@pytest.mark.parametrize("damage", [_break_thermal, _break_size, _break_partner, _break_label, _shrink])
def test_half_a_set_leaves_nothing_behind(pairs, tmp_path, damage):
    damage(pairs)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"b\.png"):
        _evaluate("--data", pairs, "--baseline", "average", "--out", tmp_path / "out", "--jobs", 1)
    assert sorted(tmp_path.iterdir()) == before


def test_overwrite(pairs, tmp_path):
    out = tmp_path / "out"
    words = ("--data", pairs, "--baseline", "average", "--out", out, "--jobs", 1)
    out.mkdir()  # an empty folder is nothing to lose
    _evaluate(*words)
    (out / "stale.txt").write_text("of the earlier run")
    with pytest.raises(InputError, match="--overwrite"):
        _evaluate(*words)
    assert (out / "stale.txt").exists()
    _break_thermal(pairs)
    with pytest.raises(InputError):
        _evaluate(*words, "--overwrite")
    assert (out / "stale.txt").exists()  # a failed run replaces nothing
    _write_set(pairs)
    _evaluate(*words, "--overwrite")
    assert not (out / "stale.txt").exists()

    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.txt").write_text("precious")
    with pytest.raises(InputError, match="was not written by this command"):
        _evaluate("--data", pairs, "--out", other, "--overwrite")
    assert (other / "photo.txt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "mean"], "unknown baseline"),
        (["--baseline", "average", "average"], "two methods are called 'average'"),
        (["--images", "somewhere"], "has no name"),
        (["--images", "x=nowhere"], "nowhere is not a folder"),
        (["--images", "../x=nowhere"], "cannot name a folder"),
        (["--images", "average=nowhere"], "belongs to a baseline"),
        (["--model", "nosuchmodel"], "nosuchmodel"),
        (["--jobs", "0"], "at least 1"),
        (["--labels"], "night: c has no label picture; got 1 without label"),
    ],
)
def test_wrong_words_are_named(pairs, tmp_path, words, said):
    with pytest.raises(InputError, match=said):
        _evaluate("--data", pairs, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_two_sets_of_one_name(pairs, tmp_path):
    with pytest.raises(InputError, match="two sets are called 'night'"):
        _evaluate("--data", pairs, pairs, "--out", tmp_path / "out")


def test_best_value_is_bold_and_a_source_never_is():
    rows = {
        "infrared": {"AG": 9.0, "Nabf": 0.0, "EN": 8.0},
        "one": {"AG": 3.0, "Nabf": 0.25, "EN": 7.0},
        "two": {"AG": 2.0, "Nabf": 0.125},
    }
    lines = report._table(rows, {"AG": "up", "Nabf": "down", "EN": "shown"}).splitlines()
    assert lines == [
        "| method | AG ↑ | Nabf ↓ | EN |",
        "|---|--:|--:|--:|",
        "| infrared | 9 | 0 | 8 |",
        "| one | **3** | 0.25 | 7 |",
        "| two | 2 | **0.125** | - |",
    ]


def test_infinite_psnr_is_valid_json(tmp_path):
    picture = np.random.default_rng(2).integers(0, 256, (48, 48), dtype=np.uint8)
    for modality in ("ir", "vi"):
        write_png(tmp_path / "same" / modality / "x.png", picture)
    _evaluate("--data", tmp_path / "same", "--baseline", "average", "--out", tmp_path / "out", "--jobs", 1)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["sets"]["same"]["methods"]["average"]["PSNR"] is None
    assert "| inf |" in (tmp_path / "out" / "summary.md").read_text().replace("**", "")
