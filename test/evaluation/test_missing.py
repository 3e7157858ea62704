"""One modality missing: what is fused, kept, measured and said, through the command line."""

from __future__ import annotations

import argparse
import csv
import json

import cv2
import numpy as np
import pytest

from isfl_ros.cli import evaluate
from isfl_ros.errors import InputError
from isfl_ros.evaluation import methods, missing, predict, robustness, sets
from isfl_ros.evaluation.bootstrap import BootstrapConfig
from isfl_ros.evaluation.compare import SetSummary
from isfl_ros.evaluation.metrics import structural_similarity
from isfl_ros.evaluation.regions import MODALITIES, REGIONS, WHOLE, make_region, signed_distance
from isfl_ros.evaluation.seam import seam
from isfl_ros.evaluation.sets import PairSet, read_sources
from isfl_ros.io.folders import Pair, read_rgb, read_thermal, write_png
from isfl_ros.pipeline import FusionPipeline, PipelineConfig

STEMS = ("a", "b", "c", "d", "e")
SHAPE = (67, 90)


@pytest.fixture
def pairs(tmp_path):
    random = np.random.default_rng(0)
    for stem in STEMS:
        infrared = cv2.GaussianBlur(random.uniform(0, 255, SHAPE), (0, 0), 1)
        write_png(tmp_path / "night" / "ir" / f"{stem}.png", (infrared * 37).astype(np.uint16))
        write_png(tmp_path / "night" / "vi" / f"{stem}.png", random.integers(0, 256, (*SHAPE, 3), dtype=np.uint8))
    return tmp_path / "night"


