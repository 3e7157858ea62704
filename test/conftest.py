"""What several test folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Fused kernels are tested in Triton's interpreter, or on a GPU with ISFL_TEST_DEVICE=cuda. Triton reads the variable when
# it is imported, so it is set before anything here can import it.
KERNEL_DEVICE = os.environ.get("ISFL_TEST_DEVICE", "cpu")
if KERNEL_DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def kernel_device() -> str:
    """Where the tests of fused kernels put their tensors."""
    return KERNEL_DEVICE


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)  # the pipeline sets it for its thread; hypothesis refuses to work with it


def _shared(variable: str, name: str) -> Path:
    path = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / name))
    if not path.is_dir():
        pytest.skip(f"{path} is not here; set {variable} to run this test")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real registered pairs."""
    return _shared("ISFL_DATA", "data")


@pytest.fixture(scope="session")
def reference_values() -> Path:
    """Folder of the authors' checkpoint and the golden values."""
    return _shared("ISFL_REFERENCE", "reference")
