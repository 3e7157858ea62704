"""Small pairs and a small run for the tests of training."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest

from isfl_ros.training.config import parse_config
from isfl_ros.training.loop import Trainer

DOCUMENT = {
    "network": {"width": 4, "gate_width": 4, "scales": 2},
    "data": {"sets": ["set"], "validation": ["set"], "validation_pairs": 1, "patch": 32, "batch": 4, "least_scale": 0.7},
    "interventions": {"large": 0.5},
    "loss": {"fidelity": 1.0, "ssim": 0.1, "target": 0.1, "necessity": "contrast"},
    "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 2, "clip_norm": 1.0},
    "steps": 6,
    "checkpoint_every": 3,
    "log_every": 2,
    "validate_every": 3,
    "batchnorm_freeze": 0.5,
}


@pytest.fixture(scope="session")
def pairs_root(tmp_path_factory):
    """Folder with two sets of odd sizes: ``set`` (4 pairs) and ``labelled`` (3 pairs, 2 of them with a label)."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for name, count in (("set", 4), ("labelled", 3)):
        for folder in ("ir", "vi", "labels"):
            (root / name / folder).mkdir(parents=True)
        for index in range(count):
            noise = cv2.GaussianBlur(rng.integers(0, 256, (61, 75, 3)).astype(np.uint8), (5, 5), 0)
            infrared = noise[::-1, :, 0].copy()
            if name == "labelled" and index < 2:
                label = np.zeros((61, 75), np.uint8)
                label[10:50, 20:34] = 2
                label[5:40, 50:60] = 2
                label[50:, :10] = 1
                cv2.imwrite(str(root / name / "labels" / f"{index}.png"), label)
                infrared[label == 2] = 250
            cv2.imwrite(str(root / name / "vi" / f"{index}.png"), noise)
            cv2.imwrite(str(root / name / "ir" / f"{index}.png"), infrared)
    return root


@pytest.fixture(scope="session")
def document():
    """``document(**values)``: the YAML of a small run as a mapping, top-level keys replaced."""
    return lambda **values: copy.deepcopy(DOCUMENT) | values


@pytest.fixture(scope="session")
def make_trainer(pairs_root, document):
    """``make_trainer(out, workers=, cache=, **values)`` on the CPU."""

    def make(out, *, workers=0, cache=None, **values):
        config = parse_config(document(**values), "test")
        return Trainer(config, data_root=pairs_root, out=out, device="cpu", workers=workers, cache=cache)

    return make
