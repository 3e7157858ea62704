"""Runs that are killed, damaged, old or somebody else's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import load_model
from isfl_ros.training import checkpoints

# What the killed process runs: the command line itself, stopped at a point that the test names. It blocks there, so that it is
# the kill that ends it and the moment is no matter of luck.
_KILLED = """
import os, sys
from isfl_ros.training import checkpoints
from isfl_ros.training.loop import Trainer

def block(where):
    print(where, flush=True)
    sys.stdin.read()

step, replace = Trainer.train_step, os.replace

def train_step(self):
    terms = step(self)
    if sys.argv[1] == "between checkpoints" and self.step == 8:
        block("stopped")
    return terms

def half_written(source, target):
    if sys.argv[1] == "while one is written" and str(target).endswith("checkpoints/step_000010"):
        os.truncate(os.path.join(source, "optimizer.safetensors"), 1000)
        block("stopped")
    replace(source, target)

Trainer.train_step, checkpoints.os.replace = train_step, half_written
from isfl_ros.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
LONG = {"steps": 14, "checkpoint_every": 5, "validate_every": 7, "accumulate": 2}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.fixture(scope="module")
def whole(make_trainer, tmp_path_factory):
    """Folder of the run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    make_trainer(out, workers=1, **LONG).run(resume=False)
    return out


@pytest.mark.parametrize("moment", ["between checkpoints", "while one is written"])
def test_killed_and_resumed_run_ends_with_the_same_bits(whole, make_trainer, document, pairs_root, tmp_path, moment):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document(**LONG)))
    out = tmp_path / "run"
    arguments = ["train", str(tmp_path / "c.yaml"), "--data", str(pairs_root), "--out", str(out), "--device", "cpu"]
    arguments += ["--threads", str(torch.get_num_threads()), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, moment, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert any(line.strip() == "stopped" for line in process.stdout), "it ended before it was killed"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == (["step_000005"] if moment == "between checkpoints" else [".step_000010", "step_000005"])
    resumed = make_trainer(out, **LONG)
    resumed.run(resume=True)
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert_same_bits(load_file(out / "checkpoints/step_000014" / name), load_file(whole / "checkpoints/step_000014" / name))
    assert (out / "model/weights.safetensors").read_bytes() == (whole / "model/weights.safetensors").read_bytes()
    ours, theirs = (json.loads((folder / "model/model.json").read_text()) for folder in (out, whole))
    assert ours["training"].pop("throughput")["measured_steps"] != theirs["training"].pop("throughput")["measured_steps"]
    assert ours == theirs
    assert not list((out / "checkpoints").glob(".*")), "what the kill left is cleared away"


def test_the_optimizer_is_part_of_it(whole, make_trainer, tmp_path):
    """Without its moments a resumed run is another one: the test above would notice a checkpoint that lacks them."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step_000014")
    t = make_trainer(tmp_path / "run", **LONG)
    t.load_newest_checkpoint()
    assert t.step == 10
    t._learner.optimizer.state.clear()
    while t.step < 14:
        t.train_step()
    final = load_file(whole / "checkpoints/step_000014/weights.safetensors")
    assert any(not torch.equal(tensor, final[name]) for name, tensor in t.network.state_dict().items())


def test_scale_of_the_loss_is_part_of_it(make_trainer, tmp_path):
    def scaled(out):
        t = make_trainer(out)
        # The scaler of CUDA does not run here; that of the CPU has the same state.
        t._learner.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        return t

    whole = scaled(tmp_path / "whole")
    for _ in range(6):
        whole.train_step()
    first = scaled(tmp_path / "halved")
    for _ in range(3):
        first.train_step()
    first.save_checkpoint()
    second = scaled(tmp_path / "halved")
    second.load_newest_checkpoint()
    assert second._learner.scaler.get_scale() == 16.0
    for _ in range(3):
        second.train_step()
    assert second._learner.scaler.state_dict() == whole._learner.scaler.state_dict()
    assert second._learner.scaler.get_scale() == 64.0
    assert_same_bits(second.network.state_dict(), whole.network.state_dict())


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_not_passed_over(whole, make_trainer, tmp_path, name, damage):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run/checkpoints/step_000014" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) * 3 // 4] ^= 0x55
        path.write_bytes(content)
    else:
        path.unlink()
    t = make_trainer(tmp_path / "run", **LONG)
    with pytest.raises(InputError, match="step_000014 is damaged.*continue from the one before"):
        t.load_newest_checkpoint()
    shutil.rmtree(path.parent)
    t.load_newest_checkpoint()
    assert t.step == 10


