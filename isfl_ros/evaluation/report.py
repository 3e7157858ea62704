"""What an evaluation leaves in its folder: tables in CSV, Markdown and JSON, picture sheets, and one HTML file."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2

from isfl_ros.errors import InputError
from isfl_ros.evaluation import flicker, missing, robustness, sheets, tables
from isfl_ros.evaluation.bootstrap import BootstrapConfig
from isfl_ros.evaluation.compare import SetSummary, summarize
from isfl_ros.evaluation.methods import Complexity
from isfl_ros.evaluation.metrics import METRICS
from isfl_ros.evaluation.predict import PREDICTIONS, KeptMethod, forget
from isfl_ros.evaluation.scoring import Scores
from isfl_ros.evaluation.sets import PairSet
from isfl_ros.io.staging import write_bytes

SUMMARY_JSON, SUMMARY_MARKDOWN, REPORT_HTML = "summary.json", "summary.md", "report.html"
PER_IMAGE, PER_PERSON, LEFT_OUT = "per_image.csv", "per_person.csv", "left_out.csv"
MISSING, FLICKER = "missing.csv", "flicker.csv"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything a report is made of."""

    scores: Scores
    sets: Sequence[PairSet]
    kept: Mapping[str, KeptMethod]
    """By name, in the order of the rows."""
    predictions: Path
    """Folder of the kept pictures."""
    references: Sequence[str]
    """Methods that the others are compared with."""
    bootstrap: BootstrapConfig
    environment: Mapping[str, Any]
    """Of :func:`isfl_ros.benchmarks.environment.describe_environment`."""
    models: Sequence[str] = ()
    """Methods of which pictures with one modality missing were scored."""
    missing_pairs: int = 0
    """Most pairs of a set of which they were."""

    @functools.cached_property
    def summaries(self) -> dict[str, SetSummary]:
        """By name of the set."""
        return summarize(self.scores, self.sets, list(self.kept), references=self.references, bootstrap=self.bootstrap)

    @property
    def costs(self) -> dict[str, Complexity]:
        """Of the methods of which it is known."""
        return {name: kept.complexity for name, kept in self.kept.items() if kept.complexity is not None}

    def missing_rows(self, pair_set: PairSet) -> list[sheets.SheetRow]:
        """As :func:`~isfl_ros.evaluation.sheets.missing_rows`."""
        shown = sheets.missing_rows(pair_set, self.models, self.predictions, missing_pairs=self.missing_pairs)
        return list(shown)

    @property
    def costs_caption(self) -> str:
        """As :func:`~isfl_ros.evaluation.tables.costs_caption`."""
        return tables.costs_caption(self.costs)


def markdown(evaluation: Evaluation) -> str:
    """For every set its means, its differences to the references, and what else was measured."""
    parts = []
    for name, summary in evaluation.summaries.items():
        parts += [f"## {name}", tables.set_caption(summary), tables.means_table(summary, evaluation.costs).markdown()]
        parts.append("\n".join(f"- `{who}`: {text}" for who, text in tables.verdict_lines(summary)))
        for reference in summary.differences:
            table = tables.differences_table(summary, reference)
            parts += [f"### {name}: differences to {reference}", table.markdown()]
        if summary.missing:
            parts += [f"### {name}: one modality missing", robustness.missing_table(summary).markdown()]
        if summary.flicker:
            table = robustness.flicker_table(summary, evaluation.references)
            parts += [f"### {name}: flicker", robustness.flicker_caption(summary), table.markdown()]
    parts.append("Means: bold is the best of the rows that fuse (`infrared` and `visible` are the sources themselves).")
    if any(summary.differences for summary in evaluation.summaries.values()):
        parts.append(tables.differences_caption(evaluation.references, evaluation.bootstrap))
    if evaluation.models:
        parts.append(robustness.missing_caption())
    if evaluation.costs:
        parts.append(evaluation.costs_caption)
    return "\n\n".join(part for part in parts if part) + "\n"


