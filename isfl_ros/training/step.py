"""One optimiser step: the passes, their loss, gradients averaged over parts and processes."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Iterable, Iterator

import torch
from torch import Tensor, nn

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import check_tensors, load_model, weights_sha256
from isfl_ros.network.model import extended_by_validity
from isfl_ros.resources import resolve_model
from isfl_ros.training import losses
from isfl_ros.training.config import TrainingConfig
from isfl_ros.training.data import Batch, sample_rng, to_device
from isfl_ros.training.distributed import World
from isfl_ros.training.interventions import draw_variants, make_masks
from isfl_ros.training.losses import Objective, Output
from isfl_ros.training.teacher import Teacher

_log = logging.getLogger(__name__)
_STREAM_LAYERS = 5
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_DIVERGED = 1e7
_DIVERGED_STEPS = 20
"""Norm of the gradient, unscaled and before clipping, and steps in a row with more, that no run comes back from; usual norms are
0.01 to 1000."""


class Learner:
    """The network with everything that changes it.

    Args:
        config: what to train.
        device: where.
        implementation: see :class:`~isfl_ros.training.loop.Trainer`.
        processes: of the run.

    Raises:
        InputError: the device has not the precision or the synchronised norms; the initial weights or the teacher are
            missing or do not fit.
    """

    def __init__(self, config: TrainingConfig, *, device: torch.device, implementation: str, processes: int = 1):
        self.config, self.device, self.processes = config, device, processes
        self._check_options()
        torch.manual_seed(config.seed)
        # Dying units leave gradients below the normal range, on which a CPU is many times slower.
        torch.set_flush_denormal(True)
        network = config.build_network().to(device, memory_format=torch.channels_last)
        self.initial: dict[str, object] | None = None
        """What the weights at the start were, where they were not drawn."""
        if config.initial:
            self.initial = begin_with(network, config.initial)
        if hasattr(network, "set_implementation"):  # a network without the CFI has nothing to choose
            network.set_implementation(implementation)
        if config.batchnorm_sync and processes > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.optimizer.lr)
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")
        self.objective = Objective(config.loss)
        self.teacher: Teacher | None = None
        if config.distillation.weight:
            self.teacher = Teacher(
                config.distillation.teacher, device=device, implementation=implementation, patch=config.data.patch
            )
        self.gradient_norm = math.nan
        """Norm of the last step's gradient, before clipping."""
        self._steps_beyond = 0

    def _check_options(self) -> None:
        if self.config.precision == "fp16" and self.device.type != "cuda":
            raise InputError(
                "precision fp16 needs a CUDA device",
                got=f"device {self.device}, on which the scaling of the loss that its small range needs does not exist",
                do="choose precision bf16 or fp32",
            )
        if self.config.batchnorm_sync and self.processes > 1 and self.device.type != "cuda":
            raise InputError(
                "batchnorm_sync needs CUDA devices",
                got=f"{self.processes} processes on device {self.device}, for which torch has no synchronised norm",
                do="switch it off: the running statistics are then averaged over the processes",
            )

    def take_step(
        self, step: int, slots: list[range], batches: Iterable[Batch], world: World = World()
    ) -> dict[str, float]:
        """Makes step ``step`` (from 0) with this process's samples.

        Args:
            step: decides rate, interventions and masks.
            slots: places of the samples in the global batch, part after part.
            batches: the samples of each part, as cut.
            world: the processes that make this step together.

        Returns:
            ``loss`` and its weighted terms, averaged over all processes.

        Raises:
            InputError: the loss or the gradient is not finite or has been beyond any measure for a while (this step is not
                made), or another process failed.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self._set_norm_mode(step)
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        values, failure = None, None
        try:
            terms = self._backward(step, slots, batches)
            values = torch.stack([*terms.values(), torch.stack(list(terms.values())).sum()])
        except Exception as error:  # said to the other processes first: they would wait for this one
            if world.size == 1:
                raise
            failure = error
        parameters = list(self.network.parameters())
        try:
            values, failed = world.average_step(parameters, self._live_statistics(step), values)
        except Exception as error:
            raise failure or error  # a device that is lost cannot even say so; what broke it is the message
        if failure is not None:
            raise failure
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm or math.inf)
        # Everything that the host wants to know, in one transfer.
        *numbers, loss, self.gradient_norm, failed = torch.cat((values, norm[None], failed[None])).tolist()
        if failed:
            raise InputError(f"{failed:.0f} of {world.size} processes failed at step {step}", do="see their messages")
        named = dict(zip(terms, numbers))
        self._check_finite(step, named, loss)
        self._check_direction(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": loss, **named}

    def _backward(self, step: int, slots: list[range], batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Gradients of this process's samples, part after part; the weighted terms averaged over the parts."""
        config = self.config
        names = draw_variants(config.interventions, config.seed, step)
        totals: dict[str, Tensor] = {}
        for part, cut in zip(slots, batches):
            # Whatever layers draw (dropout) has no state to be saved either.
            torch.manual_seed(int(sample_rng(config.seed, step, part[0], _STREAM_LAYERS).integers(2**63)))
            terms = self._terms(step, to_device(cut, self.device), part, names)
            self.scaler.scale(torch.stack(list(terms.values())).sum() / config.accumulate).backward()
            for name, value in terms.items():
                share = value.detach() / config.accumulate
                totals[name] = totals[name] + share if name in totals else share
        return totals

    def _terms(self, step: int, batch: Batch, slots: range, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Weighted loss terms of one part of the batch: a pass without intervention and one for each of ``names``."""
        config = self.config
        original = self.forward(batch.visible, batch.infrared, moves_statistics=True)
        differences = [self._to_teacher(original, batch)] if self.teacher else []
        variants = {}
        size = tuple(batch.visible.shape[-2:])
        for name in names:
            masks = make_masks(name, config.interventions, size, config.seed, step, slots, self.device)
            valid = {"valid_visible": masks.visible, "valid_infrared": masks.infrared}
            output = self.forward(
                batch.visible, batch.infrared, moves_statistics=config.batchnorm_update == "all", **valid
            )
            if self.teacher:
                differences.append(self._to_teacher(output, batch, **valid))
            variants[name] = (masks, output)
        weight = len(config.interventions.active()) / len(names) if names else 1.0
        terms = self.objective.terms(
            batch.visible,
            batch.infrared,
            original,
            variants,
            variant_weight=weight,
            people=batch.people,
            people_counts=batch.people_counts,
        )
        if differences:
            terms["distillation"] = config.distillation.weight * torch.stack(differences).mean()
        return terms

    def forward(self, visible: Tensor, infrared: Tensor, *, moves_statistics: bool = False, **masks: Tensor) -> Output:
        """One pass with its own batch statistics: five passes are not one concatenated pass. Gates where the network
        has any."""
        gates: list[Tensor] = []
        with _statistics(self.network, moves_statistics), self._autocast():
            if getattr(self.network, "has_gates", False):
                fused, gates = self.network(
                    _channels_last(visible), _channels_last(infrared), return_gates=True, **masks
                )
            else:
                fused = self.network(_channels_last(visible), _channels_last(infrared), **masks)
        return Output(fused.float(), [gate.float() for gate in gates])

    def _to_teacher(self, output: Output, batch: Batch, **masks: Tensor) -> Tensor:
        with self._autocast():
            answer = self.teacher(_channels_last(batch.visible), _channels_last(batch.infrared), **masks)
        return losses.distillation(output.fused, answer)

    def _autocast(self):
        kind = torch.float16 if self.config.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=self.config.precision != "fp32")

    def _set_norm_mode(self, step: int) -> None:
        self.network.train()
        if self._norms_are_frozen(step):
            for module in self.network.modules():
                if isinstance(module, _NORMS):
                    module.eval()

    def _norms_are_frozen(self, step: int) -> bool:
        return step >= self.config.batchnorm_freeze * self.config.steps

    def _live_statistics(self, step: int) -> list[Tensor]:
        """Running statistics that this step may have moved: every process by its own samples."""
        if self._norms_are_frozen(step):
            return []
        norms = [module for module in self.network.modules() if isinstance(module, _NORMS)]
        return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]

    def _check_direction(self, step: int) -> None:
        """Clipping hides for hundreds of steps that the network is lost already. One step beyond measure says nothing: where a
        modality is missing, the norms of an untrained network blow up constant features."""
        if self.gradient_norm <= _DIVERGED:
            self._steps_beyond = 0
            return
        self._steps_beyond += 1
        if self._steps_beyond == 1 and not self.config.optimizer.clip_norm:
            _log.warning(
                "step %d: a gradient of the norm %.1e, not clipped: Adam remembers it for thousands of steps; set optimizer.clip_norm",
                step, self.gradient_norm,
            )
        if self._steps_beyond >= _DIVERGED_STEPS:
            raise InputError(
                f"the run diverges at step {step}",
                expected=f"a gradient of a norm up to {_DIVERGED:.0e}",
                got=f"{self.gradient_norm:.1e}, and more than that in {self._steps_beyond} steps in a row",
                do="lower optimizer.lr, and begin anew or with an earlier model (initial)",
            )

    def _check_finite(self, step: int, terms: dict[str, float], loss: float) -> None:
        if not math.isfinite(loss):
            what, got = "loss", ", ".join(f"{name} {value:.3g}" for name, value in terms.items())
        # An infinite gradient under a scaled loss is the scaler's business: it leaves the step out and scales less.
        elif not math.isfinite(self.gradient_norm) and not self.scaler.is_enabled():
            what, got = "gradient", f"norm {self.gradient_norm}"
        else:
            return
        raise InputError(
            f"{what} is not finite at step {step}", got=got, do="lower optimizer.lr or set optimizer.clip_norm"
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


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def _statistics(network: nn.Module, move: bool) -> Iterator[None]:
    """Lets a pass move the running statistics of BatchNorm, or not; its own batch statistics normalise it anyway."""
    if move:
        yield
        return
    norms = [(m, m.momentum) for m in network.modules() if isinstance(m, _NORMS)]
    for module, _ in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in norms:
            module.momentum = momentum


def begin_with(network: nn.Module, name: str) -> dict[str, object]:
    """Takes the weights and running statistics of a trained model of the same shape; what it lacks may be ``validity_input``.

    Returns:
        What they are, for the description of what comes of them: recipe, steps, SHA-256 of the file, and what they
        themselves began with.

    Raises:
        InputError: there is no such model, or a tensor is missing, surplus or of another shape.
    """
    directory = resolve_model(name)
    trained, info = load_model(directory)
    given = trained.state_dict()
    weights = extended_by_validity(given, network)
    check_tensors(weights, network.state_dict(), f"initial: {directory}")
    network.load_state_dict(weights)
    if any(weights[name].shape != values.shape for name, values in given.items()):
        _log.info("%s has no validity_input: the run begins with weights that do not look at it", directory)
    facts = {"recipe": info.recipe, "steps": info.training.get("steps"), "sha256": weights_sha256(directory)}
    return facts | ({"initial": info.training["initial"]} if "initial" in info.training else {})