def test_a_kill_while_an_old_one_is_removed_leaves_no_half_under_its_name(make_trainer, tmp_path, monkeypatch):
    t = make_trainer(tmp_path / "run")
    for _ in range(3):
        t.train_step()
        t.save_checkpoint()
    real = shutil.rmtree
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    t.train_step()
    with pytest.raises(KeyboardInterrupt):
        t.save_checkpoint()
    monkeypatch.setattr(checkpoints.shutil, "rmtree", real)
    for folder in (tmp_path / "run/checkpoints").glob("step_*"):
        assert sorted(p.name for p in folder.iterdir()) == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    again = make_trainer(tmp_path / "run")
    again.load_newest_checkpoint()
    assert again.step in (3, 4)


def test_a_run_of_an_earlier_version_continues_and_says_so(whole, make_trainer, tmp_path, caplog):
    """Earlier versions knew fewer keys, wrote no digests, and had a moment for every parameter."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    document = json.loads((out / "config.json").read_text())
    for key in ("model", "batchnorm_sync", "distillation"):
        del document[key]
    del document["loss"]["people"]
    (out / "config.json").write_text(json.dumps(document))
    shutil.rmtree(out / "checkpoints/step_000014")
    (out / "checkpoints/step_000010/state.json").write_text('{"step": 10}\n')
    t = make_trainer(out, **LONG)
    with caplog.at_level("WARNING"):
        t.run(resume=True)
    assert "written by an older version" in caplog.text
    assert_same_bits(
        load_file(out / "model/weights.safetensors"), load_file(whole / "model/weights.safetensors")
    )


def test_a_configuration_that_cannot_be_read_any_more_is_named(whole, make_trainer, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    document = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(document | {"momentum": 0.9}))
    with pytest.raises(InputError, match="cannot be read any more.*unknown key 'momentum'"):
        make_trainer(tmp_path / "run", **LONG)
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is damaged"):
        make_trainer(tmp_path / "run", **LONG)


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (999999, 1000000):
        checkpoints.write_checkpoint(tmp_path, checkpoints.Checkpoint({"w": torch.ones(1)}, {}, {"step": step}))
    assert checkpoints.read_newest_checkpoint(tmp_path)[1].step == 1000000
    assert checkpoints.read_newest_checkpoint(tmp_path / "nothing") is None


def test_a_parameter_without_gradient_has_no_moments(make_trainer, tmp_path):
    t = make_trainer(tmp_path / "run")
    frozen = next(name for name, _ in t.network.named_parameters())
    dict(t.network.named_parameters())[frozen].requires_grad_(False)
    t.train_step()
    t.save_checkpoint()
    again = make_trainer(tmp_path / "run")
    again.load_newest_checkpoint()
    moments = checkpoints.moments_of(again.network, again._learner.optimizer)
    assert moments and not [name for name in moments if name.startswith(frozen)]


def test_export_is_loadable_and_checkpoints_are_durable(whole, monkeypatch, tmp_path):
    assert load_model(whole / "model")[1].training["steps"] == 14
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    checkpoints.write_checkpoint(tmp_path, checkpoints.Checkpoint({"w": torch.ones(1)}, {}, {"step": 1}))
    assert len(synced) == 4, "three files and their folder"
