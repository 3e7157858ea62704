"""Several processes in one run: who cuts which samples, averages, and failures that end all of them.

``torchrun`` starts the processes. Every process holds the whole network and takes its part of the global batch;
gradients are averaged once a step, after backward.

Not ``DistributedDataParallel``: a step runs the network once for every variant, each pass with its own batch
statistics, before one backward. DDP's buffers are broadcast into the network at each forward, that is into what the
passes before still need for backward; its hooks count on one forward a backward; and with accumulation all but the last
would have to be switched off. The network has less than a megabyte of gradients, so there is no transfer worth hiding
behind backward.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from isfl_ros.device import DeviceChoice, choose_device
from isfl_ros.errors import InputError

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(minutes=30)
"""Longest wait for another process: rank 0 validates and writes while the others wait."""
MOST_VALUES = 64
"""Loss terms of a step that fit into the exchange, whose size every process must know without asking."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. The default is a run of one process: nothing is exchanged."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its machine: the index of its GPU."""
    local_size: int = 1
    """Number of processes on its machine."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def slots(self, batch: int) -> range:
        """The part of the global batch that is this process's.

        Raises:
            InputError: the batch cannot be divided.
        """
        if batch % self.size:
            raise InputError(
                f"data.batch {batch} cannot be divided among {self.size} processes",
                expected=f"a multiple of {self.size}",
                do="change data.batch or --nproc_per_node",
            )
        part = batch // self.size
        return range(self.rank * part, (self.rank + 1) * part)

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, on every process; what it raises there, everywhere. Not called elsewhere."""
        if self.size == 1:
            return make()
        result, error = None, None
        if self.is_main:
            result, error = _outcome(make)
        outcome = [(result, _as_text(error))]
        with _lost_processes():
            dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        result, text = outcome[0]
        if text is not None:
            raise InputError("process 0 failed", got=text)
        return result

    def together(self, make: Callable[[], T]) -> T:
        """What ``make`` returns; where it fails on one process, all fail."""
        if self.size == 1:
            return make()
        result, error = _outcome(make)
        texts: list[str | None] = [None] * self.size
        with _lost_processes():
            dist.all_gather_object(texts, _as_text(error))
        if error is not None:
            raise error
        self._raise_first(texts)
        return result

    def require_same(self, what: str, value: str) -> None:
        """Refuses to train where the processes do not agree.

        Raises:
            InputError: ``value`` differs between processes.
        """
        if self.size == 1:
            return
        values: list[str] = [""] * self.size
        with _lost_processes():
            dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise InputError(
                    f"process {rank} has {what} that differ from process 0's",
                    do="give all of them the same files and options",
                )

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites tensors with those of rank 0."""
        if self.size == 1:
            return
        with torch.no_grad(), _lost_processes():
            for tensor in tensors:
                plain = tensor.detach().contiguous()
                dist.broadcast(plain, src=0)
                tensor.copy_(plain)

    def average_step(
        self, parameters: Sequence[Tensor], statistics: Sequence[Tensor], values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Averages gradients, running statistics and loss terms over the processes, in one exchange.

        Args:
            parameters: their ``grad`` is replaced; one without a gradient keeps none.
            statistics: float32 tensors that are replaced.
            values: this process's loss terms, (n,) float32; None: it has failed, and takes part so that the others
                learn of it.

        Returns:
            The terms' averages (n,), and the number of processes that failed (a tensor, so that nothing waits for it
            here).
        """
        device = parameters[0].device
        if self.size == 1:
            return values, torch.zeros((), device=device)
        padded = torch.zeros(MOST_VALUES + 1, device=device)
        if values is None:
            padded[-1] = float(self.size)  # the average below makes it 1
        else:
            padded[: values.numel()] = values
        targets = [torch.zeros_like(p) if p.grad is None or values is None else p.grad for p in parameters]
        targets += [*statistics, padded]
        flat = torch.cat([t.detach().reshape(-1) for t in targets])
        with _lost_processes():
            dist.all_reduce(flat)
        flat /= self.size
        with torch.no_grad():
            for target, part in zip(targets, flat.split([t.numel() for t in targets])):
                target.copy_(part.view(target.shape))
        return padded[: MOST_VALUES if values is None else values.numel()], padded[-1]

    def _raise_first(self, texts: Sequence[str | None]) -> None:
        for rank, text in enumerate(texts):
            if text is not None:
                raise InputError(f"process {rank} of {self.size} failed", got=text)


def launched() -> World:
    """This process's place, as ``torchrun`` says in its environment; a process of its own without.

    Raises:
        InputError: the environment names a rank and lacks the rest, or holds something else than numbers.
    """
    if "RANK" not in os.environ:
        return World()
    numbers = []
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        text = os.environ.get(key, "")
        if not text.isdigit():
            what = f"environment variable {key} is no number"
            raise InputError(what, got=repr(text), do="start several processes with torchrun")
        numbers.append(int(text))
    return World(*numbers)


def choose_device_of(world: World, requested: str) -> DeviceChoice:
    """The device of one process of several: GPU number ``local_rank``, or the CPU.

    Raises:
        InputError: as :func:`~isfl_ros.device.choose_device`, or a machine has more processes than GPUs.
    """
    if world.size == 1 or requested == "cpu" or not torch.cuda.is_available():
        return choose_device(requested)
    if world.local_size > torch.cuda.device_count():
        raise InputError(
            f"{world.local_size} processes on a machine with {torch.cuda.device_count()} GPUs",
            expected="one process a GPU",
            do="lower --nproc_per_node or pass --device cpu",
        )
    torch.cuda.set_device(world.local_rank)  # before anything puts memory on the first one
    choice = choose_device(requested)
    if choice.device == "cpu":  # the others would wait for it on another transport
        raise InputError(
            f"process {world.rank} cannot use its GPU", got=choice.reason, do="mend it, or pass --device cpu to all processes"
        )
    return DeviceChoice(f"cuda:{world.local_rank}" if choice.device == "cuda" else choice.device, choice.reason)


@contextlib.contextmanager
def process_group(world: World, device: str) -> Iterator[None]:
    """Connects the processes for the time of the block: NCCL between GPUs, Gloo between CPUs.

    A block that succeeds waits for the others at its end; one that fails leaves at once, which the others notice.
    """
    if world.size == 1:
        yield
        return
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=_TIMEOUT)
    try:
        yield
        with _lost_processes():
            dist.barrier()
    finally:
        dist.destroy_process_group()


def _outcome(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:  # handed to the others, then raised
        return None, error


def _as_text(error: Exception | None) -> str | None:
    if error is None:
        return None
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    """Says in words that another process has gone; the transport only knows of a closed connection."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "the other processes are lost",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="look for the first message of another process, then continue with --resume",
        ) from error
