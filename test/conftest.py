"""What several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
