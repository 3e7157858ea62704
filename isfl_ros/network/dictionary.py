"""Confounder dictionaries: the prototypes of each modality, and the record of where they came from.

A dictionary folder holds ``dictionary.safetensors`` (``visible`` and ``infrared``, (N, D) float32 each) and
``dictionary.json``, the record. A model folder has the tensors among its weights and the record in its description.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from isfl_ros.errors import InputError
from isfl_ros.io.staging import write_bytes
from isfl_ros.network.config import BaffmConfig, config_from_dict

RECORD = "dictionary.json"
TENSORS = "dictionary.safetensors"
REMEDY = (
    "make one for this configuration with isfl dictionary, or train anew: isfl train builds one before the first step"
)


@dataclass(frozen=True, kw_only=True)
class DictionaryRecord:
    """Where two dictionaries came from: what a network must agree with to use them."""

    backbone: str
    """Name of the model whose encoders gave the features."""
    backbone_sha256: str
    """SHA-256 of its weights' file."""
    backbone_width: int
    """Entries of a feature before the principal components were taken."""
    regions: int
    """Every picture gave this number squared of features."""
    prototypes: int
    """N."""
    entries: int
    """D: principal components."""
    images: int
    """Training pictures of each modality."""
    seed: int
    """Of K-Means++."""
    explained_variance: dict
    """By modality: part of the features' variance that the principal components hold, 0 to 1."""
    members: dict
    """By modality: number of features behind each prototype, most first."""
    sha256: str
    """Of the two dictionaries (:func:`digest_of`)."""


@dataclass(frozen=True)
class Dictionaries:
    """Both dictionaries, (N, D) float32 on the CPU, and their record."""

    visible: Tensor
    infrared: Tensor
    record: DictionaryRecord


def digest_of(visible: Tensor, infrared: Tensor) -> str:
    """SHA-256 of two dictionaries."""
    digest = hashlib.sha256()
    for values in (visible, infrared):
        digest.update(values.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def parse_record(values: object, where: str) -> DictionaryRecord:
    """The record from a mapping as JSON gives it.

    Raises:
        InputError: it is none, or has an unknown, a missing or a mistyped key.
    """
    if not values:
        raise InputError(f"{where}: there is no record of the confounder dictionaries", do=REMEDY)
    try:
        record = config_from_dict(DictionaryRecord, values, f"{where}: dictionary")
    except TypeError as error:
        raise InputError(f"{where}: the record of the dictionaries is incomplete", got=str(error), do=REMEDY) from error
    kinds = {"int": int, "str": str, "dict": dict}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not isinstance(value, kinds[field.type]):
            what = f"{where}: {field.name} of the dictionaries' record has the wrong type"
            raise InputError(what, expected=field.type, got=repr(value), do=REMEDY)
    return record


def check_shape(record: DictionaryRecord, config: BaffmConfig, where: str) -> None:
    """Refuses dictionaries of another size than the network's.

    Raises:
        InputError: N or D differ.
    """
    for key in ("prototypes", "entries"):
        if getattr(record, key) != getattr(config, key):
            raise InputError(
                f"{where}: the dictionaries are of another size than the network",
                expected=f"{key} {getattr(config, key)}",
                got=str(getattr(record, key)),
                do=REMEDY,
            )


def check_origin(record: DictionaryRecord, wanted: dict[str, object], where: str) -> None:
    """Refuses dictionaries that were made in another way than is asked for.

    Args:
        record: of the dictionaries.
        wanted: fields of the record and the values they must have.
        where: for the message.

    Raises:
        InputError: the first difference.
    """
    for key, value in wanted.items():
        if getattr(record, key) != value:
            raise InputError(
                f"{where}: the dictionaries were made otherwise than the configuration says",
                expected=f"{key} {value}",
                got=str(getattr(record, key)),
                do=REMEDY,
            )


def check_digest(record: DictionaryRecord, visible: Tensor, infrared: Tensor, where: str) -> None:
    """Refuses dictionaries that are not those of the record.

    Raises:
        InputError: the digests differ.
    """
    if digest_of(visible, infrared) != record.sha256:
        raise InputError(f"{where}: the dictionaries are not those that their record describes", do=REMEDY)


def write_dictionaries(folder: Path, dictionaries: Dictionaries) -> None:
    """Writes the two files; the record last, whose presence says that the tensors are there."""
    tensors = {"visible": dictionaries.visible.contiguous(), "infrared": dictionaries.infrared.contiguous()}
    write_bytes(folder / TENSORS, save(tensors))
    document = json.dumps(dataclasses.asdict(dictionaries.record), indent=2) + "\n"
    write_bytes(folder / RECORD, document.encode())


def read_dictionaries(folder: str | Path) -> Dictionaries:
    """Reads a dictionary folder.

    Raises:
        InputError: a file is missing or damaged, or the two do not belong together.
    """
    folder = Path(folder)
    for name in (RECORD, TENSORS):
        if not (folder / name).is_file():
            what = f"{folder} is not a dictionary folder"
            raise InputError(what, expected=f"{RECORD} and {TENSORS}", got=f"no {name}")
    try:
        record = parse_record(json.loads((folder / RECORD).read_text()), str(folder / RECORD))
        tensors = load_file(folder / TENSORS)
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged", got=str(error), do="make it again with isfl dictionary") from error
    shape = (record.prototypes, record.entries)
    for name in ("visible", "infrared"):
        if name not in tensors or tuple(tensors[name].shape) != shape or tensors[name].dtype != torch.float32:
            what = f"{folder / TENSORS} lacks {name} of shape {shape}"
            raise InputError(what, do="make it again with isfl dictionary")
    check_digest(record, tensors["visible"], tensors["infrared"], str(folder))
    return Dictionaries(tensors["visible"], tensors["infrared"], record)
