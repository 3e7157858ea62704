"""YAML files: the shipped ones say what they mean, the others are refused by name."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import yaml

from isfl_ros.errors import InputError
from isfl_ros.io.dataset import select_pairs
from isfl_ros.resources import shared_directory
from isfl_ros.training.config import LossConfig, parse_config, read_config, recipe_path

SHIPPED = sorted(path.stem for path in (shared_directory() / "config" / "train").glob("*.yaml"))


def test_all_recipes_of_the_documentation_are_shipped():
    assert {"vehicle", "vehicle-cpu", "edge", "paper-text", "paper-text-cpu", "release"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_valid(name):
    c = read_config(recipe_path(name))
    assert c.recipe == name and c.data.sets
    assert not any("llvip" in s for s in c.data.sets), "LLVIP's terms forbid shipping weights trained on it"


@pytest.mark.parametrize("name", SHIPPED)
def test_patches_of_shipped_configurations_fit_the_pairs_and_spare_the_test_sets(real_data, name):
    with (real_data / "MANIFEST.csv").open(newline="") as file:
        rows = {real_data / row["ir_file"]: row for row in csv.DictReader(file)}
    c = read_config(recipe_path(name))
    used = [rows[pair.thermal] for spec in c.data.sets for pair in select_pairs(spec, root=real_data)]
    assert min(int(row[side]) for row in used for side in ("width", "height")) >= c.data.patch
    assert not {"tno", "tno_extra", "m3fd", "llvip_train", "llvip_test"} & {row["set"] for row in used}
    assert not [row["name"] for row in used if row["set"] == "m3svd" and row["name"].startswith(("0111_1716", "0111_1803"))]
    held_out = {pair.thermal for pair in select_pairs("MANIFEST.csv:set=msrs_test,outside=00130..01190", root=real_data)}
    assert len(held_out) == 80 and not held_out & {real_data / row["ir_file"] for row in used}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown key 'stepz'"),
        ("loss: {gamma: 1}", "unknown key 'gamma'"),
        ("loss: {alpha: [1]}", "alpha has the wrong type"),
        ("loss: {entropy: none}", "loss.entropy out of range"),
        ("network: {depth: 2}", "unknown key 'depth'"),
        ("steps: many", "steps has the wrong type"),
        ("interventions: {identical: 2}", "identical has the wrong type"),
        ("[1, 2]", "not a mapping"),
        ("seed: -1", "seed out of range"),
        ("accumulate: 0", "accumulate out of range"),
        ("precision: fp8", "precision out of range"),
        ("batchnorm_freeze: -0.1", "batchnorm_freeze out of range"),
        ("model: u2net", "model out of range; expected one of isfl"),
        ("dictionary: {regions: 2}", "dictionary out of range; expected left out, or its defaults: model isfl has no"),
        ("data: {sharpen: -0.5}", "data.sharpen out of range"),
        ("loss: {intensity_target: mean}", "loss.intensity_target out of range"),
        ("architecture: baffm-large", "architecture out of range"),
        ("distillation: {weight: 1}", "distillation.teacher out of range; expected a model"),
        ("distillation: {weight: -1}", "distillation.weight out of range"),
        ("distillation: {teacher: 3}", "teacher has the wrong type"),
        ("data: {sets: [2024]}", "sets has the wrong type"),
        ("loss: {intensity: 0, structure: 0}", "loss out of range"),
        ("loss: {structure_gain: .nan}", "loss.structure_gain out of range"),
        ("optimizer: {clip_norm: -1}", "optimizer.clip_norm out of range"),
        ("optimizer: {warmup_steps: -3}", "optimizer.warmup_steps out of range"),
        ("{1: 2, a: 3}", "unknown key 1"),
        ("a: [", "is no YAML"),
    ],
)
def test_bad_yaml_is_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "c.yaml")


def test_numbers_as_yaml_writes_them():
    document = yaml.safe_load("optimizer: {lr: 1e-4}\nloss: {alpha: 1}")
    c = parse_config(document, "text")
    assert c.optimizer.lr == 1e-4 and c.loss.alpha == 1.0


@pytest.mark.parametrize("name", ["vehicle-cpu", "edge"])
def test_one_objective_for_all_that_a_vehicle_runs(name):
    assert read_config(recipe_path(name)).loss == read_config(recipe_path("vehicle")).loss != LossConfig()


def test_a_recipe_replaces_keys_of_the_one_it_is_based_on(tmp_path):
    (tmp_path / "first.yaml").write_text(
        "recipe: first\nsteps: 7\ndata: {patch: 64, sets: [a, b]}\nloss: {ssim: 2, base: 1}\nnetwork: {width: 8}"
    )
    (tmp_path / "second.yaml").write_text(
        "based_on: first.yaml\nrecipe: second\ndata: {sets: [c]}\nloss: {ssim: 3}\nnetwork: {grid: 4}"
    )
    (tmp_path / "third.yaml").write_text("based_on: second.yaml\nloss: {ssim: 4}")
    c = read_config(tmp_path / "third.yaml")
    assert (c.recipe, c.steps, c.data.patch, c.data.sets) == ("second", 7, 64, ("c",))
    assert (c.loss.ssim, c.loss.base, c.network) == (4.0, 1.0, {"width": 8, "grid": 4})
    (tmp_path / "mine.yaml").write_text("based_on: vehicle\nsteps: 3")
    vehicle = read_config(recipe_path("vehicle"))
    assert read_config(tmp_path / "mine.yaml") == dataclasses.replace(vehicle, steps=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("based_on: c.yaml", "based on itself.*c.yaml -> c.yaml"),
        ("based_on: other.yaml", "other.yaml, which c.yaml is based on, cannot be read"),
        ("based_on: nothing", "nothing.yaml, which c.yaml is based on, cannot be read"),
        ("based_on: [vehicle]", "based_on has the wrong type"),
        ("based_on: list.yaml", "list.yaml, which c.yaml is based on, is not a mapping"),
        ("based_on: vehicle\nloss: {gamma: 1}", "unknown key 'gamma'"),
        ("based_on: vehicle\nloss: 3", "c.yaml: loss is not a mapping"),
    ],
)
def test_a_bad_base_is_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "c.yaml")
