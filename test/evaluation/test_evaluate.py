"""Predict, score and report, through the command line."""

from __future__ import annotations

import argparse
import csv
import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isfl_ros.cli import evaluate
from isfl_ros.errors import InputError
from isfl_ros.evaluation import methods, predict, scoring, tables
from isfl_ros.evaluation import sets as pair_sets
from isfl_ros.evaluation.baselines import BASELINES
from isfl_ros.evaluation.compare import SetSummary
from isfl_ros.evaluation.metrics import METRICS, score
from isfl_ros.images import split_luma
from isfl_ros.io.folders import read_rgb, read_thermal, write_png
from isfl_ros.network.checkpoint import ModelInfo, save_model
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet
from isfl_ros.pipeline import FusionPipeline, PipelineConfig

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


def _evaluate(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(word) for word in words]))


def _quick(*words):
    """Without plots and timing of the large size."""
    return _evaluate(*words, "--no-html", "--jobs", 1, "--resamples", 50)


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_was_kept(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    assert _quick("--data", pairs, "--out", out) == 0
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
    assert (entry["pairs"], entry["total"], entry["left_out"], entry["labelled_pairs"]) == (3, 3, [], 2)
    for method, means in entry["methods"].items():
        mine = [row for row in rows if row["method"] == method]
        for metric in METRICS:
            assert means[metric] == pytest.approx(sum(float(row[metric]) for row in mine) / 3, rel=1e-12)
        contrasts = [float(row["contrast"]) for row in _rows(out / "per_person.csv") if row["method"] == method]
        assert means["people"] == len(contrasts) == 2
        assert means["person_median"] == pytest.approx(sum(contrasts) / 2)
        assert means["person_p10"] == pytest.approx(0.9 * min(contrasts) + 0.1 * max(contrasts))
    assert entry["methods"]["infrared"]["person_median"] == 1
    assert summary["environment"]["versions"]["numpy"] == np.__version__
    text = (out / "summary.md").read_text()
    assert "## night\n\n3 pairs" in text and text in capsys.readouterr().out
    sheet = read_rgb(out / "sheet_night.png")
    assert sheet.shape[1] == 320 * (2 + 3)  # infrared, visible and the three that fuse


def test_processes_change_nothing(pairs, tmp_path):
    for stem, picture in zip("xyz", np.random.default_rng(7).integers(0, 256, (3, 48, 64), dtype=np.uint8)):
        for modality in ("ir", "vi"):
            write_png(tmp_path / "drive" / modality / f"{stem}.png", picture)
    words = ("--baseline", "average", "laplacian", "--sequence", "drive", "--no-html", "--resamples", 50)
    for jobs in (1, 2):
        _evaluate("--data", pairs, tmp_path / "drive", *words, "--out", tmp_path / f"jobs{jobs}", "--jobs", jobs)
    for name in ("per_image.csv", "per_person.csv", "flicker.csv", "sheet_night.png"):
        assert (tmp_path / "jobs1" / name).read_bytes() == (tmp_path / "jobs2" / name).read_bytes()
    one, two = (json.loads((tmp_path / f"jobs{jobs}" / "summary.json").read_text())["sets"] for jobs in (1, 2))
    assert one == two


def test_an_error_crosses_from_the_scoring_process(pairs, tmp_path):
    (pair_set,) = pair_sets.examine([pair_sets.read_set(str(pairs))])
    predict.predict([methods.Baseline("average")], [pair_set], tmp_path)
    (tmp_path / "average" / "night" / "b.png").unlink()
    with pytest.raises(InputError, match=r"average/night/b\.png"):
        scoring.score_predictions(["average"], [pair_set], tmp_path, jobs=2)


def test_models_run_through_the_pipeline(tiny_model, tiny_config, tmp_path):
    deep = _write_set(tmp_path / "deep", depth=np.uint16, labelled=())
    out = tmp_path / "out"
    models = ("--model", tiny_model, f"again={tiny_model}")
    _quick("--data", deep, *models, "--baseline", "infrared", "laplacian", "--out", out)
    pipeline = FusionPipeline(PipelineConfig(model=str(tiny_model)))
    for stem in SIZES:
        result = pipeline.fuse(read_thermal(deep / "ir" / f"{stem}.png"), read_rgb(deep / "vi" / f"{stem}.png"))
        for method, expected in (("tiny", result.luma), ("again", result.luma), ("infrared", result.thermal8)):
            kept = read_thermal(out / "predictions" / method / "deep" / f"{stem}.png")
            np.testing.assert_array_equal(kept, expected, err_msg=method)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]) == ["infrared", "laplacian", "tiny", "again"]
    model = summary["methods"]["tiny"]
    cost = model["complexity"]
    assert cost["parameters"] == sum(p.numel() for p in IsflNet(tiny_config).parameters())
    assert 0 < cost["latency_p10_ms"] <= cost["latency_ms"] <= cost["latency_p90_ms"]
    assert summary["methods"]["laplacian"]["complexity"]["run"] == cost["run"]  # timed beside it
    assert summary["methods"]["infrared"]["complexity"] is None
    assert model["description"]["implementation"] == pipeline.description["implementation"]
    assert model["description"]["torch"] == torch.__version__
    assert model["identity"]["weights"] == summary["methods"]["again"]["identity"]["weights"]
    assert not (out / "per_person.csv").exists()  # no labels, no person columns
    text = (out / "summary.md").read_text()
    assert "person_median" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| tiny |")]
    assert f"| {cost['parameters']:,} | {cost['macs'] / 1e9:.2f} | {cost['latency_ms']:.1f} |" in row
    same = summary["sets"]["deep"]["differences"]["laplacian"]
    assert same["tiny"] == same["again"]  # against laplacian, the default reference, the same draws