def check_out(out: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuses a folder that an evaluation must not write into.

    Raises:
        InputError: it holds an earlier evaluation and neither flag is given, something else, or both flags are given.
    """
    if overwrite and resume:
        raise InputError("--resume and --overwrite contradict each other", do="pass one of them")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    ours = (out / SUMMARY_JSON).is_file() or any((out / PREDICTIONS).glob("*/method.json"))
    if not ours:
        raise InputError(f"{out} was not written by this command", do="choose another folder")
    if not (overwrite or resume):
        raise InputError(
            f"{out} exists",
            do="pass --resume to keep the pictures that are there, --overwrite to fuse anew, or choose another folder",
        )


def clear(out: Path) -> None:
    """Removes what an earlier evaluation left, its kept pictures too; files of anybody else stay."""
    _remove_tables(out, keep=())
    forget(out / PREDICTIONS)


def _remove_tables(out: Path, *, keep: Sequence[str]) -> None:
    summary = out / SUMMARY_JSON
    if not summary.is_file():
        return
    try:
        listed = json.loads(summary.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        what = f"{summary} is no summary of an evaluation"
        raise InputError(what, got=repr(error), do="choose another folder") from error
    for name in listed:
        if name not in keep and Path(name).name == name:  # a name, nothing that leads out of the folder
            (out / name).unlink(missing_ok=True)


def write_report(out: Path, evaluation: Evaluation, *, with_html: bool) -> str:
    """Makes every file, then puts them into place, the summary last; an earlier report's other files go.

    Args:
        out: folder, made where it is missing.
        evaluation: what to report.
        with_html: also the HTML file (needs matplotlib).

    Returns:
        The Markdown tables.
    """
    text = markdown(evaluation)
    people = any(summary.labelled_pairs for summary in evaluation.summaries.values())
    left_out = [asdict(item) for pair_set in evaluation.sets for item in pair_set.left_out]
    files = {PER_IMAGE: _csv(["method", "set", "stem", *METRICS], evaluation.scores.images)}
    if people:
        files[PER_PERSON] = _csv(["method", "set", "stem", "person", "contrast"], evaluation.scores.people)
    if evaluation.scores.missing:
        columns = ["method", "set", "stem", "modality", "region", *missing.FIGURES]
        files[MISSING] = _csv(columns, evaluation.scores.missing)
    if evaluation.scores.flicker:
        files[FLICKER] = _csv(["method", "set", "stem", *flicker.COLUMNS], evaluation.scores.flicker)
    if left_out:
        files[LEFT_OUT] = _csv(["set", "stem", "cause", "why"], left_out)
    for pair_set in evaluation.sets:
        rows = list(sheets.fused_rows(pair_set, list(evaluation.kept), evaluation.predictions))
        files[f"sheet_{pair_set.name}.png"] = _png(sheets.picture_sheet(rows))
        if evaluation.models:
            files[f"missing_{pair_set.name}.png"] = _png(sheets.picture_sheet(evaluation.missing_rows(pair_set)))
    if with_html:
        from isfl_ros.evaluation.page import html_report

        files[REPORT_HTML] = html_report(evaluation).encode()
    files[SUMMARY_MARKDOWN] = text.encode()
    document = _document(evaluation) | {"files": [*files, SUMMARY_JSON]}
    files[SUMMARY_JSON] = (json.dumps(_finite(document), indent=2, allow_nan=False) + "\n").encode()
    _remove_tables(out, keep=list(files))
    for name, data in files.items():
        write_bytes(out / name, data)
    return text


def _document(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "environment": dict(evaluation.environment),
        "references": list(evaluation.references),
        "bootstrap": asdict(evaluation.bootstrap),
        "predictions": str(evaluation.predictions),
        "sets": {name: summary.as_dict() for name, summary in evaluation.summaries.items()},
        "methods": {
            name: {
                "identity": kept.identity,
                "description": kept.description,
                "complexity": None if kept.complexity is None else asdict(kept.complexity),
            }
            for name, kept in evaluation.kept.items()
        },
    }


def _finite(value: object) -> object:
    """JSON has no infinity (the PSNR of identical pictures): null there."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(columns: list[str], rows: list[dict]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _png(rgb) -> bytes:
    ok, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not ok:
        raise InputError("a picture sheet cannot be encoded as PNG", got=f"{rgb.shape} {rgb.dtype}")
    return data.tobytes()
