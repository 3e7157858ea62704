"""The loop: resumes to the bit, honours its switches, names bad input."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from isfl_ros.errors import InputError
from isfl_ros.io.dataset import select_pairs
from isfl_ros.network.checkpoint import load_model
from isfl_ros.resources import shared_directory
from isfl_ros.training.config import DataConfig, parse_config, read_config
from isfl_ros.training.data import LoadedPair, PatchSampler
from isfl_ros.training.loop import Trainer, learning_rate


@pytest.fixture(scope="module")
def pairs_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for folder in ("ir", "vi"):
        (root / "set" / folder).mkdir(parents=True)
    for index in range(4):
        noise = cv2.GaussianBlur(rng.integers(0, 256, (61, 75, 3)).astype(np.uint8), (5, 5), 0)
        cv2.imwrite(str(root / "set" / "vi" / f"{index}.png"), noise)
        cv2.imwrite(str(root / "set" / "ir" / f"{index}.png"), noise[::-1, :, 0].copy())
    return root


def config(**values):
    document = {
        "network": {"width": 4, "gate_width": 4},
        "data": {"sets": ["set"], "validation": ["set"], "validation_pairs": 1, "patch": 32, "batch": 2, "least_scale": 0.7},
        "interventions": {"large": 0.5},
        "loss": {"fidelity": 1.0, "ssim": 0.1, "target": 0.1},
        "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 2, "clip_norm": 1.0},
        "steps": 6,
        "checkpoint_every": 3,
        "log_every": 2,
        "validate_every": 3,
        "batchnorm_freeze": 0.5,
    }
    return parse_config(document | values, "test")


def trainer(root, out, **values):
    return Trainer(config(**values), data_root=root, out=out, device="cpu")


def weights(t):
    return {name: tensor.clone() for name, tensor in t.network.state_dict().items()}


def assert_same(a, b):
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_run_writes_a_model_that_loads(pairs_root, tmp_path):
    t = trainer(pairs_root, tmp_path / "run")
    directory = t.run(resume=False)
    network, info = load_model(directory)
    assert info.architecture == "isfl" and info.training["steps"] == 6 and info.training["pairs"] == 4
    assert_same(network.state_dict(), weights(t))
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_000003", "step_000006"]


def test_resumed_run_ends_with_the_same_bits(pairs_root, tmp_path):
    whole = trainer(pairs_root, tmp_path / "whole")
    whole.run(resume=False)
    first = trainer(pairs_root, tmp_path / "halved")
    for _ in range(3):
        first.train_step()
    first.save_checkpoint()
    for _ in range(2):
        first.train_step()  # what a kill throws away
    # A kill in the middle of writing leaves a folder aside; it must neither be loaded nor be in the way.
    shutil.copytree(tmp_path / "halved/checkpoints/step_000003", tmp_path / "halved/checkpoints/.step_000005")
    second = trainer(pairs_root, tmp_path / "halved")
    second.run(resume=True)
    assert_same(weights(second), weights(whole))


def test_seed_decides_everything(pairs_root, tmp_path):
    a, b, c = (trainer(pairs_root, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for t in (a, b, c):
        t.train_step()
    assert_same(weights(a), weights(b))
    assert not torch.equal(a.network.head.conv.weight, c.network.head.conv.weight)


def test_statistics_are_moved_by_the_passes_that_may(pairs_root, tmp_path):
    def moves(update, **interventions):
        t = trainer(pairs_root, tmp_path / f"{update}{len(interventions)}", batchnorm_update=update, interventions=interventions)
        t.train_step()
        return [m.num_batches_tracked.item() for m in t.network.modules() if isinstance(m, nn.BatchNorm2d)][0], weights(t)

    count_all, all_weights = moves("all")
    assert count_all == 5, "each variant is a forward of its own"
    _, original = moves("original")
    off = {"complementary": False, "identical": False, "drop_infrared": False, "drop_visible": False}
    _, none = moves("original", **off)
    key = next(name for name in original if name.endswith("running_mean"))
    assert torch.equal(original[key], none[key]), "masked passes leave the statistics alone"
    assert not torch.equal(original[key], all_weights[key])


def test_frozen_norm_uses_and_keeps_its_statistics(pairs_root, tmp_path):
    t = trainer(pairs_root, tmp_path / "run")
    for _ in range(3):
        t.train_step()
    before = {k: v for k, v in weights(t).items() if "running" in k}
    t.train_step()
    assert t.step == 4 and all(not m.training for m in t.network.modules() if isinstance(m, nn.BatchNorm2d))
    assert_same(before, weights(t))


@pytest.mark.parametrize(
    "values",
    [
        {"loss": {"alpha": 0.0, "beta": 0.0}, "interventions": {k: False for k in ("complementary", "identical", "drop_infrared", "drop_visible")}},
        {"network": {"width": 4, "cfi": False}},
        {"precision": "bf16"},
        {"loss": {"intensity": 0.0, "necessity": "contrast", "entropy": "spatial", "consistency_gates": "masked"}},
    ],
    ids=["without interventions", "without CFI", "bf16", "other readings"],
)
def test_switches_of_the_yaml(pairs_root, tmp_path, values):
    t = trainer(pairs_root, tmp_path / "run", **values)
    before = weights(t)
    terms = t.train_step()
    assert np.isfinite(terms["loss"])
    assert terms["loss"] == pytest.approx(sum(v for k, v in terms.items() if k != "loss"), rel=1e-5)
    assert any(not torch.equal(before[k], v) for k, v in weights(t).items())
    if values.get("loss", {}).get("alpha") == 0.0:
        assert set(terms) == {"loss", "intensity", "structure"}


def test_training_learns(pairs_root, tmp_path):
    t = trainer(pairs_root, tmp_path / "run", steps=40, optimizer={"lr": 3e-3}, batchnorm_freeze=1.0)
    losses = [t.train_step()["loss"] for _ in range(40)]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_another_configuration_does_not_continue_a_run(pairs_root, tmp_path):
    trainer(pairs_root, tmp_path / "run").run(resume=False)
    with pytest.raises(InputError, match="another configuration"):
        trainer(pairs_root, tmp_path / "run", steps=7)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 6


def test_every_pair_comes_once_an_epoch_and_patches_stay_registered():
    pairs = [LoadedPair(str(i), np.full((40, 50), 10 * i, np.uint8), np.full((40, 50), 10 * i, np.uint8)) for i in range(6)]
    sampler = PatchSampler(pairs, DataConfig(sets=("x",), patch=32, batch=3), seed=0)
    seen = [round(float(v) * 25.5) for step in range(4) for v in sampler.batch(step)[0].mean(dim=(1, 2, 3))]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6)) and seen[:6] != seen[6:]
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (70, 90)).astype(np.uint8)
    sampler = PatchSampler([LoadedPair("t", texture, texture)], DataConfig(sets=("x",), patch=32, batch=8, least_scale=0.5), 0)
    visible, infrared = sampler.batch(0)
    assert torch.equal(visible, infrared), "one crop, scale and turn for both modalities"
    assert len({tuple(v.flatten().tolist()) for v in visible}) == 8


def test_learning_rate():
    c = config(steps=101, optimizer={"lr": 1.0, "schedule": "cosine", "least_lr": 0.1, "warmup_steps": 10})
    assert learning_rate(c, 0) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate(c, 50) == pytest.approx(0.55)
    assert learning_rate(c, 100) == pytest.approx(0.1)
    assert learning_rate(dataclasses.replace(c, optimizer=config().optimizer.__class__(lr=0.5)), 77) == 0.5


@pytest.mark.parametrize("name", ["vehicle", "vehicle-cpu", "paper-text", "release"])
def test_shipped_configurations_are_valid(name):
    c = read_config(shared_directory() / "config" / "train" / f"{name}.yaml")
    assert c.recipe == name and c.data.sets
    assert not any("llvip" in s for s in c.data.sets), "LLVIP's terms forbid shipping weights trained on it"


@pytest.mark.parametrize("name", ["vehicle", "vehicle-cpu", "paper-text", "release"])
def test_patches_of_shipped_configurations_fit_the_pairs_and_spare_the_test_sets(real_data, name):
    with (real_data / "MANIFEST.csv").open(newline="") as file:
        rows = {real_data / row["ir_file"]: row for row in csv.DictReader(file)}
    c = read_config(shared_directory() / "config" / "train" / f"{name}.yaml")
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
