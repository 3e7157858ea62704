"""First loop of the evaluation: fuse every pair of every set once, with every method, and keep the pictures.

What is kept, so that it can be scored again without the models, and so that an interrupted run goes on where it was::

    <predictions>/<method>/method.json                     who made the pictures: identity, description, cost
    <predictions>/<method>/kept.jsonl                      one line a picture: of which sources it is
    <predictions>/<method>/<set>/<stem>.png                8-bit fused luma
    <predictions>/<method>/<set>/gates/<stem>.<scale>.png  gates of the pairs on the sheets, 1 the finest scale

and what :mod:`isfl_ros.evaluation.missing` keeps beside them. A changed model is noticed by the SHA-256 of its weights
and configuration, a changed pair by that of its two files.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from isfl_ros.errors import InputError
from isfl_ros.evaluation.baselines import BASELINES
from isfl_ros.evaluation.ledger import Ledger
from isfl_ros.evaluation.methods import MODEL, Complexity, Method
from isfl_ros.evaluation.sets import PairSet, Problem, check_name, read_sources
from isfl_ros.images import to_uint8
from isfl_ros.io.folders import Pair, read_thermal, write_png
from isfl_ros.io.staging import write_bytes

PREDICTIONS = "predictions"
"""Folder of the kept pictures in that of an evaluation."""
SHEET_PAIRS = 6
"""Pairs of a set that are shown, with their gates."""
_RECORD, _KEPT = "method.json", "kept.jsonl"
_FORMAT, _FORMAT_VERSION = "isfl_ros-predictions", 1


def prediction_path(predictions: Path, method: str, set_name: str, stem: str) -> Path:
    """Where the fused luma of one pair is kept."""
    return predictions / method / set_name / f"{stem}.png"


def gate_paths(predictions: Path, method: str, set_name: str, stem: str) -> list[Path]:
    """The gates that are kept of one pair, finest scale first; empty where none are."""
    folder = predictions / method / set_name / "gates"
    paths = []
    while (path := folder / f"{stem}.{len(paths) + 1}.png").is_file():
        paths.append(path)
    return paths


def sheet_pairs(pair_set: PairSet) -> list[Pair]:
    """At most :data:`SHEET_PAIRS` pairs, spread evenly over the set from the first to the last."""
    return pair_set.spread(SHEET_PAIRS)


class KeptMethod:
    """The pictures of one method on disk, and what is known of them.

    Raises:
        InputError: on construction, when the folder holds no record, or an unreadable one.
    """

    def __init__(self, predictions: Path, name: str):
        self.name = check_name("method", name)
        self.folder = predictions / name
        path = self.folder / _RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            what = f"{path} cannot be read"
            raise InputError(what, expected="a record of kept predictions", got=str(error)) from error
        wanted = {"format": _FORMAT, "format_version": _FORMAT_VERSION}
        if not isinstance(record, dict) or any(record.get(key) != value for key, value in wanted.items()):
            raise InputError(f"{path} is no record of kept predictions", expected=f"{_FORMAT} {_FORMAT_VERSION}")
        self.identity: dict[str, str] = record["identity"]
        self.description: dict[str, str] = record["description"]
        self.complexity = None if record["complexity"] is None else Complexity(**record["complexity"])
        self._kept = Ledger(self.folder / _KEPT, ("set", "stem"))

    @property
    def is_model(self) -> bool:
        """Whether a network made the pictures: then it can also be asked what it makes of one modality."""
        return self.identity["kind"] == MODEL

    @classmethod
    def start(cls, predictions: Path, method: Method) -> KeptMethod:
        """Begins the folder of a method, or goes on in the one that is there.

        Raises:
            InputError: the folder holds pictures of something else.
        """
        folder = predictions / method.name
        if not (folder / _RECORD).is_file():
            if folder.exists():
                raise InputError(f"{folder} holds no kept predictions", do="choose another --out")
            cls._write_record(folder, method.identity(), method.description, None)
        kept = cls(predictions, method.name)
        kept.check_identity(method.identity())
        kept._kept.mend()
        return kept

    def check_identity(self, identity: Mapping[str, str]) -> None:
        """Whether the kept pictures are those that a method of this identity makes.

        Raises:
            InputError: naming the first difference.
        """
        for key, value in identity.items():
            if self.identity.get(key) != value:
                what = "other weights" if key == "weights" else f"another {key}"
                raise InputError(
                    f"the pictures kept in {self.folder} were made with {what}",
                    expected=_short(value),
                    got=_short(self.identity.get(key, "nothing")),
                    do="fuse again (--overwrite, without --predictions) or put another NAME= in front",
                )

    def record(self, description: Mapping[str, str], complexity: Complexity | None) -> None:
        """Writes down what made the pictures, and what it costs."""
        self.description, self.complexity = dict(description), complexity
        self._write_record(self.folder, self.identity, description, complexity)

    @staticmethod
    def _write_record(
        folder: Path, identity: Mapping[str, str], description: Mapping[str, str], complexity: Complexity | None
    ) -> None:
        document = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "identity": dict(identity),
            "description": dict(description),
            "complexity": None if complexity is None else asdict(complexity),
        }
        write_bytes(folder / _RECORD, (json.dumps(document, indent=2) + "\n").encode())

    def has(self, set_name: str, stem: str, source_key: str, picture_key: str) -> bool:
        """Whether the picture of exactly these inputs is there."""
        line = {"set": set_name, "stem": stem, "sources": source_key, "picture": picture_key}
        return self._kept.has(line) and prediction_path(self.folder.parent, self.name, set_name, stem).is_file()

    def keep(
        self, set_name: str, stem: str, source_key: str, picture_key: str, luma: np.ndarray, gates: Sequence[np.ndarray]
    ) -> None:
        """Writes the picture, then the line that says so."""
        write_png(prediction_path(self.folder.parent, self.name, set_name, stem), luma)
        for scale, gate in enumerate(gates, 1):
            write_png(self.folder / set_name / "gates" / f"{stem}.{scale}.png", to_uint8(gate))
        self._kept.add({"set": set_name, "stem": stem, "sources": source_key, "picture": picture_key})

    def problem(self, set_name: str, pair: Pair, source_key: str, shape: tuple[int, int]) -> Problem | None:
        """Why the kept picture of a pair cannot be scored (a :data:`~isfl_ros.evaluation.sets.Check`)."""
        path = prediction_path(self.folder.parent, self.name, set_name, pair.stem)
        line = self._kept.find(set_name, pair.stem)
        if line is None or not path.is_file():
            return Problem("prediction missing", f"{self.name} has kept no picture of {set_name}/{pair.stem}: {path}")
        if line["sources"] != source_key:
            why = f"{path} was made from other pictures than {pair.thermal} and {pair.rgb}"
            return Problem("prediction of another pair", why)
        try:
            kept = read_thermal(path)
        except InputError as error:
            return Problem("unusable prediction", str(error))
        if kept.shape != shape or kept.dtype != np.uint8:
            return Problem("unusable prediction", f"{path} is not the 8-bit picture that was kept")
        return None


def _short(value: str) -> str:
    return f"{value[:12]}..." if len(value) == 64 else value  # a SHA-256


def kept_methods(predictions: Path) -> list[KeptMethod]:
    """Every method of which a folder holds pictures: baselines as the tables list them, then the others by name.

    Raises:
        InputError: there is none, or a record is unreadable.
    """
    names = {path.parent.name for path in predictions.glob(f"*/{_RECORD}")}
    if not names:
        raise InputError(f"{predictions} holds no kept predictions", expected=f"{PREDICTIONS}/ of an evaluation")
    ordered = [name for name in BASELINES if name in names] + sorted(names - set(BASELINES))
    return [KeptMethod(predictions, name) for name in ordered]


def forget(predictions: Path) -> None:
    """Removes the kept pictures of every method; nothing else that may lie there."""
    for path in sorted(predictions.glob(f"*/{_RECORD}")):
        shutil.rmtree(path.parent)


def predict(methods: Sequence[Method], sets: Sequence[PairSet], predictions: Path) -> dict[str, KeptMethod]:
    """Fuses what is not kept already, and keeps it.

    Args:
        methods: those that make pictures.
        sets: as :func:`~isfl_ros.evaluation.sets.examine` gives them.
        predictions: folder, made where it is missing.

    Returns:
        By name of the method.

    Raises:
        InputError: pictures of another method or model are kept under a name, a pair cannot be read or fused, or a
            device failed on the way, so that the pictures of one row would be of two kinds; those written so far stay.
    """
    kept = {method.name: KeptMethod.start(predictions, method) for method in methods}
    total = sum(len(pair_set.pairs) for pair_set in sets)
    with contextlib.closing(tqdm(total=total, desc="fuse", unit="pair")) as progress:
        for pair_set in sets:
            shown = {pair.stem for pair in sheet_pairs(pair_set)}
            for pair in pair_set.pairs:
                _predict_pair(methods, kept, pair_set, pair, predictions, gates=pair.stem in shown)
                progress.update()
    return kept


def _predict_pair(
    methods: Sequence[Method],
    kept: Mapping[str, KeptMethod],
    pair_set: PairSet,
    pair: Pair,
    predictions: Path,
    *,
    gates: bool,
) -> None:
    source_key = pair_set.source_keys[pair.stem]
    sources = None
    for method in methods:
        mine, picture_key = kept[method.name], method.picture_key(pair_set.name, pair)
        lacks_gates = gates and method.has_gates and not gate_paths(predictions, method.name, pair_set.name, pair.stem)
        if mine.has(pair_set.name, pair.stem, source_key, picture_key) and not lacks_gates:
            continue
        sources = sources or read_sources(pair)
        luma = method.fuse(pair_set.name, pair, sources)
        mine.check_identity(method.identity())
        mine.keep(pair_set.name, pair.stem, source_key, picture_key, luma, method.gates(sources) if gates else [])
