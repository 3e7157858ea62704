"""Decoded pictures on disk, shared by runs and processes: decoded once, memory-mapped afterwards.

A cache is a folder with ``index.json``, files ``pictures-*.npy`` (one-dimensional uint8, the planes of many pairs one
after the other: a mapped file costs a file descriptor) and ``lock``. Files and index appear whole and are never changed
in place, so that reading needs no lock; whoever finds a pair missing takes the lock, looks again, and decodes what
still is.

A pair is found by the paths of its files, and taken only if their sizes and times, the conversion and the digest of its
bytes are those of the index. What is not is decoded again, and a line is logged: a damaged cache costs time, never
pictures.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Iterator

import numpy as np

from isfl_ros.errors import InputError
from isfl_ros.images import GainControlConfig
from isfl_ros.io.folders import Pair
from isfl_ros.io.staging import write_bytes
from isfl_ros.training.data import LoadedPair, decode_pairs

_log = logging.getLogger(__name__)

FORMAT = "isfl_ros-picture-cache"
FORMAT_VERSION = 1
CONVERSION = 1
"""To be raised by whoever changes what ``decode_pair`` gives: older entries are then no longer taken."""
_INDEX = "index.json"
_PAIRS_PER_FILE = 128


class _Unusable(Exception):
    """Why an entry cannot be taken."""


class PictureCache:
    """A folder of decoded pairs.

    Args:
        directory: the folder; made where it is missing.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def load(self, pairs: list[Pair], what: str, *, quiet: bool = False) -> list[LoadedPair]:
        """The pairs in their order, mapped from the cache; what it lacks is decoded into it first.

        Raises:
            InputError: a picture is unreadable, the sizes of a pair differ, or a file changes while it is read.
            OSError: the folder cannot be written.
        """
        found = self._find(pairs, say=False)
        if any(_identity(pair) not in found for pair in pairs):
            with self._lock():
                found = self._find(pairs, say=True)  # another process may have filled it meanwhile
                missing = {_identity(pair): pair for pair in pairs if _identity(pair) not in found}
                if missing:
                    self._fill(list(missing.values()), what, quiet=quiet)
                    found = self._find(pairs, say=True)
        for pair in pairs:
            if _identity(pair) not in found:
                raise InputError(
                    f"the files of pair {pair.stem} change while they are read", do="start again when they are whole"
                )
        return [found[_identity(pair)] for pair in pairs]

    # -- reading ------------------------------------------------------------------------------------------------------

    def _find(self, pairs: list[Pair], *, say: bool) -> dict[str, LoadedPair]:
        entries = self._read_index(say=say)
        files: dict[str, np.ndarray] = {}
        found, refused = {}, defaultdict(list)
        for pair in pairs:
            identity = _identity(pair)
            if identity in found or identity not in entries:
                continue
            try:
                found[identity] = self._open(pair, entries[identity], files)
            except _Unusable as reason:
                refused[str(reason)].append(pair.stem)
        for reason, stems in refused.items():
            if say:
                _log.warning("cache %s: %d pairs decoded again (%s): %s", self.directory, len(stems), stems[0], reason)
        return found

    def _open(self, pair: Pair, entry: object, files: dict[str, np.ndarray]) -> LoadedPair:
        try:
            name, start, digest = Path(entry["file"]).name, int(entry["offset"]), entry["sha256"]
            height, width, labelled = int(entry["height"]), int(entry["width"]), bool(entry["people"])
            fingerprint = entry["fingerprint"]
        except (TypeError, KeyError, ValueError):
            raise _Unusable("its entry in the index is damaged") from None
        if fingerprint != _fingerprint(pair):
            raise _Unusable("its files, or the conversion, have changed since")
        if name not in files:
            try:
                files[name] = np.asarray(np.load(self.directory / name, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError, EOFError) as error:
                raise _Unusable(f"{name} is unreadable ({' '.join(str(error).split())})") from error
        pixels = height * width
        size = pixels * (4 if labelled else 2)
        data = files[name]
        if data.dtype != np.uint8 or data.ndim != 1 or start < 0 or min(height, width) < 1 or start + size > data.size:
            raise _Unusable(f"{name} does not hold it")
        data = data[start : start + size]
        if _digest(_identity(pair), fingerprint, (height, width), labelled, data) != digest:
            raise _Unusable(f"its bytes in {name} are damaged")
        planes = data[: 2 * pixels].reshape(2, height, width)
        people = data[2 * pixels :].view("<u2").reshape(height, width) if labelled else None
        return LoadedPair(pair.stem, planes[0], planes[1], people)

    def _read_index(self, *, say: bool) -> dict[str, object]:
        try:
            document = json.loads((self.directory / _INDEX).read_text())
            if document["format"] != FORMAT or document["format_version"] != FORMAT_VERSION:
                raise ValueError("another format")
            return dict(document["entries"])
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError) as error:
            if say:
                _log.warning("cache %s: %s is damaged (%s): everything is decoded again", self.directory, _INDEX, error)
            return {}

    # -- writing, under the lock --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.directory / "lock").open("a") as file:  # the system lets go of it when its holder dies
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("cache %s: waiting for another process, which fills it", self.directory)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fill(self, pairs: list[Pair], what: str, *, quiet: bool) -> None:
        for stale in self.directory.glob(".pictures-*"):
            stale.unlink()
        entries = self._read_index(say=False)
        for start in range(0, len(pairs), _PAIRS_PER_FILE):
            chunk = pairs[start : start + _PAIRS_PER_FILE]
            fingerprints = [_fingerprint(pair) for pair in chunk]  # before reading: a later change is then seen
            # Never a name of before: who has read the older index must not find other bytes under it.
            name = f"pictures-{uuid.uuid4().hex}.npy"
            planes: list[np.ndarray] = []
            offset = 0
            decoded = decode_pairs(chunk, f"{what} into the cache", quiet=quiet)
            for pair, fingerprint, loaded in zip(chunk, fingerprints, decoded):
                parts = [loaded.visible.ravel(), loaded.infrared.ravel()]
                if loaded.people is not None:
                    parts.append(loaded.people.astype("<u2").ravel().view(np.uint8))
                data = np.concatenate(parts)
                shape = loaded.visible.shape
                entries[_identity(pair)] = {
                    "file": name,
                    "offset": offset,
                    "height": shape[0],
                    "width": shape[1],
                    "people": loaded.people is not None,
                    "fingerprint": fingerprint,
                    "sha256": _digest(_identity(pair), fingerprint, shape, loaded.people is not None, data),
                }
                planes.append(data)
                offset += data.size
            aside = self.directory / f".{name}"
            with aside.open("wb") as file:
                np.save(file, np.concatenate(planes), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.directory / name)
            # After every file, so that an interrupted start goes on where it was.
            document = {"format": FORMAT, "format_version": FORMAT_VERSION, "entries": entries}
            write_bytes(self.directory / _INDEX, (json.dumps(document, indent=1) + "\n").encode())
            _log.info("cache %s: %d pairs decoded into %s", self.directory, len(chunk), name)
        used = {entry.get("file") for entry in entries.values() if isinstance(entry, dict)}
        for path in self.directory.glob("pictures-*.npy"):
            if path.name not in used:
                path.unlink()  # who has it mapped keeps it


def _identity(pair: Pair) -> str:
    return "|".join(str(path.resolve()) for path in _files(pair))


def _fingerprint(pair: Pair) -> str:
    """What changes when a file is replaced, or when it would be decoded to something else.

    The time of modification alone can be set back by the program that copies.
    """
    stats = [path.stat() for path in _files(pair)]
    return json.dumps([CONVERSION, repr(GainControlConfig()), *([s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats)])


def _files(pair: Pair) -> list[Path]:
    return [pair.thermal, pair.rgb, *([pair.label] if pair.label else [])]


def _digest(identity: str, fingerprint: str, shape: tuple[int, int], labelled: bool, data: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps([identity, fingerprint, list(shape), labelled]).encode())
    digest.update(data)
    return digest.hexdigest()
