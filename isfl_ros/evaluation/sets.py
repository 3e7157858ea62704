"""Sets of pairs: what is in them, what cannot be used and why, and the two pictures of a pair as the metrics see them.

Nothing is left out in silence: every pair that cannot be used becomes a :class:`LeftOut` with its cause, and the caller
either refuses the run (:func:`refuse`) or says in the tables how many of how many pairs they are over.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.evaluation import targets
from isfl_ros.evaluation.metrics import MIN_SIZE
from isfl_ros.images import GainControl, split_luma, to_uint8
from isfl_ros.io.dataset import select_pairs, set_name
from isfl_ros.io.folders import RGB_FOLDERS, THERMAL_FOLDERS, Pair, find_pairs, read_rgb, read_thermal
from isfl_ros.pipeline import PipelineConfig

_NAMED_IN_AN_ERROR = 5  # bad pairs an error names; it counts all of them


class Problem(NamedTuple):
    """Why a pair cannot be used."""

    cause: str
    """Short, the same for all pairs of one kind: they are counted by it."""
    why: str
    """The one-line message that names the file."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A pair that no table is over."""

    set: str
    stem: str
    cause: str
    why: str


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """A named set of pairs. Every table over it is over :attr:`pairs`, for every method alike."""

    name: str
    spec: str
    """How the set was asked for, see :mod:`isfl_ros.io.dataset`."""
    pairs: tuple[Pair, ...]
    """Those that can be used, sorted by stem."""
    left_out: tuple[LeftOut, ...] = ()
    """Those that cannot."""
    source_keys: Mapping[str, str] = field(default_factory=dict)
    """Stem to a SHA-256 of the two files, by which a kept prediction is known to be of this pair."""

    @property
    def total(self) -> int:
        """Pairs in the set, those left out included."""
        return len(self.pairs) + len(self.left_out)

    def spread(self, count: int) -> list[Pair]:
        """At most `count` pairs, spread evenly over the set from the first to the last."""
        chosen = np.linspace(0, len(self.pairs) - 1, min(count, len(self.pairs)))
        return [self.pairs[i] for i in chosen.round().astype(int)]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """One pair, as recorded and as the metrics see it; all (H, W)."""

    thermal: np.ndarray
    """uint8 or uint16, as stored."""
    rgb: np.ndarray
    """(H, W, 3) uint8."""
    infrared: np.ndarray
    """uint8, after the pipeline's gain control where the record is deeper."""
    luma: np.ndarray
    """uint8."""