def _evaluate(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    words = [str(word) for word in (*words, "--no-html", "--jobs", 1, "--resamples", 50)]
    return evaluate.run(parser.parse_args(words))


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _text(value):
    return "" if value is None else str(value)


def test_it_is_the_pipeline_that_fuses_and_the_rest_that_is_compared(pairs, tiny_model, tmp_path):
    out = tmp_path / "out"
    words = ("--data", pairs, "--model", tiny_model, "--baseline", "average", "--missing", "--missing-pairs", 3)
    _evaluate(*words, "--out", out)
    pipeline = FusionPipeline(PipelineConfig(model=str(tiny_model)))
    rows = {(row["stem"], row["modality"], row["region"]): row for row in _rows(out / "missing.csv")}
    assert len(rows) == 3 * len(MODALITIES) * len(REGIONS) and {stem for stem, _, _ in rows} == {"a", "c", "e"}
    for (stem, modality, name), row in rows.items():
        thermal, rgb = read_thermal(pairs / "ir" / f"{stem}.png"), read_rgb(pairs / "vi" / f"{stem}.png")
        sources = read_sources(Pair(stem, pairs / "ir" / f"{stem}.png", pairs / "vi" / f"{stem}.png"))
        region = make_region(name, SHAPE, stem)
        if name == WHOLE:
            result = pipeline.fuse(*((None, rgb) if modality == "infrared" else (thermal, None)))
        else:
            mask = {"infrared": "thermal_valid", "visible": "rgb_valid"}[modality]
            result = pipeline.fuse(thermal, rgb, **{mask: ~region})
        kept = missing.missing_path(out / "predictions", "tiny", "night", stem, modality, name)
        np.testing.assert_array_equal(read_thermal(kept), result.luma)

        remaining = sources.luma if modality == "infrared" else sources.infrared
        inner = signed_distance(region) >= 8
        difference = np.abs(result.luma.astype(float) - remaining)[inner].mean() if inner.any() else None
        assert row["difference"] == _text(difference)
        assert inner.any() == (name != "band5")  # five percent of so small a picture have no inside
        if name == WHOLE:
            f, s = result.luma.astype(np.float64), remaining.astype(np.float64)
            assert float(row["SSIM"]) == pytest.approx(structural_similarity(f, s, s) / 2, rel=1e-12)
            assert row["seam"] == row["hard_seam"] == ""
        else:
            both = read_thermal(out / "predictions" / "tiny" / "night" / f"{stem}.png")
            hard = np.where(region, remaining, both)
            assert row["SSIM"] == ""
            assert row["seam"] == _text(seam(result.luma, sources.infrared, sources.luma, region))
            assert row["hard_seam"] == _text(seam(hard, sources.infrared, sources.luma, region))

    entry = json.loads((out / "summary.json").read_text())["sets"]["night"]["missing"]
    assert entry["pairs"] == 3 and list(entry["methods"]) == ["tiny"]
    for modality in MODALITIES:
        values = {stem: float(rows[stem, modality, "half"]["difference"]) for stem in "ace"}
        figure = entry["methods"]["tiny"][modality]["half"]["difference"]
        assert figure["mean"] == pytest.approx(sum(values.values()) / 3)
        assert figure["worst"] == max(values.values()) == values[figure["worst_stem"]]
        assert figure["low"] <= figure["mean"] <= figure["high"] and figure["pairs"] == 3
        ssim = entry["methods"]["tiny"][modality][WHOLE]["SSIM"]
        assert ssim["worst"] == min(float(rows[stem, modality, WHOLE]["SSIM"]) for stem in "ace")
    text = (out / "summary.md").read_text()
    (average,) = [line for line in text.splitlines() if line.startswith("| average | - |")]
    assert set(average.strip("|").split("|")[1:]) == {" - "}
    assert "| missing on 3 of 5 pairs |" in text and "| tiny, no visible |" in text
    assert read_rgb(out / "missing_night.png").shape[1] == 320 * len(MODALITIES) * len(REGIONS)


def test_a_network_that_shows_what_remains(pairs, tiny_model, tmp_path, monkeypatch):
    def what_remains(self, sources, modality, region):
        both = self.fuse("night", None, sources)
        return np.where(region, sources.luma if modality == "infrared" else sources.infrared, both)

    monkeypatch.setattr(methods.Model, "fuse_without", what_remains)
    models = ("--model", tiny_model, f"again={tiny_model}", "--reference", "average", "again")
    _evaluate("--data", pairs, *models, "--baseline", "average", "--missing", "--out", tmp_path / "out")
    for row in _rows(tmp_path / "out" / "missing.csv"):
        assert row["difference"] in ("", "0.0")
        assert row["SSIM"] == "" or float(row["SSIM"]) == pytest.approx(1)
        assert row["seam"] == row["hard_seam"]  # it is the hard switch
    entry = json.loads((tmp_path / "out" / "summary.json").read_text())["sets"]["night"]["missing"]
    minus = entry["methods"]["tiny"]["visible"]["half"]["seam"]["minus"]
    assert list(minus) == ["again"]  # a baseline has no such figure
    assert (minus["again"]["mean"], minus["again"]["ties"]) == (0, 5)
    assert entry["methods"]["again"]["visible"]["half"]["seam"]["minus"] == {}


def test_only_what_is_not_kept_is_fused(pairs, tiny_model, tmp_path, monkeypatch):
    fused = []
    real = methods.Model.fuse_without

    def counted(self, sources, modality, region):
        fused.append((modality, float(region.mean())))
        return real(self, sources, modality, region)

    monkeypatch.setattr(methods.Model, "fuse_without", counted)
    model, everything = methods.Model("tiny", str(tiny_model)), len(MODALITIES) * len(REGIONS)
    root = tmp_path / "kept"

    def again(pairs_of_a_set=1):
        fused.clear()
        found = sets.examine([sets.read_set(str(pairs))])
        kept = predict.predict([model], found, root)
        missing.predict_missing([methods.Baseline("average"), model], kept, found, root, pairs=pairs_of_a_set)
        missing.check_kept(kept, found, root, pairs=pairs_of_a_set)
        return list(fused)

    assert len(again()) == everything and again() == []
    assert len(again(2)) == everything  # of the pair that is new

    ledger = root / "tiny" / "missing.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    other = json.loads(lines[1]) | {"mask": "0" * 64}  # was made with another region
    ledger.write_text("".join([lines[0], json.dumps(other) + "\n", *lines[2:], '{"set": "ni']))  # and interrupted
    missing.missing_path(root, "tiny", "night", "a", "visible", "holes").unlink()
    assert [modality for modality, _ in again(2)] == ["infrared", "visible"]
    write_png(pairs / "ir" / "a.png", np.full(SHAPE, 9, np.uint16))  # another picture under the old name
    assert len(again(2)) == everything
    model.close()


def test_kept_pictures_are_scored_without_the_model(pairs, tiny_model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    _evaluate(
        "--data", pairs, "--model", tiny_model, "--baseline", "average", "--missing", "--missing-pairs", 2, "--out", out
    )
    monkeypatch.setattr(methods.Model, "fuse_without", None)
    kept = ("--data", pairs, "--predictions", out / "predictions", "--missing", "--missing-pairs", 2)
    _evaluate(*kept, "--out", tmp_path / "again")
    for name in ("missing.csv", "summary.md", "missing_night.png"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    with pytest.raises(InputError, match=r"tiny has kept no picture of night/c without infrared \(whole\)"):
        _evaluate(*kept[:-1], 3, "--out", tmp_path / "three")
    missing.missing_path(out / "predictions", "tiny", "night", "e", "visible", "half").unlink()
    with pytest.raises(InputError, match=r"night/e without visible \(half\)"):
        _evaluate(*kept, "--out", tmp_path / "three")
    with pytest.raises(InputError, match="--missing needs a row that runs a network"):
        _evaluate(*kept, "--baseline", "average", "--out", tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_wrong_words(pairs, tmp_path):
    for words, said in (
        (("--missing", "--baseline", "average"), "--missing needs a row that runs a network"),
        (("--missing-pairs", 0), "--missing-pairs out of range"),
    ):
        with pytest.raises(InputError, match=said):
            _evaluate("--data", pairs, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _row(method, stem, **figures):
    base = {"method": method, "set": "s", "stem": stem, "modality": "visible", "region": "half"}
    return base | dict.fromkeys(missing.FIGURES) | figures


def test_summary_by_hand():
    pair_set = PairSet(name="s", spec="s", pairs=())
    rows = [_row("ours", stem, difference=d, seam=1.0) for stem, d in zip("abc", (1.0, 5.0, 3.0))]
    rows += [_row("theirs", stem, difference=d, seam=None) for stem, d in zip("abc", (2.0, 4.0, 9.0))]
    found = missing.summarize(rows, pair_set, ["theirs"], BootstrapConfig(resamples=200)).methods
    ours = found["ours"]["visible"]["half"]["difference"]
    assert (ours.mean, ours.worst, ours.worst_stem, ours.pairs) == (3.0, 5.0, "b", 3)
    against = ours.minus["theirs"]
    assert (against.mean, against.wins, against.losses) == (-2.0, 2, 1)  # down is better
    assert (1.0 <= ours.low <= 3.0 <= ours.high <= 5.0) and (-6.0 <= against.low <= -2.0 <= against.high <= 1.0)
    assert "seam" not in found["theirs"]["visible"]["half"] and found["ours"]["visible"]["half"]["seam"].minus == {}
    assert missing.summarize(rows, PairSet(name="t", spec="t", pairs=()), [], BootstrapConfig()) is None


def test_a_table_says_what_meets_the_bar():
    def figures(**values):
        return {
            name: missing.MissingFigure(mean=v, low=None, high=None, worst=v, worst_stem="a", pairs=1, minus={})
            for name, v in values.items()
        }

    good, bad = figures(SSIM=0.97, difference=3.0), figures(SSIM=0.969, difference=3.1)
    part = figures(difference=3.01, seam=0.4, hard_seam=12.0)
    of = {"infrared": {WHOLE: good, **dict.fromkeys(REGIONS[1:], part)}}
    of["visible"] = {WHOLE: bad, **dict.fromkeys(REGIONS[1:], figures(seam=1.0, hard_seam=2.0))}
    summary = SetSummary(
        spec="s", pairs=4, total=4, left_out=[], labelled_pairs=0, methods={"average": {}, "ours": {}}, differences={},
        missing=missing.MissingSummary(pairs=1, methods={"ours": of}),
    )
    lines = robustness.missing_table(summary).markdown().splitlines()
    assert lines[0].startswith("| missing on 1 of 4 pairs | SSIM ↑ | whole ↓ | band 5 % ↓ |")
    assert lines[2] == "| average |" + " - |" * 10
    assert lines[3].startswith("| ours, no infrared | **0.970 (0.970)** | **3.0 (3.0)** | _3.0 (3.0)_ |")
    assert lines[3].endswith("| 0.4 (0.4) / 12.0 |")
    assert lines[4].startswith("| ours, no visible | _0.969 (0.969)_ | _3.1 (3.1)_ | - |")
