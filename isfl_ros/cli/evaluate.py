"""``isfl evaluate``: the papers' tables from one command."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from isfl_ros.errors import InputError
from isfl_ros.io.staging import staged_folder

HELP = "score models, baselines and fused pictures over sets of pairs: tables, per-image values, picture sheets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    many = {"action": "extend", "nargs": "+"}
    parser.add_argument(
        "--data", **many, required=True, metavar="[NAME=]SPEC",
        help="a folder with ir/ and vi/ (labels/ beside them is used), or MANIFEST.csv:set=...,use=...",
    )
    parser.add_argument(
        "--model", **many, default=[], metavar="[NAME=]MODEL", help="a model folder or the name of a shipped model"
    )
    parser.add_argument("--baseline", **many, metavar="NAME", help="free baselines (default: all of them)")
    parser.add_argument(
        "--images", **many, default=[], metavar="NAME=DIR",
        help="pictures that another program fused (of colour ones the luma): DIR/<set>/<stem>.*, or, with one set,"
        " DIR/<stem>.*",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="scoring processes (default: %(default)s)"
    )
    parser.add_argument("--labels", action="store_true", help="refuse a pair without label picture (person contrast)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation in --out")


def run(args: argparse.Namespace) -> int:
    """Predicts, scores, reports.

    Raises:
        InputError: anything named on the command line is missing, unreadable or ambiguous.
    """
    # Imported here: the other verbs need not wait for torch.
    from isfl_ros.evaluation import predict, report
    from isfl_ros.evaluation.baselines import BASELINES

    if args.jobs < 1:
        raise InputError("--jobs out of range", expected="at least 1", got=str(args.jobs))
    sets = [predict.read_set(spec) for spec in args.data]
    _refuse_twice("set", [pair_set.name for pair_set in sets])
    for pair_set in sets:
        unlabelled = [pair.stem for pair in pair_set.pairs if pair.label is None]
        if args.labels and unlabelled:
            raise InputError(
                f"{pair_set.name}: {unlabelled[0]} has no label picture", got=f"{len(unlabelled)} without label",
                do="leave out --labels, or this set",
            )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(staged_folder(args.out, marker=report.SUMMARY_JSON, overwrite=args.overwrite))
        models = [predict.Model(*_named(text, needs_name=False)) for text in args.model]
        for model in models:
            stack.callback(model.close)
        methods: list[predict.Method] = [
            *(predict.Baseline(name) for name in args.baseline or BASELINES),
            *(predict.FusedPictures(*_named(text, needs_name=True), sets) for text in args.images),
            *models,
        ]
        names = [method.name for method in methods]
        _refuse_twice("method", names)
        costs = {
            model.name: report.ModelReport(complexity=model.complexity(), description=model.description)
            for model in models
        }
        predict.predict(methods, sets, folder / "predictions")
        scores = report.score_predictions(names, sets, folder / "predictions", jobs=args.jobs)
        text = report.write_report(folder, scores, sets, names, costs)
    print(text)
    print(f"written: {args.out}")
    return 0


def _named(text: str, *, needs_name: bool) -> tuple[str, str]:
    """NAME=REST; without a name the last part of REST names it, where that is allowed."""
    name, equals, rest = text.partition("=")
    if equals and rest:
        return name, rest
    if needs_name or equals:
        raise InputError(f"{text!r} has no name", expected="NAME=DIR")
    return Path(text).resolve().name, text


def _refuse_twice(kind: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two {kind}s are called {twice[0]!r}", do="put NAME= in front to tell them apart")
