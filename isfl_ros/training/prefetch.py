"""Batches made ahead of the training loop by background threads.

Threads, not processes: cutting is OpenCV and numpy, which let go of the interpreter lock, and pictures need no copies.
What a batch holds is a function of its step and slots alone, so the number of threads changes nothing but the time.
"""

from __future__ import annotations

import collections
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Generic, Iterator, TypeVar

import torch

from isfl_ros.training.data import Batch, usable_cores

T = TypeVar("T")

_MOST_WORKERS = 8


def default_workers(device: str, local_processes: int) -> int:
    """Threads that cut batches, when nobody says how many: a GPU is kept busy with what its process has of the cores;
    on a CPU, where the step itself needs them, one thread hides the cutting."""
    cores = usable_cores() // local_processes
    if torch.device(device).type == "cpu":
        return 1 if cores > 1 else 0
    return max(1, min(_MOST_WORKERS, cores - 1))


def pin(batch: Batch, device: torch.device) -> Batch:
    """The batch in page-locked memory where the device is a GPU, from which it can be copied while the host goes on."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a thread starts at GPU 0, on which it would leave memory
        return Batch(*(x.pin_memory() if isinstance(x, torch.Tensor) else x for x in batch))


class Prefetcher(Generic[T]):
    """Makes the parts of steps ahead, a bounded number of them, and hands them out in order.

    Args:
        make: called with (step, part), in any thread; must depend on nothing else.
        parts: parts of a step.
        steps: steps of the run; nothing is made beyond.
        workers: threads; 0 makes every part when it is asked for.
    """

    def __init__(self, make: Callable[[int, int], T], *, parts: int, steps: int, workers: int):
        self._make, self._parts, self._end, self._workers = make, parts, parts * steps, workers
        self._threads: ThreadPoolExecutor | None = None
        self._ahead: collections.deque[tuple[int, Future[T]]] = collections.deque()

    def take(self, step: int) -> Iterator[T]:
        """The parts of a step. What ``make`` raised for one is raised here, with the traceback of its thread."""
        for number in range(step * self._parts, (step + 1) * self._parts):
            yield self._make(*divmod(number, self._parts)) if self._workers == 0 else self._next(number)

    def close(self) -> None:
        """Ends the threads; what they are at is finished, what waits is dropped."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        self._ahead.clear()

    def _next(self, number: int) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="isfl-data")
        if self._ahead and self._ahead[0][0] != number:  # the loop went somewhere else, to a checkpoint's step
            while self._ahead:
                self._ahead.popleft()[1].cancel()
        first = self._ahead[-1][0] + 1 if self._ahead else number
        last = max(number + 1, min(number + 2 * self._workers + 1, self._end))
        for ahead in range(first, last):
            self._ahead.append((ahead, self._threads.submit(self._make, *divmod(ahead, self._parts))))
        return self._ahead.popleft()[1].result()
