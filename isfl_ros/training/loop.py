"""The training loop: resumable, in one process or several; every random draw a function of seed, step and slot."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from isfl_ros.errors import InputError, require_module
from isfl_ros.io.dataset import select_pairs
from isfl_ros.io.staging import write_bytes
from isfl_ros.network import dictionary
from isfl_ros.network.baffm import MODALITIES
from isfl_ros.network.checkpoint import ModelInfo, check_tensors, load_model, save_model
from isfl_ros.network.dictionary import Dictionaries
from isfl_ros.resources import resolve_model
from isfl_ros.training import checkpoints
from isfl_ros.training.cache import PictureCache
from isfl_ros.training.checkpoints import Checkpoint
from isfl_ros.training.config import TrainingConfig
from isfl_ros.training.data import LoadedPair, PatchSampler, decode_pairs
from isfl_ros.training.dictionary import Backbone, build_dictionaries, write_sheets
from isfl_ros.training.distributed import World
from isfl_ros.training.interventions import draw_variants
from isfl_ros.training.prefetch import Prefetcher, pin
from isfl_ros.training.step import Learner
from isfl_ros.training.throughput import Throughput, hardware_name
from isfl_ros.training.validation import validate

_log = logging.getLogger(__name__)


class Trainer:
    """One run in one folder: ``config.json``, ``checkpoints/step_*``, ``tensorboard/``, and at the end ``model/``; with
    the model baffm also ``dictionary/``, made before the first step.

    Args:
        config: what to train.
        data_root: folder to which the set specifications are relative.
        out: folder of the run; only the first of several processes touches it.
        device: ``cpu``, ``cuda``, ``cuda:N``.
        implementation: who computes the Causal Feature Integrator: ``reference``, ``folded`` or ``triton``. Not part of
            the configuration: a run may go on with another one, and differs by rounding only.
        world: the processes of the run; connecting them is the caller's.
        workers: threads that make batches ahead; 0 makes them in the loop. Changes nothing but the time.
        cache: folder of decoded pictures (:class:`~isfl_ros.training.cache.PictureCache`); None decodes into memory.

    Raises:
        InputError: a set is empty or unreadable; ``out`` holds a run of another configuration; the batch cannot be
            divided; the device has not the precision; the teacher is missing; the confounder dictionaries cannot be
            made or are of another configuration; another process failed.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        data_root: str | Path,
        out: str | Path,
        device: str,
        implementation: str = "folded",
        world: World = World(),
        workers: int = 0,
        cache: str | Path | None = None,
    ):
        if not config.data.sets:
            raise InputError("data.sets is empty", do="name at least one set of pairs")
        self.config, self.out, self.device, self.world = config, Path(out), torch.device(device), world
        self._slots = _parts(world.slots(config.data.batch), config.accumulate)
        world.require_same("options", json.dumps(dataclasses.asdict(config)))
        world.from_main(lambda: checkpoints.check_run_folder(self.out, config))
        self._learner = world.together(
            lambda: Learner(config, device=self.device, implementation=implementation, processes=world.size)
        )
        world.broadcast([*self.network.parameters(), *self.network.buffers()])
        world.require_same("teachers", str(self._teacher_digest()))
        needs_dictionary = getattr(config.network_config(), "needs_dictionary", False)
        if needs_dictionary:  # asked before minutes of decoding
            world.from_main(self._require_what_makes_dictionaries)
        pairs, self.validation = world.together(lambda: self._load_pairs(data_root, cache))
        world.require_same("training pairs", repr([(p.stem, p.visible.shape, p.people is None) for p in pairs]))
        self.pair_count = len(pairs)
        self.dictionaries: Dictionaries | None = None
        """Confounder dictionaries of the network, where it needs some."""
        if needs_dictionary:
            self.dictionaries = world.from_main(lambda: self._find_dictionaries(pairs))
            self.network.set_dictionaries(self.dictionaries.visible, self.dictionaries.infrared)
        self.sampler = PatchSampler(pairs, config.data, config.seed)
        self._batches = Prefetcher(
            lambda step, part: pin(self.sampler.cut(step, self._slots[part]), self.device),
            parts=config.accumulate,
            steps=config.steps,
            workers=workers,
        )
        self.step = 0
        self.throughput: dict | None = None
        """Figures and circumstances of the last :meth:`run`; without figures where it was too short."""

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self._learner.network

    def train_step(self) -> dict[str, float]:
        """Makes the step ``self.step`` and advances it; returns the loss and its weighted terms over all processes.

        Raises:
            InputError: the loss or the gradient is not finite (the weights are left as they were), or another process
                failed.
        """
        terms = self._learner.take_step(self.step, self._slots, self._batches.take(self.step), self.world)
        self.step += 1
        return terms

    def run(self, *, resume: bool) -> Path:
        """Trains to the last step and writes the model folder, whose path is returned.

        Args:
            resume: continue from the newest checkpoint of the folder, where there is one.
        """
        config, world = self.config, self.world
        with contextlib.closing(self._batches), contextlib.ExitStack() as stack:
            if resume:
                self.load_newest_checkpoint()
            document = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
            world.from_main(lambda: write_bytes(self.out / checkpoints.CONFIG, document.encode()))
            writer = None
            if world.is_main:
                # What was logged at the step of the checkpoint belongs to the part that is kept.
                writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step + 1)
                stack.enter_context(writer)
            bar = tqdm(total=config.steps, initial=self.step, unit="step", desc="training", disable=not world.is_main)
            stack.enter_context(bar)
            begun = self.step
            throughput = Throughput(config.data.batch, config.steps - self.step)
            passes = 1 + len(draw_variants(config.interventions, config.seed, 0))
            while self.step < config.steps:
                start = time.perf_counter()
                terms = self.train_step()
                throughput.add(time.perf_counter() - start, passes)
                last = self.step == config.steps
                bar.update()
                bar.set_postfix(loss=f"{terms['loss']:.4f}")
                if writer and (last or self.step % config.log_every == 0):
                    self._write_scalars(writer, terms, throughput)
                if config.data.validation and (last or self.step % config.validate_every == 0):
                    world.from_main(lambda: self._validate(writer))
                if last or self.step % config.checkpoint_every == 0:
                    world.from_main(self.save_checkpoint)
            model = self.out / "model"
            if self.step == begun and model.exists():  # nothing was trained: what was measured then stays
                return model
            self.throughput = self._describe(throughput)
            return world.from_main(self.export)

    def export(self) -> Path:
        """Writes the current weights as a model folder ``model`` in the run's folder."""
        config = self.config
        training = {"steps": self.step, "pairs": self.pair_count, "config": dataclasses.asdict(config)}
        if self.throughput is not None:
            training["throughput"] = self.throughput
        if self._learner.teacher is not None:
            training["teacher"] = self._learner.teacher.facts()
        if self._learner.initial is not None:
            training["initial"] = self._learner.initial
        directory = self.out / "model"
        info = ModelInfo(
            name=directory.name,
            model=config.model,
            architecture=config.architecture,
            recipe=config.recipe,
            config=config.network_config(),
            training=training,
            dictionary=dataclasses.asdict(self.dictionaries.record) if self.dictionaries else {},
        )
        save_model(directory, self.network, info, overwrite=True)
        return directory

    def _write_scalars(self, writer: SummaryWriter, terms: dict[str, float], throughput: Throughput) -> None:
        for name, value in terms.items():
            writer.add_scalar(f"train/{name}", value, self.step)
        writer.add_scalar("train/lr", self._learner.optimizer.param_groups[0]["lr"], self.step)
        writer.add_scalar("train/gradient_norm", self._learner.gradient_norm, self.step)
        if self._learner.scaler.is_enabled():
            writer.add_scalar("train/loss_scale", self._learner.scaler.get_scale(), self.step)
        for name, value in throughput.figures().items():
            writer.add_scalar(f"throughput/{name}", value, self.step)

    def _validate(self, writer: SummaryWriter) -> None:
        self.network.eval()
        validate(
            self.validation, self._learner.forward, self._learner.objective, writer, step=self.step, device=self.device
        )

    def _describe(self, throughput: Throughput) -> dict:
        return {
            **throughput.figures(),
            "measured_steps": throughput.steps,
            "batch": self.config.data.batch,
            "patch": self.config.data.patch,
            "processes": self.world.size,
            "hardware": hardware_name(self.device),
            "threads": torch.get_num_threads(),
            "precision": self.config.precision,
        }

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Writes the state of the run; see :mod:`isfl_ros.training.checkpoints`."""
        learner = self._learner
        state = {
            "step": self.step,
            "processes": self.world.size,
            "scaler": learner.scaler.state_dict(),
            "teacher": self._teacher_digest(),
        }
        checkpoint = Checkpoint(
            checkpoints.tensors_of(self.network), checkpoints.moments_of(self.network, learner.optimizer), state
        )
        return checkpoints.write_checkpoint(self.out / checkpoints.CHECKPOINTS, checkpoint)

    def load_newest_checkpoint(self) -> None:
        """Continues from the newest checkpoint; a folder without one starts at step 0, and says so.

        Raises:
            InputError: the checkpoint is damaged, of another network or of another teacher.
        """
        found = self.world.from_main(lambda: checkpoints.read_newest_checkpoint(self.out / checkpoints.CHECKPOINTS))
        if found is None:
            _log.info("no checkpoint in %s: starting at step 0", self.out)
            return
        path, checkpoint = found
        learner, state = self._learner, checkpoint.state
        if state.get("teacher") != self._teacher_digest():
            raise InputError(
                f"{path} has learnt from another teacher",
                expected=f"weights of the digest {state.get('teacher')}",
                got=str(self._teacher_digest()),
                do="give back the teacher that it had, or start a new run",
            )
        check_tensors(checkpoint.weights, self.network.state_dict(), str(path))
        self.network.load_state_dict(checkpoint.weights)
        if self.dictionaries is not None:
            dictionary.check_digest(self.dictionaries.record, *_dictionaries_of(self.network), str(path))
        checkpoints.restore_moments(self.network, learner.optimizer, checkpoint.moments)
        if learner.scaler.is_enabled():
            learner.scaler.load_state_dict(state["scaler"])
        self.step = checkpoint.step
        if not self.world.is_main:
            return
        _log.info("continuing from %s", path)
        if state.get("format_version", 1) < checkpoints.FORMAT_VERSION:
            _log.warning("%s was written by an older version: terms of the objective may have changed since", path)
        if state.get("processes", 1) != self.world.size:
            _log.warning(
                "%s was written by %d processes, %d continue: the same samples, summed in another order",
                path, state.get("processes", 1), self.world.size,
            )

    # -- dictionaries -----------------------------------------------------------------------------------------------

    def _find_dictionaries(self, pairs: list[LoadedPair]) -> Dictionaries:
        """Those that ``initial`` brought, those of ``dictionary.folder``, those that this run has made before, or new
        ones; the first that there are. A folder's must be what the configuration would make; those that belong to weights
        stay with them, also when the backbone has been trained anew since."""
        config, network = self.config, self.config.network_config()
        wanted = {"regions": config.dictionary.regions, "prototypes": network.prototypes, "entries": network.entries}
        made = self.out / "dictionary"
        if config.initial and config.dictionary.folder:
            raise InputError(
                "initial and dictionary.folder both bring dictionaries",
                do="leave dictionary.folder out: weights keep the dictionaries that they were trained with",
            )
        if self._makes_dictionaries():
            found, sheets = build_dictionaries(pairs, config.dictionary, network, seed=config.seed, device=self.device)
            write_sheets(made, sheets)
            dictionary.write_dictionaries(made, found)
            return found
        if config.initial:
            record = dictionary.parse_record(load_model(resolve_model(config.initial))[1].dictionary, config.initial)
            found, where = Dictionaries(*(t.cpu() for t in _dictionaries_of(self.network)), record), config.initial
        elif config.dictionary.folder:
            found, where = dictionary.read_dictionaries(config.dictionary.folder), config.dictionary.folder
            wanted["backbone_sha256"] = Backbone(config.dictionary.backbone).sha256
        else:
            found, where = dictionary.read_dictionaries(made), str(made)
            wanted |= {"images": len(pairs), "seed": config.seed}
        dictionary.check_origin(found.record, wanted, where)
        return found

    def _makes_dictionaries(self) -> bool:
        """Whether there are no dictionaries yet. The main process alone may ask: no other need see its run folder."""
        made = (self.out / "dictionary" / dictionary.RECORD).is_file()
        return not (self.config.initial or self.config.dictionary.folder or made)

    def _require_what_makes_dictionaries(self) -> None:
        if self._makes_dictionaries():
            require_module("sklearn", extra="train")

    def _teacher_digest(self) -> str | None:
        return self._learner.teacher.digest if self._learner.teacher else None

    def _load_pairs(self, root: str | Path, cache: str | Path | None) -> tuple[list[LoadedPair], list[LoadedPair]]:
        """Training and validation pairs; the latter in the process that validates."""
        data = self.config.data
        store = PictureCache(cache) if cache is not None else None
        loaded = []
        for specs, what, limit in (
            (data.sets, "training pairs", None),
            (data.validation if self.world.is_main else (), "validation pairs", data.validation_pairs),
        ):
            pairs = [pair for spec in specs for pair in select_pairs(spec, root=root)[:limit]]
            quiet = not self.world.is_main
            if store is not None:
                loaded.append(store.load(pairs, what, quiet=quiet))
            else:
                loaded.append(list(decode_pairs(pairs, what, quiet=quiet)))
        return loaded[0], loaded[1]


def _dictionaries_of(network: nn.Module) -> list[torch.Tensor]:
    return [getattr(network, f"adjust_{modality}").dictionary for modality in MODALITIES]


def _parts(slots: range, count: int) -> list[range]:
    if len(slots) % count:
        raise InputError(
            f"a process's batch of {len(slots)} cannot be cut into {count} parts",
            expected="a multiple of accumulate",
            got=f"accumulate {count}",
            do="change data.batch or accumulate",
        )
    side = len(slots) // count
    return [slots[start : start + side] for start in range(0, len(slots), side)]
