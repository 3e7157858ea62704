"""What a run leaves on disk to continue from: whole or not there, and refused where it does not fit.

``checkpoints/step_NNNNNN`` holds ``weights.safetensors``, ``optimizer.safetensors`` and ``state.json`` (step, loss
scale, digests of the two files). Everything else that a step depends on is a function of the configuration and the
step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from isfl_ros.errors import InputError
from isfl_ros.training.config import TrainingConfig, parse_config

_log = logging.getLogger(__name__)

FORMAT_VERSION = 4
"""Of a checkpoint; a higher one than before: state was added (2), or the objective of the same configuration is another (3, 4)."""
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
_KEPT = 2
_WEIGHTS, _MOMENTS, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after a number of steps; tensors on the CPU."""

    weights: dict[str, Tensor]
    """Parameters and buffers by name."""
    moments: dict[str, Tensor]
    """State of the optimiser, ``parameter.key``; a parameter that never had a gradient has none."""
    state: dict
    """``step``; since format 2 also ``processes``, ``scaler`` (of the loss, fp16) and ``teacher`` (its digest, or
    null)."""

    @property
    def step(self) -> int:
        """Steps that have been made."""
        return self.state["step"]


def check_run_folder(out: Path, config: TrainingConfig) -> None:
    """Refuses a folder that holds a run of another configuration. A key that did not exist then has its default.

    Raises:
        InputError: the configurations differ (the first difference is named), or the folder's is unreadable.
    """
    path = out / CONFIG
    remedy = "choose another --out or remove the folder"
    if not path.exists():
        if _by_step(out / CHECKPOINTS):
            _log.warning("%s holds checkpoints without %s: nothing says which configuration made them", out, CONFIG)
        return
    try:
        theirs = parse_config(json.loads(path.read_text()), str(path))
    except InputError as error:
        what = f"{out} holds a run of a configuration that cannot be read any more"
        raise InputError(what, got=str(error), do=remedy) from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged", got=str(error), do="remove the folder it is in") from error
    old, new = _flat(dataclasses.asdict(theirs)), _flat(dataclasses.asdict(config))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            raise InputError(
                f"{out} holds a run of another configuration",
                expected=f"{key} {old.get(key)!r}",
                got=repr(new.get(key)),
                do=remedy,
            )


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes ``folder/step_NNNNNN`` aside and moves it into place, so that a kill leaves the ones before whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".step_*"):
        shutil.rmtree(stale)
    name = f"step_{checkpoint.step:06d}"
    aside = folder / f".{name}"
    aside.mkdir()
    files = {_WEIGHTS: save(checkpoint.weights), _MOMENTS: save(checkpoint.moments)}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    state = {"format_version": FORMAT_VERSION, **checkpoint.state, "sha256": digests}
    for file, data in (*files.items(), (_STATE, (json.dumps(state, indent=1) + "\n").encode())):
        _write_through(aside / file, data)
    target = folder / name
    _retire(target)
    os.replace(aside, target)
    _sync_folder(folder)
    for old in _by_step(folder)[:-_KEPT]:
        _retire(old)
    return target


def read_newest_checkpoint(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint and where it lies; None where there is none.

    Raises:
        InputError: it is damaged. An older one is not taken in silence.
    """
    found = _by_step(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        state = json.loads((newest / _STATE).read_text())
        tensors = []
        for name in (_WEIGHTS, _MOMENTS):
            data = (newest / name).read_bytes()
            if "sha256" in state and hashlib.sha256(data).hexdigest() != state["sha256"][name]:
                raise ValueError(f"{name} has another digest than when it was written")
            tensors.append(load(data))
        if not isinstance(state["step"], int):
            raise ValueError("no number of steps")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        remedy = "remove it to continue from the one before"
        raise InputError(f"{newest} is damaged", got=str(error), do=remedy) from error
    return newest, Checkpoint(*tensors, state)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as a checkpoint holds them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}


def moments_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimiser as a checkpoint holds it."""
    return {
        f"{name}.{key}": value.detach().cpu().contiguous().clone()
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(network: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Gives the optimiser the state of a checkpoint.

    Raises:
        InputError: a tensor belongs to no parameter of the network, or has another shape.
    """
    parameters = dict(network.named_parameters())
    optimizer.state.clear()
    for full_name, value in moments.items():
        name, _, key = full_name.rpartition(".")
        if name not in parameters or (value.dim() and value.shape != parameters[name].shape):
            got = f"{full_name} {tuple(value.shape)}"
            raise InputError("the checkpoint's optimiser is of another network", got=got)
        if value.dim():
            # empty_like has the parameter's own strides: a channels-last weight keeps its order of summation.
            value = torch.empty_like(parameters[name], requires_grad=False).copy_(value)
        optimizer.state[parameters[name]][key] = value  # a step counter, without dimensions, stays on the CPU


def _by_step(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _retire(folder: Path) -> None:
    """Removes a checkpoint so that no kill leaves half of it under its name."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}-old")
        os.replace(folder, aside)
        shutil.rmtree(aside)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
