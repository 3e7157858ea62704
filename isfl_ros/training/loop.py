"""The training loop: resumable, every random draw a function of seed and step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Iterator

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.io.dataset import select_pairs
from isfl_ros.io.staging import write_bytes
from isfl_ros.network.checkpoint import ModelInfo, check_tensors, save_model
from isfl_ros.network.model import IsflNet, mean_gate
from isfl_ros.training.config import TrainingConfig
from isfl_ros.training.data import LoadedPair, PatchSampler, load_pairs
from isfl_ros.training.interventions import draw_variants, make_masks
from isfl_ros.training.losses import Objective, Output

_log = logging.getLogger(__name__)
_KEPT_CHECKPOINTS = 2


class Trainer:
    """One run in one folder: ``config.json``, ``checkpoints/step_*``, ``tensorboard/``, and at the end ``model/``.

    Args:
        config: what to train.
        data_root: folder to which the set specifications are relative.
        out: folder of the run.
        device: ``cpu``, ``cuda``, ``cuda:N``.
        implementation: who computes the Causal Feature Integrator: ``reference``, ``folded`` or ``triton``. Not part of
            the configuration: a run may go on with another one, and differs by rounding only.

    Raises:
        InputError: a set is empty or unreadable; ``out`` holds a run of another configuration.
    """

    def __init__(
        self, config: TrainingConfig, *, data_root: str | Path, out: str | Path, device: str, implementation: str = "folded"
    ):
        if not config.data.sets:
            raise InputError("data.sets is empty", do="name at least one set of pairs")
        self.config, self.out, self.device = config, Path(out), torch.device(device)
        self._check_run_folder()
        torch.manual_seed(config.seed)
        # Dying units leave gradients below the normal range, on which a CPU is many times slower.
        torch.set_flush_denormal(True)
        self.network = IsflNet(config.network_config()).to(self.device, memory_format=torch.channels_last)
        self.network.set_implementation(implementation)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.optimizer.lr)
        self.objective = Objective(config.loss)
        pairs = _load_sets(config.data.sets, data_root, "training pairs", limit=None)
        self.pair_count = len(pairs)
        self.sampler = PatchSampler(pairs, config.data, config.seed)
        self.validation = _load_sets(
            config.data.validation, data_root, "validation pairs", limit=config.data.validation_pairs
        )
        self.step = 0

    # -- one step ---------------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """Runs the step ``self.step`` and advances it; returns the weighted loss terms."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        visible, infrared = (x.to(self.device) for x in self.sampler.batch(self.step))
        self._set_norm_mode()
        names = draw_variants(config.interventions, config.seed, self.step)
        original = self._forward(visible, infrared, moves_statistics=True)
        variants = {}
        for name in names:
            masks = make_masks(
                name, config.interventions, (visible.shape[0], *visible.shape[-2:]), config.seed, self.step, self.device
            )
            output = self._forward(
                visible,
                infrared,
                valid_visible=masks.visible,
                valid_infrared=masks.infrared,
                moves_statistics=config.batchnorm_update == "all",
            )
            variants[name] = (masks, output)
        weight = len(config.interventions.active()) / len(names) if names else 1.0
        terms = self.objective.terms(visible, infrared, original, variants, variant_weight=weight)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise InputError(
                f"loss is not finite at step {self.step}",
                got=", ".join(f"{k} {float(v):.3g}" for k, v in terms.items()),
                do="lower optimizer.lr or set optimizer.clip_norm",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), config.optimizer.clip_norm)
        self.optimizer.step()
        self.step += 1
        values = {name: float(value.detach()) for name, value in terms.items()}
        return {"loss": float(loss.detach()), **values}

    def _forward(self, visible: Tensor, infrared: Tensor, *, moves_statistics: bool, **masks: Tensor) -> Output:
        """One pass with its own batch statistics: five passes are not one concatenated pass."""
        with _statistics(self.network, moves_statistics), self._autocast():
            fused, gates = self.network(
                _channels_last(visible), _channels_last(infrared), return_gates=True, **masks
            )
        return Output(fused.float(), [gate.float() for gate in gates])

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _set_norm_mode(self) -> None:
        self.network.train()
        if self.step >= self.config.batchnorm_freeze * self.config.steps:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, *, resume: bool) -> Path:
        """Trains to the last step and writes the model folder, whose path is returned.

        Args:
            resume: continue from the newest checkpoint of the folder, where there is one.
        """
        if resume:
            self.load_newest_checkpoint()
        write_bytes(self.out / "config.json", (json.dumps(dataclasses.asdict(self.config), indent=2) + "\n").encode())
        # What was logged at the step of the checkpoint belongs to the part that is kept.
        with SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step + 1) as writer:
            with tqdm(total=self.config.steps, initial=self.step, unit="step", desc="training") as bar:
                while self.step < self.config.steps:
                    terms = self.train_step()
                    bar.update()
                    bar.set_postfix(loss=f"{terms['loss']:.4f}")
                    if self.step % self.config.log_every == 0:
                        for name, value in terms.items():
                            writer.add_scalar(f"train/{name}", value, self.step)
                        writer.add_scalar("train/lr", self.optimizer.param_groups[0]["lr"], self.step)
                    if self.validation and (
                        self.step % self.config.validate_every == 0 or self.step == self.config.steps
                    ):
                        self._validate(writer)
                    if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                        self.save_checkpoint()
        return self.export()

    def export(self) -> Path:
        """Writes the current weights as a model folder ``model`` in the run's folder."""
        config = self.config
        directory = self.out / "model"
        info = ModelInfo(
            name=directory.name,
            model="isfl",
            architecture=config.architecture,
            recipe=config.recipe,
            config=self.network.config,
            training={
                "steps": self.step,
                "pairs": self.pair_count,
                "config": dataclasses.asdict(config),
            },
        )
        save_model(directory, self.network, info, overwrite=True)
        return directory

    @torch.no_grad()
    def _validate(self, writer: SummaryWriter) -> None:
        self.network.eval()
        totals: dict[str, float] = {}
        for index, pair in enumerate(self.validation):
            visible, infrared = (
                torch.from_numpy(x).to(self.device, torch.float32)[None, None] / 255.0 for x in (pair.visible, pair.infrared)
            )
            with self._autocast():
                fused, gates = self.network(_channels_last(visible), _channels_last(infrared), return_gates=True)
            fused = fused.float()
            for name, value in self.objective.fusion_terms(fused, visible, infrared).items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(self.validation)
            if index < 3:
                panels = [infrared, visible, fused]
                if gates:
                    panels.append(mean_gate(gates, tuple(fused.shape[-2:])))
                writer.add_image(f"validation/{pair.stem}", torch.cat([p[0] for p in panels], dim=-1), self.step)
        for name, value in totals.items():
            writer.add_scalar(f"validation/{name}", value, self.step)
        writer.add_scalar("validation/loss", sum(totals.values()), self.step)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Writes ``checkpoints/step_NNNNNN`` aside and moves it into place, so that a kill leaves the one before whole."""
        folder = self.out / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step_*"):
            shutil.rmtree(stale)
        aside = folder / f".step_{self.step:06d}"
        aside.mkdir()
        save_file({k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}, aside / "weights.safetensors")
        save_file(self._optimizer_tensors(), aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": self.step}) + "\n")
        target = folder / f"step_{self.step:06d}"
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside, target)
        for old in sorted(folder.glob("step_*"))[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        return target

    def load_newest_checkpoint(self) -> None:
        """Continues from the newest checkpoint; a folder without one starts at step 0, and says so."""
        found = sorted((self.out / "checkpoints").glob("step_*"))
        if not found:
            _log.info("no checkpoint in %s: starting at step 0", self.out)
            return
        newest = found[-1]
        try:
            self._load_checkpoint(newest)
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{newest} is damaged", got=str(error), do="remove it to continue from the one before") from error
        _log.info("continuing from %s", newest)

    def _load_checkpoint(self, newest: Path) -> None:
        weights = load_file(newest / "weights.safetensors", device=str(self.device))
        check_tensors(weights, self.network.state_dict(), str(newest))
        self.network.load_state_dict(weights)
        moments = load_file(newest / "optimizer.safetensors", device=str(self.device))
        for name, parameter in self.network.named_parameters():
            # empty_like has the parameter's own strides: a channels-last weight keeps its order of summation.
            self.optimizer.state[parameter] = {
                "step": moments[f"{name}.step"].cpu(),
                "exp_avg": torch.empty_like(parameter, requires_grad=False).copy_(moments[f"{name}.exp_avg"]),
                "exp_avg_sq": torch.empty_like(parameter, requires_grad=False).copy_(moments[f"{name}.exp_avg_sq"]),
            }
        self.step = _read_json(newest / "state.json")["step"]

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
        return tensors

    def _check_run_folder(self) -> None:
        path = self.out / "config.json"
        ours = json.loads(json.dumps(dataclasses.asdict(self.config)))
        if path.exists() and _read_json(path) != ours:
            raise InputError(
                f"{self.out} holds a run of another configuration", do="choose another --out or remove the folder"
            )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate of a step (counted from 0)."""
    optimizer = config.optimizer
    rate = optimizer.lr
    if optimizer.schedule == "cosine":
        progress = step / max(1, config.steps - 1)
        rate = optimizer.least_lr + 0.5 * (optimizer.lr - optimizer.least_lr) * (1.0 + math.cos(math.pi * progress))
    if step < optimizer.warmup_steps:
        rate *= (step + 1) / optimizer.warmup_steps
    return rate


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged", got=str(error), do="remove the folder it is in") from error


def _load_sets(specs: tuple[str, ...], root: str | Path, what: str, limit: int | None) -> list[LoadedPair]:
    pairs = [pair for spec in specs for pair in select_pairs(spec, root=root)[:limit]]
    return load_pairs(pairs, what) if pairs else []


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def _statistics(network: nn.Module, move: bool) -> Iterator[None]:
    """Lets a pass move the running statistics of BatchNorm, or not; its own batch statistics normalise it either way."""
    if move:
        yield
        return
    norms = [(m, m.momentum) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for module, _ in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in norms:
            module.momentum = momentum
