"""Several processes are one: losses, statistics, files; and the failure of one is the failure of all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import load_model
from isfl_ros.training.distributed import World, launched

STEPS = 20
FROZEN = {
    "steps": STEPS,
    "batchnorm_freeze": 0.0,
    "log_every": 1,
    "checkpoint_every": 8,
    "data": {"sets": ["set", "labelled"], "validation": ["set"], "validation_pairs": 1, "patch": 32, "batch": 4, "least_scale": 0.7},
    "loss": {"fidelity": 1.0, "ssim": 0.1, "target": 0.1, "people": 0.5, "stability": 0.5, "necessity": "contrast"},
}


def torchrun(*arguments, processes=2):
    """Runs a program in several processes as users do; returns its exit status and what it said."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *map(str, arguments)],
        capture_output=True, text=True, timeout=600, env=environment | {"OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout + done.stderr


def logged(out):
    """Every training scalar of every step."""
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"] if tag.startswith("train/")}


@pytest.fixture(scope="module")
def single(make_trainer, tmp_path_factory):
    out = tmp_path_factory.mktemp("single") / "run"
    make_trainer(out, **FROZEN).run(resume=False)
    return out


def test_two_processes_have_the_losses_of_one(single, document, pairs_root, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document(**FROZEN)))
    out = tmp_path / "run"
    options = ["--data", pairs_root, "--out", out, "--device", "cpu", "--cache", tmp_path / "cache"]
    status, said = torchrun("-m", "isfl_ros.cli.main", "train", tmp_path / "c.yaml", *options)
    assert status == 0, said
    one, two = logged(single), logged(out)
    assert one.keys() == two.keys() >= {"train/loss", "train/fidelity", "train/people", "train/necessity", "train/stability"}
    for tag in one.keys() - {"train/gradient_norm"}:
        assert sorted(two[tag]) == list(range(1, STEPS + 1)), tag
        assert max(abs(one[tag][step] - two[tag][step]) for step in one[tag]) < 1e-5, tag
    # Losses that no step has changed would agree as well.
    assert abs(one["train/loss"][1] - one["train/loss"][STEPS]) > 1e-3
    assert len(list((out / "tensorboard").iterdir())) == 1 and said.count("images/s") == 1, "one process writes"
    info = load_model(out / "model")[1]
    assert info.training["throughput"]["processes"] == 2
    a, b = (load_file(folder / "model/weights.safetensors") for folder in (single, out))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