def check_name(kind: str, name: str) -> str:
    """A name that can be a folder of its own.

    Raises:
        InputError: it cannot.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise InputError(f"{kind} name {name!r} cannot name a folder", do="put NAME= in front")
    return name


def read_set(spec: str) -> PairSet:
    """Selects the pairs of a specification; pictures of a folder without partner are left out.

    Raises:
        InputError: a folder or file is missing or holds nothing, a manifest lists missing files or selects nothing,
            no picture has a partner, or two pairs share a stem.
    """
    name = check_name("set", set_name(spec))
    root = Path(spec[len(name) + 1 :] if spec.startswith(f"{name}=") else spec)
    pairs, left_out = _pairs_of_folder(name, root) if root.is_dir() else (select_pairs(spec), [])
    twice = [stem for stem, count in Counter(pair.stem for pair in pairs).items() if count > 1]
    if twice:
        raise InputError(f"{spec} selects two pairs of the stem {twice[0]!r}", do="select one set at a time")
    return PairSet(name=name, spec=spec, pairs=tuple(pairs), left_out=tuple(left_out))


def _pairs_of_folder(name: str, root: Path) -> tuple[list[Pair], list[LeftOut]]:
    """As :func:`~isfl_ros.io.folders.find_dataset`, which refuses the first picture without partner."""

    def pick(names: tuple[str, ...]) -> dict[str, Path]:
        for folder in (root / choice for choice in names):
            if folder.is_dir():
                return {pair.stem: pair.thermal for pair in find_pairs(folder, folder)}  # paired with itself: a listing
        raise InputError(f"{root} lacks a folder of one modality", expected=f"one of {', '.join(names)}")

    thermal, rgb = pick(THERMAL_FOLDERS), pick(RGB_FOLDERS)
    pairs, left_out = [], []
    for stem in sorted(thermal.keys() | rgb.keys()):
        if stem in thermal and stem in rgb:
            label = root / "labels" / f"{stem}.png"
            pairs.append(Pair(stem, thermal[stem], rgb[stem], label if label.is_file() else None))
        else:
            why = f"{thermal.get(stem) or rgb[stem]} has no partner"
            left_out.append(LeftOut(set=name, stem=stem, cause="unpaired", why=why))
    return pairs, left_out


def read_sources(pair: Pair) -> Sources:
    """Reads a pair.

    Raises:
        InputError: a file is missing or unreadable, the sizes differ, or they are too small for the metrics.
    """
    thermal, rgb = read_thermal(pair.thermal), read_rgb(pair.rgb)
    problem = _misfit(pair, thermal, rgb)
    if problem:
        raise InputError(problem.why)
    picture, _ = GainControl(PipelineConfig().gain).apply(thermal)
    return Sources(thermal=thermal, rgb=rgb, infrared=to_uint8(picture), luma=split_luma(rgb)[0])


def size_text(picture: np.ndarray) -> str:
    """``WIDTHxHEIGHT``."""
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _misfit(pair: Pair, thermal: np.ndarray, rgb: np.ndarray) -> Problem | None:
    if thermal.shape != rgb.shape[:2]:
        sizes = f"{size_text(thermal)} and {size_text(rgb)}"
        return Problem("sizes differ", f"{pair.thermal} and {pair.rgb} differ in size: {sizes}")
    if min(thermal.shape) < MIN_SIZE:
        why = f"{pair.thermal} is too small for the metrics: {size_text(thermal)}, a side below {MIN_SIZE}"
        return Problem("too small", why)
    return None


Check = Callable[[str, Pair, str, tuple[int, int]], "Problem | None"]
"""(set name, pair, source key, (H, W) of the pair) -> what keeps a method from having a picture of it."""


class _Examined(NamedTuple):
    problem: Problem | None
    source_key: str = ""
    depth: np.dtype | None = None


def examine(sets: Sequence[PairSet], checks: Sequence[Check] = (), *, jobs: int = 1) -> list[PairSet]:
    """Reads every file of every set once, before anything is fused: what cannot be used is left out, with its cause.

    A set of which some thermal pictures have 8 bits and some 16 is not one recording: the rarer depth is left out.

    Args:
        sets: as :func:`read_set` gives them.
        checks: what the methods ask of a pair.
        jobs: threads.

    Returns:
        The sets with ``source_keys`` filled.
    """
    work = [(pair_set.name, pair) for pair_set in sets for pair in pair_set.pairs]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda item: _examine_pair(*item, checks), work)
        results = iter(list(tqdm(found, total=len(work), desc="check", unit="pair", leave=False)))
    return [_examined(pair_set, [next(results) for _ in pair_set.pairs]) for pair_set in sets]


def _examined(pair_set: PairSet, found: Sequence[_Examined]) -> PairSet:
    depths = Counter(result.depth for result in found if result.problem is None)
    # Of equally many the 8-bit ones stay: they are what the metrics are defined on.
    kept_depth = max(depths, key=lambda depth: (depths[depth], depth == np.uint8)) if depths else None
    pairs, left_out, keys = [], list(pair_set.left_out), {}
    for pair, result in zip(pair_set.pairs, found):
        problem = result.problem
        if problem is None and result.depth != kept_depth:
            bits = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}
            why = f"{pair.thermal} has {bits[result.depth]} bits, {depths[kept_depth]} others have {bits[kept_depth]}"
            problem = Problem("mixed depths", why)
        if problem is None:
            pairs.append(pair)
            keys[pair.stem] = result.source_key
        else:
            left_out.append(LeftOut(set=pair_set.name, stem=pair.stem, cause=problem.cause, why=problem.why))
    left_out.sort(key=lambda item: item.stem)
    return dataclasses.replace(pair_set, pairs=tuple(pairs), left_out=tuple(left_out), source_keys=keys)


def _examine_pair(set_name: str, pair: Pair, checks: Sequence[Check]) -> _Examined:
    try:
        thermal, rgb = read_thermal(pair.thermal), read_rgb(pair.rgb)
    except InputError as error:
        return _Examined(Problem("unusable file", str(error)))
    problem = _misfit(pair, thermal, rgb)
    if problem is None and pair.label is not None:
        try:
            targets.read_label(pair.label, thermal.shape)
        except InputError as error:
            problem = Problem("unusable label", str(error))
    source_key = digest(pair.thermal, pair.rgb)
    for check in checks:
        problem = problem or check(set_name, pair, source_key, thermal.shape)
    return _Examined(problem, source_key, thermal.dtype)


def digest(*paths: Path) -> str:
    """SHA-256 over the contents of files, hexadecimal."""
    whole = hashlib.sha256()
    for path in paths:
        # Of the parts' digests, so that bytes moved from one file to the next count as a change.
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def count_by_cause(left_out: Sequence[LeftOut]) -> str:
    """``2 unpaired, 1 unusable file``."""
    return ", ".join(f"{count} {cause}" for cause, count in sorted(Counter(item.cause for item in left_out).items()))


def refuse(sets: Sequence[PairSet]) -> None:
    """Refuses sets of which something was left out.

    Raises:
        InputError: naming the first, and counting all by cause.
    """
    left_out = [item for pair_set in sets for item in pair_set.left_out]
    if not left_out:
        return
    first, others = left_out[0], [f"{item.set}/{item.stem}" for item in left_out[1:]]
    more = f", and {len(others) - _NAMED_IN_AN_ERROR} more" if len(others) > _NAMED_IN_AN_ERROR else ""
    also = f"; so are {', '.join(others[:_NAMED_IN_AN_ERROR])}{more}" if others else ""
    raise InputError(
        f"{first.set}/{first.stem} cannot be used: {first.why}{also}",
        got=f"{len(left_out)} of {sum(pair_set.total for pair_set in sets)} pairs ({count_by_cause(left_out)})",
        do="mend them, or pass --bad-pairs skip, which the tables will say",
    )


def refuse_empty(sets: Sequence[PairSet]) -> None:
    """Refuses a set of which nothing is left.

    Raises:
        InputError: naming it and the first cause.
    """
    for pair_set in sets:
        if not pair_set.pairs:
            first = pair_set.left_out[0].why if pair_set.left_out else "it is empty"
            counted = count_by_cause(pair_set.left_out) or None
            raise InputError(f"{pair_set.name} has no usable pair: {first}", got=counted)
