"""The loop: honours its switches, gives the same whoever prepares its batches."""

from __future__ import annotations

import dataclasses
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import load_model
from isfl_ros.training.config import LossConfig, OptimizerConfig, parse_config
from isfl_ros.training.data import LoadedPair
from isfl_ros.training.losses import Objective, Output
from isfl_ros.training.step import learning_rate
from isfl_ros.training.throughput import Throughput
from isfl_ros.training.validation import validate


def weights(t):
    return {name: tensor.clone() for name, tensor in t.network.state_dict().items()}


def assert_same(a, b):
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_run_writes_a_model_that_loads(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run")
    directory = t.run(resume=False)
    network, info = load_model(directory)
    assert info.model == info.architecture == "isfl" and info.training["steps"] == 6 and info.training["pairs"] == 4
    assert_same(network.state_dict(), weights(t))
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_000003", "step_000006"]


def test_seed_decides_everything(make_trainer, tmp_path):
    a, b, c = (make_trainer(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for t in (a, b, c):
        t.train_step()
    assert_same(weights(a), weights(b))
    assert not torch.equal(a.network.head.conv.weight, c.network.head.conv.weight)


def test_statistics_are_moved_by_the_passes_that_may(make_trainer, tmp_path):
    def moves(update, **interventions):
        t = make_trainer(tmp_path / f"{update}{len(interventions)}", batchnorm_update=update, interventions=interventions)
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


def test_frozen_norm_uses_and_keeps_its_statistics(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run")
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
def test_switches_of_the_yaml(make_trainer, tmp_path, values):
    t = make_trainer(tmp_path / "run", **values)
    before = weights(t)
    terms = t.train_step()
    assert np.isfinite(terms["loss"])
    assert terms["loss"] == pytest.approx(sum(v for k, v in terms.items() if k != "loss"), rel=1e-5)
    assert any(not torch.equal(before[k], v) for k, v in weights(t).items())
    if values.get("loss", {}).get("alpha") == 0.0:
        assert set(terms) == {"loss", "intensity", "structure"}


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3}, {"cache": "cache"}], ids=str)
def test_neither_workers_nor_cache_change_a_run(make_trainer, tmp_path, options):
    plain = make_trainer(tmp_path / "plain", data={"sets": ["set", "labelled"], "patch": 32, "batch": 4}, accumulate=2)
    plain.run(resume=False)
    if "cache" in options:
        options = {"cache": tmp_path / "cache"}
    before = threading.active_count()
    other = make_trainer(
        tmp_path / "other", data={"sets": ["set", "labelled"], "patch": 32, "batch": 4}, accumulate=2, **options
    )
    other.run(resume=False)
    assert_same(weights(plain), weights(other))
    assert threading.active_count() == before


def test_a_worker_that_fails_ends_the_run_and_no_thread_stays(make_trainer, tmp_path, monkeypatch):
    t = make_trainer(tmp_path / "run", workers=2)
    cut = t.sampler.cut

    def tear(step, slots):
        if step == 2:
            raise OSError("the disk is gone")
        return cut(step, slots)

    monkeypatch.setattr(t.sampler, "cut", tear)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        t.run(resume=False)
    assert t.step == 2 and threading.active_count() == before


def test_throughput_is_reported(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run", interventions={"per_step": 2})
    directory = t.run(resume=False)
    facts = load_model(directory)[1].training["throughput"]
    assert facts == t.throughput
    assert facts["measured_steps"] == 3 and facts["processes"] == 1 and facts["precision"] == "fp32" and facts["hardware"]
    assert facts["passes_per_second"] == pytest.approx(3 * facts["images_per_second"])


def test_throughput_leaves_the_first_steps_out():
    meter = Throughput(images=8, steps=100)
    assert meter.figures() == {}
    for index in range(100):
        meter.add(50.0 if index < 10 else 0.5, 5)
    assert meter.figures() == {"images_per_second": 16.0, "passes_per_second": 80.0} and meter.steps == 90


def test_persons_reach_the_objective(make_trainer, tmp_path):
    data = {"sets": ["labelled"], "patch": 48, "batch": 3}
    t = make_trainer(tmp_path / "run", data=data, loss={"people": 1.0})
    assert t.train_step()["people"] > 0.0
    unlabelled = make_trainer(tmp_path / "other", loss={"people": 1.0})
    assert "people" not in unlabelled.train_step()


def test_training_learns(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run", steps=40, optimizer={"lr": 3e-3}, batchnorm_freeze=1.0)
    losses = [t.train_step()["loss"] for _ in range(40)]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_another_configuration_does_not_continue_a_run(make_trainer, tmp_path):
    make_trainer(tmp_path / "run").run(resume=False)
    with pytest.raises(InputError, match="another configuration; expected steps 6; got 7"):
        make_trainer(tmp_path / "run", steps=7)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 6


def test_learning_rate():
    c = parse_config({"steps": 101, "optimizer": {"lr": 1.0, "schedule": "cosine", "least_lr": 0.1, "warmup_steps": 10}}, "test")
    assert learning_rate(c, 0) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate(c, 50) == pytest.approx(0.55)
    assert learning_rate(c, 100) == pytest.approx(0.1)
    assert learning_rate(dataclasses.replace(c, optimizer=OptimizerConfig(lr=0.5)), 77) == 0.5


def test_validation_leaves_labelled_persons_out_as_training_does():
    rng = np.random.default_rng(0)
    people = np.zeros((48, 64), np.uint16)
    people[10:30, 20:28] = 1
    pictures = [rng.integers(0, 200, people.shape, dtype=np.uint8) for _ in range(2)]
    standing_out = torch.from_numpy(people > 0)[None, None] * 0.2
    objective = Objective(LossConfig(intensity=0.0, structure=0.0, alpha=0.0, beta=0.0, base=1.0))
    found = {}
    for numbers in (people, None):
        writer = SimpleNamespace(
            add_image=lambda *_: None,
            add_scalar=lambda name, value, step: found.update({(name, numbers is not None): value}),
        )
        validate(
            [LoadedPair("p", *pictures, numbers)],
            lambda visible, infrared: Output(0.5 * (visible + infrared) + standing_out, []),
            objective,
            writer,
            step=3,
            device=torch.device("cpu"),
        )
    assert found["validation/base", True] == pytest.approx(0.0, abs=1e-6)
    assert found["validation/base", False] > 0.01
