"""Compiles kernels for chips that are not here, and reads what became of them.

A helper of the tests, and their worker process: the tests run with Triton's interpreter on, which cannot compile, so
the compiling is done in processes of its own without it (``python ahead_of_time.py`` reads requests, one JSON object a
line, and answers each with one line).
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent

KIB = 1024
# Shared memory that one block may have, by compute capability (CUDA programming guide, technical specifications).
SHARED_LIMITS = {
    75: 64 * KIB,
    80: 163 * KIB,
    86: 99 * KIB,
    87: 163 * KIB,
    89: 99 * KIB,
    90: 227 * KIB,
    100: 227 * KIB,
}
CAPABILITIES = tuple(SHARED_LIMITS)


def precisions(capability: int) -> tuple[str, ...]:
    """The precisions that a chip has: neither tf32 nor bfloat16 before 8.0."""
    return ("fp32", "fp16") if capability < 80 else ("fp32", "tf32", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of a module's ``ahead_of_time_cases``; all the cases that it returns are compiled.

    Fields:
        module: of the ``fused.py`` whose ``ahead_of_time_cases`` is called.
        precision: fp32, tf32, fp16 or bf16.
        further: keyword arguments beyond channels, grid, dtype, tf32 and capability.
    """

    module: str
    channels: int
    grid: int
    precision: str
    capability: int
    further: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One compiled kernel, or why there is none.

    Fields:
        registers: of a thread. spilled: bytes of a thread in local memory. shared: bytes of a block.
        warps: of a block. seconds: to compile it, or to find it in the cache. error: empty if it compiled.
    """

    capability: int
    name: str
    kernel: str
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    warps: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def backward(self) -> bool:
        return "backward" in self.kernel

    @property
    def fits(self) -> bool:
        return self.shared <= SHARED_LIMITS[self.capability]


def cache_folder() -> Path:
    """Where compiled kernels are kept between runs: ``$ISFL_KERNEL_CACHE``, else below ``.pytest_cache``."""
    return Path(os.environ.get("ISFL_KERNEL_CACHE", REPOSITORY / ".pytest_cache" / "kernels"))


def worker_environment(cache: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    search = [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    return environment | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, search))}


def compile_all(
    requests: Iterable[Request], *, cache: Path | None = None, workers: int | None = None, prefix: Sequence[str] = ()
) -> list[Result]:
    """Compiles everything, in ``workers`` processes (as many as there are CPUs, at most 8, unless given).

    A worker that dies leaves an error for the request that it died of, and is replaced.
    """
    cache = cache or cache_folder()
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
    requests = list(requests)
    for request in requests:
        waiting.put(request)
    results: dict[Request, list[Result]] = {}
    failures: list[BaseException] = []

    def serve() -> None:
        worker: _Worker | None = None
        try:
            while True:
                try:
                    request = waiting.get_nowait()
                except queue.Empty:
                    return
                worker = worker or _Worker(cache, prefix)
                answer = worker.ask(request)
                if answer is None:
                    name = f"{request.module} C{request.channels} r{request.grid} {request.precision}"
                    error = f"the compiling process died: {worker.close()}"
                    worker = None
                    answer = [Result(capability=request.capability, name=name, kernel="", error=error)]
                results[request] = answer
        except BaseException as failure:  # a thread's exception would go unseen: raised again below
            failures.append(failure)
        finally:
            if worker is not None:
                worker.close()

    count = workers or min(8, os.cpu_count() or 1)
    threads = [threading.Thread(target=serve) for _ in range(min(count, len(requests)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [result for request in requests for result in results[request]]


class _Worker:
    """This file in a process of its own."""

    def __init__(self, cache: Path, prefix: Sequence[str]):
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=worker_environment(cache),
        )
        self._errors: list[str] = []
        # Read all along: a full pipe would stop the worker.
        self._reader = threading.Thread(target=lambda: self._errors.extend(self._process.stderr), daemon=True)
        self._reader.start()

    def ask(self, request: Request) -> list[Result] | None:
        """The results, or None if the process died."""
        try:
            self._process.stdin.write(json.dumps(asdict(request)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._process.stdout.readline()
        return [Result(**fields) for fields in json.loads(line)] if line else None

    def close(self) -> str:
        """Ends the process; the last of what it said on stderr."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._reader.join()
        self._process.stderr.close()
        return " ".join(line.strip() for line in self._errors[-4:])


