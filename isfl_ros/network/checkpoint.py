"""Checkpoints: ``weights.safetensors`` beside the ``model.json`` from which the network is rebuilt, loaded strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isfl_ros import __version__
from isfl_ros.errors import InputError
from isfl_ros.network.baffm import MODALITIES, BaffmNet
from isfl_ros.network.config import BaffmConfig, IsflConfig, config_from_dict
from isfl_ros.network.dictionary import REMEDY, check_digest, check_shape, parse_record
from isfl_ros.network.model import IsflNet

FORMAT = "isfl_ros-model"
FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.json"

# model key -> (configuration, network). Another model joins here.
MODELS: dict[str, tuple[type, type[nn.Module]]] = {"isfl": (IsflConfig, IsflNet), "baffm": (BaffmConfig, BaffmNet)}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model folder says of itself besides its weights."""

    name: str
    """Name of the folder, for people."""
    model: str
    """Key of the network class, see :data:`MODELS`."""
    architecture: str
    """Named architecture the configuration came from."""
    recipe: str
    """Training recipe, or where the weights came from."""
    config: object
    """Configuration dataclass of the network."""
    training: dict = field(default_factory=dict)
    """Facts about the training, for people; nothing reads them back."""
    dictionary: dict = field(default_factory=dict)
    """Record of the confounder dictionaries (:class:`~isfl_ros.network.dictionary.DictionaryRecord`); empty where the
    network has none."""


def weights_sha256(directory: Path) -> str:
    """SHA-256 of a model folder's weights file, as a record of what was used names it."""
    return hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()


def save_model(directory: Path, network: nn.Module, info: ModelInfo, *, overwrite: bool = False) -> None:
    """Writes a model folder. A new one appears whole or not at all; in an old one the two files are replaced one by one.

    Raises:
        InputError: the folder exists and ``overwrite`` is false.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise InputError(f"{directory} exists", do="choose another folder or pass --overwrite")
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        aside.chmod(0o755)  # mkdtemp makes it private
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(tensors, aside / WEIGHTS)
        (aside / WEIGHTS).chmod(0o644)  # the library makes it private, and an install copies the mode
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "isfl_ros_version": __version__,
            "model": info.model,
            "architecture": info.architecture,
            "recipe": info.recipe,
            "config": dataclasses.asdict(info.config),
            "training": info.training,
        }
        if info.dictionary:
            document["dictionary"] = info.dictionary
        (aside / DESCRIPTION).write_text(json.dumps(document, indent=2) + "\n")
        if directory.exists():
            for name in (WEIGHTS, DESCRIPTION):  # what else lies there (a card) is not ours to remove
                os.replace(aside / name, directory / name)
        else:
            os.replace(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load_model(directory: str | Path) -> tuple[nn.Module, ModelInfo]:
    """Rebuilds a network from its folder: float32 on the CPU, evaluation mode.

    Raises:
        InputError: a file is missing or unreadable, the description has an unknown key, a tensor is missing, surplus,
            or of another shape or dtype, or the confounder dictionaries are missing or not those of the record.
    """
    directory = Path(directory)
    for name in (DESCRIPTION, WEIGHTS):
        if not (directory / name).is_file():
            raise InputError(
                f"{directory} is not a model folder", expected=f"{DESCRIPTION} and {WEIGHTS}", got=f"no {name}",
                do="name a model folder or a shipped model",
            )
    document = _read_description(directory / DESCRIPTION)
    model = document["model"]
    if not isinstance(model, str) or model not in MODELS:
        raise InputError(f"{directory / DESCRIPTION}: unknown model", expected=f"one of {', '.join(MODELS)}", got=repr(model))
    config_class, network_class = MODELS[model]
    config = config_from_dict(config_class, document["config"], f"{directory / DESCRIPTION}: config")
    network = network_class(config)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{directory / WEIGHTS} is unreadable", got=str(error), do="copy the model folder again") from error
    if getattr(config, "needs_dictionary", False):
        _check_dictionaries(document, tensors, config, directory)
    check_tensors(tensors, network.state_dict(), str(directory / WEIGHTS))
    network.load_state_dict(tensors)
    info = ModelInfo(
        name=directory.resolve().name,
        model=model,
        architecture=document["architecture"],
        recipe=document["recipe"],
        config=config,
        training=document.get("training", {}),
        dictionary=document.get("dictionary", {}),
    )
    return network.eval(), info


def _check_dictionaries(document: dict, tensors: dict[str, Tensor], config: BaffmConfig, directory: Path) -> None:
    names = [f"adjust_{modality}.dictionary" for modality in MODALITIES]
    missing = [name for name in names if name not in tensors]
    if missing:
        what = f"{directory / WEIGHTS} has no confounder dictionary"
        raise InputError(what, got=f"no tensor {missing[0]!r}", do=REMEDY)
    record = parse_record(document.get("dictionary"), str(directory / DESCRIPTION))
    check_shape(record, config, str(directory / DESCRIPTION))
    check_digest(record, *(tensors[name] for name in names), str(directory))


def check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> None:
    """Compares names, shapes and dtypes.

    Raises:
        InputError: the first difference, missing tensors before surplus ones.
    """
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise InputError(f"{where} lacks tensor {missing[0]!r}", got=f"{len(missing)} missing in all")
    surplus = sorted(set(found) - set(wanted))
    if surplus:
        raise InputError(f"{where} has surplus tensor {surplus[0]!r}", got=f"{len(surplus)} surplus in all")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise InputError(
                f"{where}: tensor {name!r} does not fit",
                expected=f"{tuple(tensor.shape)} {tensor.dtype}",
                got=f"{tuple(found[name].shape)} {found[name].dtype}",
            )
        if tensor.is_floating_point() and not torch.isfinite(found[name]).all():
            raise InputError(f"{where}: tensor {name!r} holds NaN or infinity", do="train or copy the model again")


def _read_description(path: Path) -> dict:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is unreadable", got=str(error)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path} is not a model description", expected=f'"format": "{FORMAT}"')
    if document.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: unknown format version",
            expected=str(FORMAT_VERSION),
            got=repr(document.get("format_version")),
            do="use the isfl_ros version that wrote it",
        )
    for key in ("model", "architecture", "recipe", "config"):
        if key not in document:
            raise InputError(f"{path} lacks key {key!r}")
    return document