def test_kept_gates_are_those_of_the_network(tiny_model, tiny_config, pairs, tmp_path):
    out = tmp_path / "out"
    _quick("--data", pairs, "--model", tiny_model, "--baseline", "average", "--out", out)
    pipeline = FusionPipeline(PipelineConfig(model=str(tiny_model), implementation="reference"))
    for stem, (height, width) in SIZES.items():
        paths = predict.gate_paths(out / "predictions", "tiny", "night", stem)
        gates = [read_thermal(path) / 255.0 for path in paths]
        assert [gate.shape for gate in gates] == [(height >> k, width >> k) for k in range(tiny_config.scales)]
        mean = pipeline.fuse(
            read_thermal(pairs / "ir" / f"{stem}.png"), read_rgb(pairs / "vi" / f"{stem}.png"), gate=True
        ).gate
        raised = [
            F.interpolate(torch.from_numpy(gate)[None, None], size=(height, width), mode="bilinear")[0, 0]
            for gate in gates
        ]
        np.testing.assert_allclose(torch.stack(raised).mean(0).numpy(), mean, atol=1 / 255)
    assert not predict.gate_paths(out / "predictions", "average", "night", "a")


def test_multiply_accumulates_of_a_network_that_can_be_counted_by_hand(tmp_path):
    # One scale, no CFI: two encoders of two 3x3 convolutions (1 to 4, 4 to 4) each, and whatever follows them.
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
    parameters, macs = methods.Model("plain", str(tmp_path / "plain")).parameters_and_macs()
    assert macs == by_hooks >= 2 * 48 * 64 * 9 * (4 + 16)
    assert parameters == sum(p.numel() for p in network.parameters())


