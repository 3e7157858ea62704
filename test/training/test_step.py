"""A step: parts of a batch, the teacher, another model, what a device has not."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from isfl_ros.errors import InputError
from isfl_ros.images import mask_invalid
from isfl_ros.network import checkpoint as network_checkpoint
from isfl_ros.network.checkpoint import load_model
from isfl_ros.network.config import ARCHITECTURES
from isfl_ros.training import losses

FROZEN = {"batchnorm_freeze": 0.0}


def statistics(t):
    return torch.cat([b.flatten() for n, b in t.network.named_buffers() if n.endswith(("running_mean", "running_var"))])


def test_parts_of_a_batch_give_its_losses(make_trainer, tmp_path):
    parts = 4
    whole = make_trainer(tmp_path / "whole", steps=20, **FROZEN)
    cut = make_trainer(tmp_path / "cut", steps=20, accumulate=parts, **FROZEN)
    passes = []
    cut.network.register_forward_pre_hook(lambda module, arguments: passes.append(arguments[0].shape[0]))
    for _ in range(20):
        one, other = whole.train_step(), cut.train_step()
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], abs=1e-5), name
    assert passes == [4 // parts] * (20 * 5 * parts)


def test_live_norms_see_the_parts(make_trainer, tmp_path):
    whole, cut = (make_trainer(tmp_path / str(n), accumulate=n, batchnorm_freeze=1.0) for n in (1, 2))
    assert whole.train_step()["loss"] != pytest.approx(cut.train_step()["loss"], abs=1e-5)
    tracked = [next(m for m in t.network.modules() if isinstance(m, nn.BatchNorm2d)).num_batches_tracked for t in (whole, cut)]
    assert [int(n) for n in tracked] == [5, 10]


def test_a_batch_that_cannot_be_cut_is_refused(make_trainer, tmp_path):
    with pytest.raises(InputError, match="batch of 4 cannot be cut into 3 parts"):
        make_trainer(tmp_path / "run", accumulate=3)


def test_norms_frozen_from_the_start_stay_as_they_are(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run", **FROZEN)
    before = statistics(t)
    t.train_step()
    assert torch.equal(before, statistics(t))


def test_fp16_needs_cuda(make_trainer, tmp_path):
    with pytest.raises(InputError, match="fp16 needs a CUDA device; got device cpu.*choose precision bf16 or fp32"):
        make_trainer(tmp_path / "run", precision="fp16")


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_leaves_the_weights(make_trainer, tmp_path, monkeypatch, broken):
    t = make_trainer(tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in t.network.named_parameters()}
    if broken == "loss":
        monkeypatch.setattr(losses, "ssim", lambda a, b: a * math.nan)
    else:
        t.network.head.conv.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(InputError, match=f"{broken} is not finite at step 0"):
        t.train_step()
    for name, tensor in t.network.named_parameters():
        assert torch.equal(before[name], tensor)


def test_a_run_that_diverges_ends_and_a_single_step_does_not_end_it(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run", steps=60)
    factor = 1e12
    t.network.head.conv.weight.register_hook(lambda gradient: gradient * factor)
    for step in range(25):
        factor = 1.0 if step == 10 else 1e12
        t.train_step()
    with pytest.raises(InputError, match="run diverges at step 30; expected a gradient of a norm up to 1e\\+07; got .* 20 steps in a row"):
        while True:
            t.train_step()
    assert t.step == 30


# -- distillation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(make_trainer, tmp_path_factory):
    """Folder of a trained model."""
    t = make_trainer(tmp_path_factory.mktemp("teacher") / "run", seed=11)
    for _ in range(3):
        t.train_step()
    return t.export()


def with_teacher(teacher, weight=1.0, **values):
    return {"distillation": {"teacher": str(teacher), "weight": weight}, **FROZEN, **values}


def test_who_equals_the_teacher_has_nothing_to_learn_from_it(make_trainer, teacher, tmp_path):
    same, other = (make_trainer(tmp_path / name, **with_teacher(teacher)) for name in ("same", "other"))
    same.network.load_state_dict(load_model(teacher)[0].state_dict())
    assert same.train_step()["distillation"] < 1e-6
    assert other.train_step()["distillation"] > 1e-3


def test_the_teacher_sees_what_the_student_sees_and_does_not_change(make_trainer, teacher, tmp_path):
    t = make_trainer(tmp_path / "run", **with_teacher(teacher, weight=2.0))
    frozen = t._learner.teacher._network
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    seen = {"student": [], "teacher": []}
    for name, network in (("student", t.network), ("teacher", frozen)):
        network.register_forward_hook(
            lambda module, arguments, options, output, name=name: seen[name].append((arguments, options, output)), with_kwargs=True
        )
    terms = t.train_step()
    assert len(seen["student"]) == len(seen["teacher"]) == 5
    distances = []
    # The student's passes and the teacher's come in the same order.
    for (pictures, options, output), (shown, shown_options, answer) in zip(seen["student"], seen["teacher"]):
        options = {key: value for key, value in options.items() if key != "return_gates"}
        assert all(torch.equal(a, b) for a, b in zip(pictures, shown))
        assert options.keys() == shown_options.keys() and all(torch.equal(options[k], shown_options[k]) for k in options)
        distances.append(float(losses.distillation(output[0], answer).detach()))
    assert terms["distillation"] == pytest.approx(2.0 * sum(distances) / 5, rel=1e-5)
    assert terms["loss"] == pytest.approx(sum(v for k, v in terms.items() if k != "loss"), rel=1e-5)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.state_dict().items())


def test_the_description_names_the_teacher(make_trainer, teacher, tmp_path):
    directory = make_trainer(tmp_path / "run", **with_teacher(teacher, steps=1)).run(resume=False)
    facts = json.loads((directory / "model.json").read_text())["training"]["teacher"]
    assert facts["sha256"] == hashlib.sha256((teacher / "weights.safetensors").read_bytes()).hexdigest()
    assert facts["model"] == "model" and facts["architecture"] == "isfl" and facts["recipe"] == "custom"


def test_another_teacher_does_not_continue_a_run(make_trainer, teacher, tmp_path):
    values = with_teacher(tmp_path / "teacher", steps=2)
    network, info = load_model(teacher)
    network_checkpoint.save_model(tmp_path / "teacher", network, info)
    make_trainer(tmp_path / "run", **values).run(resume=False)
    with torch.no_grad():
        network.head.conv.bias += 1
    network_checkpoint.save_model(tmp_path / "teacher", network, info, overwrite=True)
    with pytest.raises(InputError, match="has learnt from another teacher"):
        make_trainer(tmp_path / "run", **values).run(resume=True)


def test_teachers_that_do_not_fit_are_refused(make_trainer, teacher, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no model 'nobody'"):
        make_trainer(tmp_path / "a", **with_teacher("nobody"))
    monkeypatch.setattr("isfl_ros.network.model.MINIMUM_SIZE", 64)
    with pytest.raises(InputError, match="cannot take patches of 32 px; got picture too small"):
        make_trainer(tmp_path / "b", **with_teacher(teacher))


def test_a_teacher_of_no_weight_is_not_loaded(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run", distillation={"teacher": "nobody", "weight": 0.0})
    assert "distillation" not in t.train_step()


# -- another model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    bias: float = 0.0


class Average(nn.Module):
    """A network without gates and without a choice of implementations."""

    def __init__(self, config):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.2 + config.bias))

    def forward(self, visible, infrared, *, valid_visible=None, valid_infrared=None):
        visible, infrared = mask_invalid(visible, valid_visible), mask_invalid(infrared, valid_infrared)
        return self.share * visible + (1 - self.share) * infrared


def test_another_model_is_trained_through_the_registry(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setitem(network_checkpoint.MODELS, "average", (AverageConfig, Average))
    monkeypatch.setitem(ARCHITECTURES, "average", AverageConfig())
    monkeypatch.setitem(ARCHITECTURES, "average-biased", AverageConfig(bias=0.1))
    base_only = {"intensity": 0.0, "structure": 0.0, "alpha": 0.0, "beta": 0.0, "base": 1.0}  # least at the mean of the two
    t = make_trainer(tmp_path / "a", model="average", network={}, loss=base_only, optimizer={"lr": 0.05}, steps=20)
    directory = t.run(resume=False)
    network, info = load_model(directory)
    assert (info.model, info.architecture, info.config) == ("average", "average", AverageConfig())
    assert isinstance(network, Average) and abs(float(network.share.detach()) - 0.5) < 0.1
    biased = make_trainer(tmp_path / "b", model="average", architecture="average-biased", network={})
    assert float(biased.network.share.detach()) == pytest.approx(0.3)
    with pytest.raises(InputError, match="architecture out of range; expected one of average, average-biased"):
        make_trainer(tmp_path / "c", model="average", architecture="isfl", network={})


def test_a_run_begins_with_the_weights_of_a_model(make_trainer, tmp_path):
    first = make_trainer(tmp_path / "first", seed=1)
    first.run(resume=False)
    folder = tmp_path / "first/model"
    second = make_trainer(tmp_path / "second", seed=2, initial=str(folder))
    begun, wanted = second.network.state_dict(), load_file(folder / "weights.safetensors")
    assert all(torch.equal(begun[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(InputError, match="initial: .*does not fit"):
        make_trainer(tmp_path / "third", initial=str(folder), network={"width": 8, "gate_width": 4, "scales": 2})
    with pytest.raises(InputError, match="nothing"):
        make_trainer(tmp_path / "fourth", initial=str(tmp_path / "nothing"))


def test_a_run_that_looks_at_validity_begins_with_weights_that_do_not(make_trainer, tmp_path):
    shape = {"width": 8, "gate_width": 4}
    blind = make_trainer(tmp_path / "blind", seed=1, network={**shape, "validity_input": False}, steps=2)
    blind.run(resume=False)
    folder = tmp_path / "blind/model"
    looks = make_trainer(tmp_path / "looks", seed=2, initial=str(folder), network={**shape, "validity_input": True}, steps=2)
    visible, infrared = torch.rand(2, 2, 1, 40, 44)
    valid = (torch.arange(44) < 22).expand(2, 1, 40, 44)
    with torch.no_grad():
        fused = [t.network.eval()(visible, infrared, valid_visible=valid) for t in (blind, looks)]
    assert torch.equal(*fused), "it computes the same until it has learned to look"
    looks.run(resume=False)
    with pytest.raises(InputError, match="initial: .*does not fit"):
        make_trainer(tmp_path / "back", initial=str(tmp_path / "looks/model"), network={**shape, "validity_input": False})
