"""Importer of the ISFL authors' released checkpoint: their tensor names to ours, nothing skipped but what is never used."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.network.checkpoint import ModelInfo, check_tensors
from isfl_ros.network.config import ARCHITECTURES
from isfl_ros.network.model import IsflNet

# Modules of the release that its forward pass never uses; exactly these are left out.
_UNUSED = ("adjust_channels3.", "module4.", "module5.")

_BLOCK = {"0": "0.conv", "1": "0.norm", "3": "1.conv", "4": "1.norm"}  # indices of a two-convolution block
_GATE = {"0": "layers.0.conv", "1": "layers.0.norm", "3": "layers.1"}
_REFINE = {"0": "conv", "1": "norm"}
_SCALE = {"cfi5": 0, "cfi4": 1, "cfi3": 2}  # ours count from the finest
_DECODER = {"adjust_channels5": 0, "adjust_channels4": 1}
_PROJECTION = {"q": "query", "k": "key", "v": "value"}
_MODALITY = {"v": "visible", "i": "infrared"}


def read_release(path: str | Path) -> tuple[IsflNet, ModelInfo]:
    """Reads the authors' checkpoint.

    Args:
        path: ``.safetensors``, or ``.pth`` / ``.pt``, which is read with ``weights_only=True``.

    Raises:
        InputError: the file is missing or unreadable, or a tensor is unknown, missing or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} not found", expected="the released checkpoint (.safetensors or .pth)")
    tensors = _read_tensors(path)
    network = IsflNet(ARCHITECTURES["isfl-release"])
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_UNUSED):
            continue
        ours = _our_name(name)
        if ours is None:
            raise InputError(f"{path}: unknown tensor {name!r}", expected="the names of the authors' released checkpoint")
        if ours.split(".")[-2] in ("query", "key", "value") and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]  # a 1x1 convolution is a matrix here
        renamed[ours] = tensor
    check_tensors(renamed, network.state_dict(), str(path))
    network.load_state_dict(renamed)
    info = ModelInfo(
        name="isfl-release",
        model="isfl",
        architecture="isfl-release",
        recipe="imported from the authors' release",
        config=network.config,
        training={"source_file": path.name},
    )
    return network.eval(), info


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is unreadable as a checkpoint", got=str(error)) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise InputError(
            f"{path} is unreadable as a checkpoint", expected="a file of tensors and nothing else", got=type(error).__name__
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no table of tensors", expected="names and tensors")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _our_name(name: str) -> str | None:
    parts = name.split(".")
    try:
        if parts[0] in ("encoder_vis", "encoder_ir"):
            encoder = {"encoder_vis": "encoder_visible", "encoder_ir": "encoder_infrared"}[parts[0]]
            block = {"module1": 0, "module2": 1, "module3": 2}[parts[1]]
            return f"{encoder}.blocks.{block}.{_BLOCK[parts[2]]}.{parts[3]}"
        if parts[0] in _SCALE:
            prefix = f"integrators.{_SCALE[parts[0]]}"
            if parts[1] == "gate":
                return f"{prefix}.gate.{_GATE[parts[2]]}.{parts[3]}"
            if parts[1] == "refine":
                return f"{prefix}.refine.{_REFINE[parts[2]]}.{parts[3]}"
            kind, modality = parts[1].split("_")
            return f"{prefix}.{_MODALITY[modality]}.{_PROJECTION[kind]}.{parts[2]}"
        if parts[0] in _DECODER:
            return f"decoders.{_DECODER[parts[0]]}.convs.{_BLOCK[parts[1]]}.{parts[2]}"
        if parts[:2] == ["final_decoder", "0"]:
            return f"head.conv.{parts[2]}"
    except (KeyError, IndexError, ValueError):
        return None
    return None