def test_fused_pictures_by_stem(pairs, tmp_path):
    random = np.random.default_rng(1)
    colour = {stem: random.integers(0, 256, (*size, 3), dtype=np.uint8) for stem, size in SIZES.items()}
    for stem, picture in colour.items():
        write_png(tmp_path / "theirs" / f"{stem}.png", picture)
    data = ("--data", pairs, "--baseline", "average")
    theirs = ("--images", f"theirs={tmp_path / 'theirs'}")
    _quick(*data, *theirs, "--out", tmp_path / "out")
    for stem, picture in colour.items():
        kept = read_thermal(tmp_path / "out" / "predictions" / "theirs" / "night" / f"{stem}.png")
        np.testing.assert_array_equal(kept, split_luma(picture)[0])

    # With several sets a flat folder would be ambiguous: one folder a set.
    with pytest.raises(InputError, match="theirs needs one fused picture of night/a"):
        _quick(*data, "--data", f"b={pairs}", *theirs, "--out", tmp_path / "out2")
    (tmp_path / "theirs" / "b.png").unlink()
    said = r"theirs needs one fused picture of night/b.*1 of 3 pairs \(1 fused picture missing\)"
    with pytest.raises(InputError, match=said):
        _quick(*data, *theirs, "--out", tmp_path / "out2")
    write_png(tmp_path / "theirs" / "b.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match=r"b\.png has another size than its pair; expected 48x64; got 9x9"):
        _quick(*data, *theirs, "--out", tmp_path / "out2")
    (tmp_path / "theirs" / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 fused picture unusable"):
        _quick(*data, *theirs, "--out", tmp_path / "out2")
    write_png(tmp_path / "theirs" / "b.png", np.zeros((64, 48), np.uint16))
    with pytest.raises(InputError, match="expected 8 bit"):
        _quick(*data, *theirs, "--out", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def _break_thermal(root):
    (root / "ir" / "b.png").write_bytes(b"no picture")


def _break_size(root):
    write_png(root / "vi" / "b.png", np.zeros((64, 50, 3), np.uint8))


def _break_partner(root):
    (root / "vi" / "b.png").unlink()


def _break_label(root):
    write_png(root / "labels" / "b.png", np.zeros((64, 50), np.uint8))


def _deepen(root):
    write_png(root / "ir" / "b.png", np.full((64, 48), 9000, np.uint16))


def _deepen_visible(root):
    write_png(root / "vi" / "b.png", np.full((64, 48), 9000, np.uint16))


def _shrink(root):
    for modality in ("ir", "vi"):
        write_png(root / modality / "b.png", np.zeros((40, 64), np.uint8))


DAMAGE = {
    "unpaired": _break_partner,
    "unusable file": _break_thermal,
    "sizes differ": _break_size,
    "unusable label": _break_label,
    "mixed depths": _deepen,
    "too small": _shrink,
}


@pytest.mark.parametrize("damage", [*DAMAGE.values(), _deepen_visible])
def test_a_bad_pair_is_refused_and_leaves_nothing_behind(pairs, tmp_path, damage):
    damage(pairs)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"night/b cannot be used: .*b\.png.*got 1 of 3 pairs"):
        _quick("--data", pairs, "--baseline", "average", "--out", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("cause", DAMAGE)
def test_a_skipped_pair_is_in_no_figure_and_every_table_says_so(pairs, tmp_path, cause, caplog):
    DAMAGE[cause](pairs)
    words = ("--baseline", "average", "laplacian", "--bad-pairs", "skip")
    _quick("--data", pairs, *words, "--out", tmp_path / "out")
    whole = tmp_path / "whole"
    for path in pairs.rglob("*.png"):
        if path.stem != "b":
            copy = whole / path.relative_to(pairs)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    _quick("--data", f"night={whole}", *words, "--out", tmp_path / "expected")
    found, expected = (
        json.loads((tmp_path / out / "summary.json").read_text())["sets"]["night"] for out in ("out", "expected")
    )
    for key in ("methods", "differences"):
        assert found[key] == expected[key]
    assert (found["pairs"], found["total"], expected["total"]) == (2, 3, 2)
    assert [(item["stem"], item["cause"]) for item in found["left_out"]] == [("b", cause)]
    (row,) = _rows(tmp_path / "out" / "left_out.csv")
    assert (row["set"], row["stem"], row["cause"]) == ("night", "b", cause) and "b.png" in row["why"]
    assert not (tmp_path / "expected" / "left_out.csv").exists()
    text = (tmp_path / "out" / "summary.md").read_text()
    assert f"2 of 3 pairs: 1 left out for every method (1 {cause}: b)" in text
    heads = [line for line in text.splitlines() if line.startswith(("| method", "| minus"))]
    assert len(heads) == 2 and all("(2 of 3 pairs)" in line for line in heads)
    assert "of 3 pairs" not in (tmp_path / "expected" / "summary.md").read_text()
    assert f"night/b ({cause})" in caplog.text


def test_a_picture_missing_of_one_method_is_left_out_for_all(pairs, tmp_path):
    for stem in ("a", "c"):
        write_png(tmp_path / "theirs" / f"{stem}.png", np.zeros(SIZES[stem], np.uint8))
    theirs = ("--images", f"theirs={tmp_path / 'theirs'}", "--baseline", "average")
    _quick("--data", pairs, *theirs, "--bad-pairs", "skip", "--out", tmp_path / "out")
    found = sorted((row["method"], row["stem"]) for row in _rows(tmp_path / "out" / "per_image.csv"))
    assert found == [("average", "a"), ("average", "c"), ("theirs", "a"), ("theirs", "c")]


def test_a_set_of_which_nothing_is_left_is_refused(pairs, tmp_path):
    for stem in SIZES:
        (pairs / "ir" / f"{stem}.png").write_bytes(b"")
    with pytest.raises(InputError, match="night has no usable pair.*3 unusable file"):
        _quick("--data", pairs, "--bad-pairs", "skip", "--out", tmp_path / "out")
    for path in (pairs / "ir").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="holds no pictures"):
        _quick("--data", pairs, "--bad-pairs", "skip", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_two_depths_the_rarer_is_the_odd_one(tmp_path):
    deep = _write_set(tmp_path / "deep", depth=np.uint16)
    write_png(deep / "ir" / "c.png", np.full(SIZES["c"], 7, np.uint8))
    (found,) = pair_sets.examine([pair_sets.read_set(str(deep))])
    (item,) = found.left_out
    assert item.stem == "c" and "c.png has 8 bits, 2 others have 16" in item.why


def test_many_bad_pairs_are_counted(tmp_path):
    items = [
        pair_sets.LeftOut(set="s", stem=f"p{k}", cause="unpaired" if k else "too small", why=f"p{k}.png is wrong")
        for k in range(9)
    ]
    said = r"s/p0 cannot be used: p0.png is wrong; so are s/p1, .*s/p5, and 3 more"
    with pytest.raises(InputError, match=said) as caught:
        pair_sets.refuse([pair_sets.PairSet(name="s", spec="s", pairs=(), left_out=tuple(items))])
    assert "9 of 9 pairs (1 too small, 8 unpaired)" in str(caught.value)


def test_overwrite(pairs, tmp_path):
    out = tmp_path / "out"
    words = ("--data", pairs, "--baseline", "average", "--out", out)
    out.mkdir()  # an empty folder is nothing to lose
    _quick("--data", f"earlier={pairs}", "--baseline", "maximum", "average", "--out", out)
    (out / "notes.txt").write_text("somebody else's")
    with pytest.raises(InputError, match="--overwrite"):
        _quick(*words)
    with pytest.raises(InputError, match="contradict"):
        _quick(*words, "--overwrite", "--resume")
    before = sorted(out.rglob("*"))
    _break_thermal(pairs)
    with pytest.raises(InputError):
        _quick(*words, "--overwrite")
    assert sorted(out.rglob("*")) == before  # a failed run replaces nothing
    _write_set(pairs)
    _quick(*words, "--overwrite")
    assert (out / "notes.txt").exists() and (out / "sheet_night.png").exists()
    assert not (out / "sheet_earlier.png").exists() and not (out / "predictions" / "maximum").exists()
    assert not (out / "predictions" / "average" / "earlier").exists()

    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.txt").write_text("precious")
    for flag in ("--overwrite", "--resume"):
        with pytest.raises(InputError, match="was not written by this command"):
            _quick("--data", pairs, "--out", other, flag)
    assert sorted(path.name for path in other.iterdir()) == ["photo.txt"]


class _Counted(methods.Baseline):
    """Counts what it fuses, and stops after so many, as a killed run does."""

    def __init__(self, name, limit=100):
        super().__init__(name)
        self.fused, self.limit = [], limit

    def fuse(self, set_name, pair, sources):
        if len(self.fused) == self.limit:
            raise KeyboardInterrupt
        self.fused.append(pair.stem)
        return super().fuse(set_name, pair, sources)


def test_an_interrupted_prediction_goes_on_where_it_was(pairs, tmp_path):
    def sets():
        return pair_sets.examine([pair_sets.read_set(str(pairs))])

    first = _Counted("laplacian", limit=2)
    with pytest.raises(KeyboardInterrupt):
        predict.predict([first], sets(), tmp_path / "kept")
    kept = tmp_path / "kept" / "laplacian" / "kept.jsonl"
    kept.write_bytes(kept.read_bytes() + b'{"set": "night", "st')  # the line that was being written
    second = _Counted("laplacian")
    predict.predict([second], sets(), tmp_path / "kept")
    assert (first.fused, second.fused) == (["a", "b"], ["c"])

    write_png(pairs / "ir" / "b.png", np.full(SIZES["b"], 31, np.uint8))  # another picture under the old name
    (tmp_path / "kept" / "laplacian" / "night" / "c.png").unlink()
    third = _Counted("laplacian")
    predict.predict([third], sets(), tmp_path / "kept")
    assert third.fused == ["b", "c"]
    predict.predict([_Counted("laplacian", limit=0)], sets(), tmp_path / "kept")  # nothing is left to do
    for stem in SIZES:
        infrared = read_thermal(pairs / "ir" / f"{stem}.png")
        luma = split_luma(read_rgb(pairs / "vi" / f"{stem}.png"))[0]
        found = read_thermal(predict.prediction_path(tmp_path / "kept", "laplacian", "night", stem))
        np.testing.assert_array_equal(found, BASELINES["laplacian"](infrared, luma))


def test_resume_fuses_what_is_new_only(pairs, tiny_model, tmp_path):
    write_png(tmp_path / "theirs" / "a.png", np.full(SIZES["a"], 50, np.uint8))
    for stem in ("b", "c"):
        write_png(tmp_path / "theirs" / f"{stem}.png", np.full(SIZES[stem], 60, np.uint8))
    out = tmp_path / "out"
    words = ("--data", pairs, "--images", f"theirs={tmp_path / 'theirs'}", "--baseline", "average", "--out", out)
    _quick(*words)
    predictions = out / "predictions"
    before = {path: path.stat().st_mtime_ns for path in predictions.rglob("*.png")}
    write_png(tmp_path / "theirs" / "a.png", np.full(SIZES["a"], 51, np.uint8))  # they fused it again
    _quick(*words, "--model", tiny_model, "--resume")
    after = {path: path.stat().st_mtime_ns for path in predictions.rglob("*.png")}
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {predictions / "theirs" / "night" / "a.png"}
    assert read_thermal(predictions / "theirs" / "night" / "a.png")[0, 0] == 51
    assert (predictions / "tiny" / "night" / "c.png").is_file()


def _retrain(folder, config):
    torch.manual_seed(1)
    info = ModelInfo(name="tiny", model="isfl", architecture="isfl", recipe="untrained", config=config)
    save_model(folder, IsflNet(config), info, overwrite=True)


def test_kept_predictions_are_scored_without_the_model(pairs, tiny_model, tiny_config, tmp_path, monkeypatch):
    out, again = tmp_path / "out", tmp_path / "again"
    _quick("--data", pairs, "--model", tiny_model, "--baseline", "average", "laplacian", "--out", out)
    kept = ("--data", pairs, "--predictions", out / "predictions")
    with monkeypatch.context() as patched:
        patched.setattr(methods.Model, "fuse", None)
        patched.setattr(methods.Baseline, "fuse", None)
        _quick(*kept, "--out", again)
        assert not (again / "predictions").exists()
        for name in ("per_image.csv", "per_person.csv", "summary.md", "sheet_night.png"):
            assert (again / name).read_bytes() == (out / name).read_bytes()
        _quick(*kept, "--model", tiny_model, "--baseline", "average", "--out", tmp_path / "two")
        assert {row["method"] for row in _rows(tmp_path / "two" / "per_image.csv")} == {"average", "tiny"}
    old, new = (json.loads((folder / "summary.json").read_text()) for folder in (out, again))
    assert new["methods"] == old["methods"] and new["sets"] == old["sets"]

    _retrain(tiny_model, tiny_config)
    _quick(*kept, "--out", tmp_path / "three")  # nobody claims that it is the model of today
    for words, flags in ((kept, ()), (("--data", pairs, "--baseline", "average"), ("--resume",))):
        target = out if flags else tmp_path / "four"
        with pytest.raises(InputError, match="pictures kept in .*tiny were made with other weights"):
            _quick(*words, "--model", tiny_model, "--out", target, *flags)
    _quick("--data", pairs, "--model", tiny_model, "--out", out, "--overwrite")
    assert (out / "predictions" / "tiny" / "night" / "a.png").is_file()


def test_kept_predictions_that_do_not_fit_are_named(pairs, tmp_path):
    out = tmp_path / "out"
    _quick("--data", pairs, "--baseline", "average", "maximum", "--out", out)
    kept = ("--data", pairs, "--predictions", out / "predictions", "--out", tmp_path / "again")
    with pytest.raises(InputError, match="holds no pictures of 'laplacian'; expected one of average, maximum"):
        _quick(*kept, "--baseline", "laplacian")
    with pytest.raises(InputError, match="contradict"):
        _quick(*kept, "--images", "x=nowhere")
    with pytest.raises(InputError, match="holds no kept predictions"):
        _quick("--data", pairs, "--predictions", tmp_path, "--out", tmp_path / "again")
    (out / "predictions" / "average" / "night" / "a.png").unlink()
    (out / "predictions" / "maximum" / "night" / "b.png").write_bytes(b"")
    write_png(pairs / "vi" / "c.png", np.zeros((*SIZES["c"], 3), np.uint8))
    with pytest.raises(InputError, match="1 prediction missing, 1 prediction of another pair, 1 unusable prediction"):
        _quick(*kept)
    with pytest.raises(InputError, match="night has no usable pair"):
        _quick(*kept, "--bad-pairs", "skip")
    (out / "predictions" / "average" / "method.json").write_text("{}")
    with pytest.raises(InputError, match="no record of kept predictions"):
        _quick(*kept)
    assert not (tmp_path / "again").exists()


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
        (["--reference", "mean"], "--reference is no row of the table; expected one of average"),
        (["--reference", "average", "mean"], "--reference is no row of the table.*got 'mean'"),
        (["--sequence", "drive"], "--sequence names no set; expected one of night; got 'drive'"),
        (["--sequence", "night"], "night is no sequence: .*b.png has another size.*expected 61x47; got 48x64"),
        (["--resamples", "0"], "--resamples out of range"),
        (["--seed", "-1"], "--seed out of range"),
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
    low, high = dict.fromkeys(METRICS, 2.0), dict.fromkeys(METRICS, 3.0)
    summary = SetSummary(
        spec="s", pairs=2, total=2, left_out=[], labelled_pairs=1, differences={},
        methods={"infrared": dict.fromkeys(METRICS, 9.0), "one": high | {"person_median": 0.5}, "two": low},
    )
    lines = tables.means_table(summary, {}).markdown().splitlines()
    assert lines[0].startswith("| method | AG ↑ |") and "| EN | SD | SCD ↑ | Nabf ↓ | person_median ↑ |" in lines[0]
    assert lines[1] == "|---|" + "--:|" * 17
    nothing = "- | - | - |"
    assert lines[2] == "| infrared | " + "9 | " * 14 + nothing
    assert lines[3] == "| one | " + "**3** | " * 10 + "3 | 3 | **3** | 3 | **0.5** | - | - |"
    assert lines[4] == "| two | " + "2 | " * 13 + f"**2** | {nothing}"


def test_several_references(pairs, tmp_path):
    words = ("--data", pairs, "--baseline", "average", "maximum", "laplacian", "--out", tmp_path / "out")
    _quick(*words, "--reference", "average", "--reference", "laplacian", "average")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["references"] == ["average", "laplacian"]
    entry = summary["sets"]["night"]
    for reference, others in entry["differences"].items():
        for method, found in others.items():
            for metric in METRICS:
                expected = entry["methods"][method][metric] - entry["methods"][reference][metric]
                assert found[metric]["mean"] == pytest.approx(expected, abs=1e-9)
    text = (tmp_path / "out" / "summary.md").read_text()
    for reference in ("average", "laplacian"):
        assert f"### night: differences to {reference}\n\n| minus {reference} |" in text
        won = entry["verdicts"][reference]["maximum"]["better_on"]
        assert f"- `maximum against {reference}`: better mean on {len(won)} of 8" in text


def test_flicker_of_a_sequence(tmp_path):
    random = np.random.default_rng(3)
    scene = cv2.GaussianBlur(random.uniform(0, 255, (64, 80)), (0, 0), 2)
    for t in range(4):
        write_png(tmp_path / "drive" / "vi" / f"{t}.png", scene.astype(np.uint8))
        write_png(tmp_path / "drive" / "ir" / f"{t}.png", (scene / 2).astype(np.uint8))
        brightness = scene / 2 + 40 + 5 * (t % 2)
        write_png(tmp_path / "theirs" / f"{t}.png", brightness.astype(np.uint8))
    data = ("--data", tmp_path / "drive", "--images", f"theirs={tmp_path / 'theirs'}", "--baseline", "average")
    _quick(*data, "--sequence", "drive", "--out", tmp_path / "out")
    rows = _rows(tmp_path / "out" / "flicker.csv")
    assert [(row["method"], row["stem"]) for row in rows] == [(m, t) for t in "123" for m in ("average", "theirs")]
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["sets"]["drive"]["flicker"]
    assert (found["steps"], found["total"]) == (3, 3)
    assert found["methods"]["theirs"]["flicker"] == pytest.approx(5, abs=0.1)
    assert found["methods"]["average"]["flicker"] == pytest.approx(0, abs=1e-3)
    lower_than = {method: of["lower_than"] for method, of in found["methods"].items()}
    assert lower_than == {"average": {}, "theirs": {"average": 0}}
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| flicker over 3 of 3 steps | flicker ↓ | worst step ↓ | change | lower than average |" in text
    assert "| theirs | 5.0" in text and "0 of 3 |" in text
    (tmp_path / "drive" / "ir" / "1.png").write_bytes(b"")
    _quick(*data, "--sequence", "drive", "--bad-pairs", "skip", "--out", tmp_path / "gap")
    text = (tmp_path / "gap" / "summary.md").read_text()
    assert "| flicker over 1 of 3 steps |" in text and "2 steps are not measured" in text


def test_infinite_psnr_is_valid_json(tmp_path):
    picture = np.random.default_rng(2).integers(0, 256, (48, 48), dtype=np.uint8)
    for modality in ("ir", "vi"):
        write_png(tmp_path / "same" / modality / "x.png", picture)
    _quick("--data", tmp_path / "same", "--baseline", "average", "maximum", "--out", tmp_path / "out")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["sets"]["same"]["methods"]["average"]["PSNR"] is None
    assert summary["sets"]["same"]["differences"]["average"]["maximum"]["PSNR"]["mean"] == 0  # both infinite: a tie
    assert "| inf |" in (tmp_path / "out" / "summary.md").read_text().replace("**", "")