def table(results: Iterable[Result]) -> str:
    """One line per kernel; spills and shared memory over the limit are marked."""
    lines = ["chip registers spilled B shared B warps seconds  kernel: variant"]
    for r in results:
        marks = f"  SPILLS {r.spilled} B" if r.spilled else ""
        marks += "" if r.fits else f"  SHARED OVER {SHARED_LIMITS[r.capability]} B"
        marks += f"  ERROR {r.error}" if r.error else ""
        lines.append(
            f"{r.capability:>4} {r.registers:>9} {r.spilled:>9} {r.shared:>8} {r.warps:>5} {r.seconds:>7.2f}"
            f"  {r.kernel}: {r.name}{marks}"
        )
    return "\n".join(lines)


# --- In the worker ---------------------------------------------------------------------------------------------------


def _cases(request: Request) -> list:
    import torch

    dtypes = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return importlib.import_module(request.module).ahead_of_time_cases(
        request.channels,
        request.grid,
        dtypes[request.precision],
        request.precision == "tf32",
        request.capability,
        **dict(request.further),
    )


def _compile(case, capability: int) -> Result:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    known = {"capability": capability, "name": case.name, "kernel": case.kernel.__name__}
    if list(case.signature) != case.kernel.arg_names:
        return Result(**known, error=f"signature {list(case.signature)} is not {case.kernel.arg_names}")
    wanted = {name for name, kind in case.signature.items() if kind == "constexpr"}
    if wanted != set(case.constants):
        return Result(**known, error=f"constants {sorted(case.constants)} are not {sorted(wanted)}")
    attributes = {(case.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in case.divisible_by_16}
    started = time.perf_counter()
    try:
        source = ASTSource(case.kernel, case.signature, case.constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=case.options)
    except Exception as error:  # whatever keeps a kernel from compiling is the finding
        text = " ".join(str(error).split())
        return Result(**known, error=f"{type(error).__name__}: {text[-600:]}")
    seconds = time.perf_counter() - started
    registers, spilled = _resources(compiled)
    return Result(
        **known,
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        seconds=seconds,
    )


def _resources(compiled) -> tuple[int, int]:
    """Registers and bytes of local memory of one thread, from the machine code; kept beside it in the cache."""
    import triton

    cubin = next(Path(path) for name, path in compiled.metadata_group.items() if name.endswith(".cubin"))
    kept = cubin.with_suffix(".resources.json")
    if kept.exists():
        return tuple(json.loads(kept.read_text()))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "--dump-resource-usage", cubin], check=True, capture_output=True, text=True).stdout
    figures = {name: re.search(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL")}
    if not all(figures.values()):
        raise RuntimeError(f"cuobjdump did not say what was asked: {text}")
    found = {name: int(match.group(1)) for name, match in figures.items()}
    result = found["REG"], found["STACK"] + found["LOCAL"]
    if os.access(cubin.parent, os.W_OK):
        kept.write_text(json.dumps(result))
    return result


def _work() -> None:
    # Triton and the tools it starts may print: only answers go where the answers are read.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        fields = json.loads(line)
        request = Request(**{**fields, "further": tuple((name, value) for name, value in fields["further"])})
        results = [_compile(case, request.capability) for case in _cases(request)]
        answers.write(json.dumps([asdict(result) for result in results]) + "\n")
        answers.flush()


if __name__ == "__main__":
    _work()
