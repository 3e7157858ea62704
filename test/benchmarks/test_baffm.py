"""The second paper's tables: which trainings, when they are kept, and what is made of their scores."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import cv2
import numpy as np
import pytest
import yaml

from isfl_ros.benchmarks import baffm, baffm_figures
from isfl_ros.benchmarks.baffm import TablesConfig, training_of, trials_of
from isfl_ros.cli.main import main as isfl
from isfl_ros.errors import InputError

pytest.importorskip("sklearn", reason="scikit-learn is an optional dependency: pip install 'isfl_ros[train]'")


# -- figures ----------------------------------------------------------------------------------------------------------


def scores_of(values: dict[tuple[str, str], list[float]]) -> baffm_figures.Scores:
    """Every metric of picture k of a set is the k-th value; Nabf too."""
    return {
        key: {f"p{k}": dict.fromkeys(baffm_figures.SHOWN, value) for k, value in enumerate(numbers)}
        for key, numbers in values.items()
    }


def test_student_interval_by_hand():
    mean, deviation, low, high = baffm_figures.student_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and deviation == pytest.approx(math.sqrt(7 / 3))
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)  # t, two degrees of freedom, 97.5 %
    assert (low, high) == (pytest.approx(7 / 3 - half, rel=1e-6), pytest.approx(7 / 3 + half, rel=1e-6))
    assert baffm_figures.student_interval([5.0]) == (5.0, 0.0, None, None)


def test_variants_are_compared_seed_by_seed():
    scores = scores_of(
        {
            ("a0", "s"): [1.0, 3.0], ("a1", "s"): [4.0, 6.0], ("a2", "s"): [8.0, 10.0],
            ("b0", "s"): [1.0, 2.0], ("b1", "s"): [4.0, 5.0], ("b2", "s"): [8.0, 9.0],
        }
    )
    found = baffm_figures.compare(scores, ["a0", "a1", "a2"], ["b0", "b1", "b2"], ["s"])["s"]
    row = found["metrics"]["MI"]
    # Means differ by far more from seed to seed than by variant; the differences are 0.5 every time.
    assert (row["ours"], row["theirs"]) == (pytest.approx(16 / 3), pytest.approx(29 / 6))
    assert (row["difference"], row["low"], row["high"]) == (0.5, 0.5, 0.5)
    assert (row["seeds_better"], row["seeds"]) == (3, 3)
    assert found["metrics"]["Nabf"]["seeds_better"] == 0, "less is better there"
    assert found["better_on"] == found["clear_on"] == list(baffm_figures.HEADLINE)
    worse = baffm_figures.compare(scores, ["b0"], ["a0"], ["s"])["s"]
    assert worse["better_on"] == worse["clear_on"] == [] and worse["metrics"]["MI"]["low"] is None


def test_an_interval_over_0_is_not_clear():
    scores = scores_of({("a0", "s"): [1.0], ("a1", "s"): [2.0], ("b0", "s"): [0.0], ("b1", "s"): [1.9]})
    found = baffm_figures.compare(scores, ["a0", "a1"], ["b0", "b1"], ["s"])["s"]
    assert found["better_on"] == list(baffm_figures.HEADLINE) and found["clear_on"] == []


# -- which trainings --------------------------------------------------------------------------------------------------


def test_trials_of_every_part():
    names = {part: [t.name for t in trials_of(part, (0, 1))] for part in baffm.PARTS}
    assert names == {
        "adjustment": ["baffm-s0", "without-s0", "baffm-s1", "without-s1"],
        "size": ["n20-s0", "baffm-s0", "n30-s0", "n20-s1", "baffm-s1", "n30-s1"],
        "bias": ["night-s0", "night-without-s0", "night-s1", "night-without-s1"],
        "gate": ["gate-s0", "baffm-s0", "gate-s1", "baffm-s1"],
        "comparison": ["baffm-s0"],
    }


def test_trials_differ_from_the_recipe_in_what_they_are_about(tmp_path):
    config = TablesConfig(data=tmp_path, out=tmp_path, steps=7)
    trainings = {}
    for part in baffm.PARTS:
        for trial in trials_of(part, (3,)):
            training = training_of(trial, config)
            assert trainings.setdefault(trial.name, training) == training, "one name, one training"
    base = trainings["baffm-s3"]
    assert (base.seed, base.steps) == (3, 7)
    assert dataclasses.replace(trainings["without-s3"], network={}) == base
    assert trainings["n30-s3"].network_config().prototypes == 30 and base.network_config().prototypes == 25
    assert trainings["gate-s3"].network_config().gate and not base.network_config().gate
    night = trainings["night-s3"]
    assert all("exclude=*D" in spec for spec in night.data.sets) and dataclasses.replace(night, data=base.data) == base


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parts": ("speed",)}, "unknown part; expected some of adjustment"),
        ({"seeds": ()}, "--seeds out of range"),
        ({"seeds": (1, 1)}, "--seeds out of range"),
        ({"jobs": 0}, "--jobs out of range"),
        ({"threads": -1}, "--threads out of range"),
    ],
)
def test_bad_requests_are_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        TablesConfig(data=tmp_path, out=tmp_path, **values)


def test_a_recipe_that_varies_what_the_trials_vary_is_refused(tmp_path):
    varied = {"model": "baffm", "network": {"gate": True}}
    for document, message in (({"model": "isfl"}, "another model"), (varied, "sets network.gate")):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        config = TablesConfig(data=tmp_path, out=tmp_path, recipe=str(path))
        with pytest.raises(InputError, match=message):
            baffm.make_tables(config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml"], "refused before anything is written"


# -- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pairs in folders that stand for every set."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("train", "dark", "test"):
        for modality in ("ir", "vi"):
            (root / name / modality).mkdir(parents=True)
            for index in range(4):
                noise = cv2.GaussianBlur(rng.integers(0, 256, (49, 63), np.uint8), (0, 0), 2)
                cv2.imwrite(str(root / name / modality / f"{index}.png"), noise)
    return root


@pytest.fixture
def config(tmp_path, data):
    recipe = {
        "model": "baffm",
        "network": {"width": 4, "entries": 3, "query": 2, "scales": 2},
        "data": {"sets": ["train"], "patch": 32, "batch": 2},
        "dictionary": {"backbone": "isfl", "regions": 3},
        "interventions": dict.fromkeys(("complementary", "identical", "drop_infrared", "drop_visible"), False),
        "loss": {"alpha": 0.0, "beta": 0.0},
        "steps": 2,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return TablesConfig(
        data=data, out=tmp_path / "out", recipe=str(path), seeds=(0, 1), threads=1, sets={"one": "test"},
        night=("dark",), scenes={"day": "test", "night": "dark"},
    )


@pytest.fixture
def calls(monkeypatch):
    """Verbs run in this process, one dictionary size for all (there are only four pictures)."""
    made = []

    def run(*words):
        made.append(words)
        if isfl([*words]) != 0:
            raise InputError(f"isfl {words[0]} failed")

    monkeypatch.setattr(baffm, "_isfl", run)
    monkeypatch.setattr(baffm, "SIZES", (2, 25, 4))
    training_of = baffm.training_of

    def small(trial, config):
        training = training_of(trial, config)
        network = {"prototypes": 3, **training.network}
        return dataclasses.replace(training, network=network)

    monkeypatch.setattr(baffm, "training_of", small)
    return made


@pytest.mark.slow
def test_every_part_from_one_command_and_again_without_training(config, calls, capsys):
    documents = baffm.make_tables(config)
    trained = [words[1].split("/")[-1] for words in calls if words[0] == "train"]
    assert len(trained) == len(set(trained)) == 2 * 7, "a training that several parts need is made once"
    assert {p.name for p in config.out.glob("*.json")} == {f"{part}.json" for part in baffm.PARTS}
    found = documents["adjustment"]["comparison"]["one"]
    per_image = config.out / "evaluation" / "adjustment" / "per_image.csv"
    with per_image.open() as file:
        rows = [r for r in csv.DictReader(file) if r["method"] in ("baffm-s0", "baffm-s1")]
    assert found["metrics"]["VIF"]["ours"] == pytest.approx(np.mean([float(r["VIF"]) for r in rows]))
    assert found["metrics"]["VIF"]["seeds"] == 2
    assert set(documents["bias"]["comparison"]) == {"day", "night"}
    assert set(documents["size"]["means"]["one"]) == {"n2", "baffm", "n4"}
    assert {"baffm", "isfl", "average", "maximum"} <= set(documents["comparison"]["means"]["one"])
    assert documents["comparison"]["costs"]["baffm"]["parameters"] > 0
    with (config.out / "evaluation" / "comparison" / "missing.csv").open() as file:
        whole = [r for r in csv.DictReader(file) if r["method"] == "baffm-s0" and r["region"] == "whole"]
    without = documents["comparison"]["missing"]["one"]["baffm"]
    for modality in ("visible", "infrared"):
        values = [float(r["SSIM"]) for r in whole if r["modality"] == modality]
        assert len(values) == 4 and without[modality]["SSIM"] == pytest.approx(np.mean(values))
    text = (config.out / "tables.md").read_text()
    assert text.count("## ") == 5 and "2 seeds" in text
    for path in config.out.glob("*.json"):
        assert json.loads(path.read_text())["training"]["model"] == "baffm"
    calls.clear()
    again = baffm.make_tables(dataclasses.replace(config, parts=("adjustment",)))
    assert [words[0] for words in calls] == ["evaluate"]
    assert again["adjustment"]["comparison"] == documents["adjustment"]["comparison"]


def test_means_with_a_camera_missing(tmp_path):
    lines = ["method,set,stem,modality,region,SSIM,difference,seam,hard_seam"]
    lines += ["m,one,a,visible,whole,0.5,10,,", "m,one,b,visible,whole,0.7,20,,", "m,one,a,infrared,whole,0.9,1,,"]
    lines += ["m,one,a,visible,half,,4,1,1", "m,one,b,visible,band5,,,,", "m,one,b,visible,holes,,8,1,1"]
    (tmp_path / "missing.csv").write_text("\n".join(lines))
    found = baffm.baffm_figures.read_missing(tmp_path / "missing.csv")
    assert found == {"one": {"m": {
        "visible": {"SSIM": pytest.approx(0.6), "difference": 15.0, "parts": 6.0},
        "infrared": {"SSIM": 0.9, "difference": 1.0},
    }}}
    text = baffm.baffm_figures._missing_markdown(found)
    assert "| one | `m` | visible | 0.6000 | 15.00 | 6.00 |" in text and "| one | `m` | infrared | 0.9000 | 1.00 | - |" in text


def test_an_interrupted_part_goes_on(config, calls, monkeypatch):
    """A training that was cut is trained on; the one that is done is kept; another configuration is refused."""
    run = baffm._isfl

    def breaks(*words):
        if "without-s0" in words[1]:
            raise KeyboardInterrupt
        return run(*words)

    one = dataclasses.replace(config, parts=("adjustment",), seeds=(0,))
    monkeypatch.setattr(baffm, "_isfl", breaks)
    with pytest.raises(KeyboardInterrupt):
        baffm.make_tables(one)
    weights = config.out / "runs" / "baffm-s0" / "model" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(baffm, "_isfl", run)
    calls.clear()
    document = baffm.make_tables(one)["adjustment"]
    assert [words[0] for words in calls] == ["train", "evaluate"] and weights.stat().st_mtime_ns == before
    assert "| MI ↑ |" in document["markdown"] and "1 seed)" in document["markdown"]
    with pytest.raises(InputError, match="isfl train failed"):  # which says that it is another run
        baffm.make_tables(dataclasses.replace(one, steps=3))


def test_a_failed_verb_is_named(monkeypatch):
    with pytest.raises(InputError, match="isfl fuse failed; got exit status 2"):
        baffm._isfl("fuse", "--nonsense")


def test_command_line_refuses_in_one_line(tmp_path, capsys):
    assert baffm.main(["--data", str(tmp_path), "--out", str(tmp_path / "o"), "--parts", "speed"]) == 2
    assert "baffm: error: unknown part" in capsys.readouterr().err
