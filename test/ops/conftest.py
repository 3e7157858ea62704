"""What the tests of fused kernels need of Triton's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

from isfl_ros.ops.triton_support import interpreter_is_on


@pytest.fixture(autouse=True, scope="session")
def _interpreted_bfloat16_products() -> Iterator[None]:
    """Triton's interpreter keeps bfloat16 as 16-bit integers, and multiplies those in ``tl.dot``: widen them before."""
    if importlib.util.find_spec("triton") is None or not interpreter_is_on():
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    def widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype != np.uint16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    original = interpreter.InterpreterBuilder.create_dot
    patch = pytest.MonkeyPatch()
    patch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: original(self, widened(a), widened(b), *rest),
    )
    yield
    patch.undo()
