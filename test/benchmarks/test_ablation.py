"""Ablations: variants of a recipe, trained once each, in one table."""

from __future__ import annotations

import csv
import dataclasses

import cv2
import numpy as np
import pytest
import yaml

from isfl_ros.benchmarks import ablation
from isfl_ros.errors import InputError
from isfl_ros.resources import shared_directory

BASE = {
    "network": {"width": 4, "gate_width": 4, "scales": 2},
    "data": {"sets": ["set"], "patch": 32, "batch": 2},
    "interventions": {"per_step": 1},
    "steps": 2,
    "variants": {"all": {}, "without": {"loss": {"beta": 0.0}, "network": {"cfi": False}}},
}


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    for folder in ("ir", "vi"):
        (tmp_path / "data" / "set" / folder).mkdir(parents=True)
        for stem in "ab":
            cv2.imwrite(str(tmp_path / "data" / "set" / folder / f"{stem}.png"), random.integers(0, 256, (48, 60), np.uint8))
    return tmp_path / "data"


def write(tmp_path, **changes):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(BASE | changes))
    return tmp_path / "mine.yaml"


def test_variants_are_trained_once_and_stand_in_one_table(data, tmp_path):
    words = [str(write(tmp_path)), "--data", str(data), "--out", str(tmp_path / "out"), "--sets", "small=set", "--threads", "1"]
    assert ablation.main(words) == 0
    models = {name: tmp_path / "out" / "runs" / name / "model" for name in ("all-seed0", "without-seed0")}
    trained = {name: (path / "weights.safetensors").stat().st_mtime_ns for name, path in models.items()}
    with (tmp_path / "out" / "evaluation" / "per_image.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"all-seed0", "without-seed0", "average"}
    assert ablation.main([*words, "--train-only"]) == 0
    assert trained == {name: (path / "weights.safetensors").stat().st_mtime_ns for name, path in models.items()}


def test_a_seed_has_a_run_of_its_own(data, tmp_path):
    configs = ablation.read_variants(write(tmp_path))
    models = ablation.train_variants(
        {"all": configs["all"]}, seeds=(1, 2), data=data, out=tmp_path / "out", device="cpu"
    )
    assert list(models) == ["all-seed1", "all-seed2"]
    with pytest.raises(InputError, match="the variants differ in their seed"):
        others = {"all": configs["all"], "more": dataclasses.replace(configs["all"], seed=4)}
        ablation.train_variants(others, seeds=(1, 2), data=data, out=tmp_path / "out", device="cpu")
    one, two = ((path / "weights.safetensors").read_bytes() for path in models.values())
    assert one != two


@pytest.mark.parametrize("path", sorted((shared_directory() / ablation.NAMED).glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_ablations_change_what_they_name(path):
    configs = ablation.read_variants(path)
    unnamed = {name: {k: v for k, v in vars(config).items() if k != "recipe"} for name, config in configs.items()}
    assert len(configs) >= 2
    assert all(a != b for n, a in unnamed.items() for m, b in unnamed.items() if n < m), "two variants are the same"
    assert not any("llvip" in s for config in configs.values() for s in config.data.sets)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (None, "has no variants"),
        ({}, "has no variants"),
        ({"a": 3}, "variant 'a' is not a mapping"),
        ({"a": {"loss": {"gamma": 1}}}, "variant a: loss has unknown key 'gamma'"),
    ],
)
def test_bad_variants_are_named(tmp_path, variants, message):
    with pytest.raises(InputError, match=message):
        ablation.read_variants(write(tmp_path, variants=variants))


def test_an_unknown_variant_and_a_set_without_a_name_are_refused(data, tmp_path, capsys):
    words = [str(write(tmp_path)), "--data", str(data), "--out", str(tmp_path / "out")]
    assert ablation.main([*words, "--only", "most"]) == 2
    assert "there is no variant most; expected one of all, without" in capsys.readouterr().err.replace("'", "")
    assert ablation.main([*words, "--only", "all", "--sets", "set"]) == 2
    assert "a set has no name" in capsys.readouterr().err
