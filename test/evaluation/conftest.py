"""What the tests of several verbs of the evaluation share."""

from __future__ import annotations

import pytest
import torch

from isfl_ros.evaluation import methods, tables
from isfl_ros.network.checkpoint import ModelInfo, save_model
from isfl_ros.network.config import IsflConfig
from isfl_ros.network.model import IsflNet


@pytest.fixture
def tiny_config():
    """A network that a CPU runs in a millisecond."""
    return IsflConfig(width=4, grid=2, gate_width=2)


@pytest.fixture
def tiny_model(tmp_path, tiny_config):
    """Model folder of an untrained network."""
    torch.manual_seed(0)
    info = ModelInfo(name="tiny", model="isfl", architecture="isfl", recipe="untrained", config=tiny_config)
    save_model(tmp_path / "tiny", IsflNet(tiny_config), info)
    return tmp_path / "tiny"


@pytest.fixture(autouse=True)
def _small_complexity(monkeypatch):
    for module in (methods, tables):
        monkeypatch.setattr(module, "COMPLEXITY_SIZE", (48, 64))