# Several short scenes in one start of two processes. Every process writes what it saw.
_SCENES = """
import copy, dataclasses, json, logging, shutil, sys
from pathlib import Path
import torch
import torch.distributed as dist
from isfl_ros.errors import InputError
from isfl_ros.training.config import parse_config
from isfl_ros.training.distributed import launched, process_group
from isfl_ros.training.loop import Trainer

root, out, document = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
world = launched()
logging.basicConfig(level=logging.INFO)
seen = {}

def trainer(name, **values):
    config = parse_config(copy.deepcopy(document) | values, "test")
    return Trainer(config, data_root=root, out=out / name, device="cpu", world=world)

def refusal(run):
    try:
        run()
    except (InputError, OSError) as error:
        return f"{type(error).__name__}: {error}"

with process_group(world, "cpu"):
    live = trainer("live", batchnorm_freeze=1.0)
    live.train_step()
    seen["statistics"] = [b.tolist() for n, b in live.network.named_buffers() if n.endswith(("running_mean", "running_var"))]
    seen["weights"] = torch.cat([p.detach().flatten() for p in live.network.parameters()]).tolist()

    seen["resumed at"] = []
    resumed = trainer("resumed", batchnorm_freeze=0.0)
    resumed.load_newest_checkpoint()
    seen["resumed at"] = resumed.step
    resumed.run(resume=True)

    seen["batch"] = refusal(lambda: trainer("a", data=document["data"] | {"batch": 3}))
    seen["options"] = refusal(lambda: trainer("b", seed=world.rank))
    seen["teacher"] = refusal(lambda: trainer("c", distillation={"teacher": "nobody", "weight": 1.0}))
    seen["synchronised"] = refusal(lambda: trainer("d", batchnorm_sync=True))
    seen["main"] = refusal(lambda: world.from_main(lambda: open(out / "not there")))
    seen["together"] = refusal(lambda: world.together(lambda: open(out / "not there") if world.rank else None))

    torn = trainer("torn")
    cut = torn.sampler.cut
    if world.rank == 1:
        torn.sampler.cut = lambda step, slots: cut(step, slots) if step < 2 else open(out / "not there")
    seen["torn"] = refusal(lambda: torn.run(resume=False))
    seen["torn at"] = torn.step
(out / f"seen{world.rank}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def scenes(document, pairs_root, make_trainer, tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    first = make_trainer(out / "resumed", batchnorm_freeze=0.0)  # one process begins what two go on with
    for _ in range(3):
        first.train_step()
    first.save_checkpoint()
    (out / "scenes.py").write_text(_SCENES)
    status, said = torchrun(out / "scenes.py", pairs_root, out, json.dumps(document()))
    assert status == 0, said
    return out, [json.loads((out / f"seen{rank}.json").read_text()) for rank in range(2)], said


def test_running_statistics_are_the_mean_of_the_processes(scenes, make_trainer, tmp_path):
    _, (main, other), _ = scenes
    assert main["statistics"] == other["statistics"] and main["weights"] == other["weights"]
    # The oracle: each process's half of the batch by itself, one pass after the other with the norms of the first layer.
    halves = []
    for slots in (range(0, 2), range(2, 4)):
        t = make_trainer(tmp_path / str(slots.start), batchnorm_freeze=1.0)
        t._slots = [slots]
        # One thread, as torchrun gives each process: a modality that is missing has constant features, whose norms blow the
        # rounding of another order of summation up.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            t.train_step()
        finally:
            torch.set_num_threads(threads)
        halves.append([b for n, b in t.network.named_buffers() if n.endswith(("running_mean", "running_var"))])
    for found, one, two in zip(main["statistics"], *halves):
        torch.testing.assert_close(torch.tensor(found), (one + two) / 2, atol=1e-6, rtol=1e-5)


def test_another_number_of_processes_continues_and_says_so(scenes, make_trainer, tmp_path):
    out, (main, other), said = scenes
    assert main["resumed at"] == other["resumed at"] == 3
    assert "was written by 1 processes, 2 continue" in said
    make_trainer(tmp_path / "whole", batchnorm_freeze=0.0).run(resume=False)
    a, b = (load_file(folder / "model/weights.safetensors") for folder in (tmp_path / "whole", out / "resumed"))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


def test_refusals_reach_every_process(scenes):
    _, seen, _ = scenes
    for rank, saw in enumerate(seen):
        assert "data.batch 3 cannot be divided among 2 processes; expected a multiple of 2" in saw["batch"]
        assert "process 1 has options that differ from process 0's" in saw["options"]
        assert "no model 'nobody'" in saw["teacher"]
        assert "batchnorm_sync needs CUDA devices" in saw["synchronised"]
        assert "No such file" in saw["main"] and ("process 0 failed" in saw["main"]) == (rank == 1)
        assert "No such file" in saw["together"] and ("process 1 of 2 failed" in saw["together"]) == (rank == 0)


def test_a_failure_in_a_step_ends_all(scenes):
    _, (main, other), _ = scenes
    assert main["torn at"] == other["torn at"] == 2
    assert "1 of 2 processes failed at step 2" in main["torn"]
    assert other["torn"].startswith("FileNotFoundError")


_DIES = """
import os, signal, sys
from isfl_ros.training.loop import Trainer
step = Trainer.train_step
def train_step(self):
    if self.step == 7 and self.world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
Trainer.train_step = train_step
from isfl_ros.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_process_that_is_killed_ends_the_others(document, pairs_root, tmp_path):
    # Started by hand: torchrun would end the second one as well, and the question is whether it ends by itself.
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document(steps=100000, checkpoint_every=5)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--data", str(pairs_root), "--out", str(tmp_path / "run"), "--device", "cpu", "--workers", "1"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _DIES, "train", str(tmp_path / "c.yaml"), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, -signal.SIGKILL]
    assert "error: process 0 of 2: the other processes are lost" in said[0] and "continue with --resume" in said[0]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_000005"]


def test_parts_of_the_batch():
    assert [World(rank=rank, size=3).slots(12) for rank in range(3)] == [range(0, 4), range(4, 8), range(8, 12)]
    assert World().slots(5) == range(5)
    with pytest.raises(InputError, match="data.batch 7 cannot be divided among 3 processes"):
        World(size=3).slots(7)


def test_the_place_comes_from_the_environment(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    assert launched() == World()
    monkeypatch.setenv("RANK", "5")
    with pytest.raises(InputError, match="WORLD_SIZE is no number; got ''"):
        launched()
    for key, value in (("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(key, value)
    assert launched() == World(rank=5, size=8, local_rank=1, local_size=4) and not launched().is_main
