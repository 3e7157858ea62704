"""``isfl evaluate``: the papers' tables from one command."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from isfl_ros.errors import InputError, require_module

if TYPE_CHECKING:
    from isfl_ros.evaluation.predict import KeptMethod
    from isfl_ros.evaluation.sets import PairSet

HELP = "score models, baselines and fused pictures over sets of pairs: tables, intervals, per-image values, HTML report"

_log = logging.getLogger(__name__)


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
        "--predictions", type=Path, metavar="DIR",
        help="score the pictures kept in DIR (OUT/predictions of an earlier evaluation) and fuse nothing; --baseline"
        " and --model then choose among them (default: all), and a model must have the weights that made them",
    )
    parser.add_argument(
        "--reference", **many, metavar="NAME",
        help="rows that the others are compared with (default: laplacian, else the first)",
    )
    parser.add_argument(
        "--missing", action="store_true",
        help="also fuse with one modality missing, everywhere and in regions, with every row that runs a network",
    )
    parser.add_argument(
        "--missing-pairs", type=int, default=12, metavar="N",
        help="of at most N pairs of a set, spread evenly (default: %(default)s)",
    )
    parser.add_argument(
        "--sequence", **many, default=[], metavar="NAME",
        help="these sets are consecutive frames in the order of their names: measure flicker",
    )
    parser.add_argument(
        "--bad-pairs", choices=("refuse", "skip"), default="refuse",
        help="pairs that cannot be used (unpaired, unreadable, of two sizes or depths, not fused by everybody): refuse"
        " the run, or leave them out for every method, which the tables say (default: %(default)s)",
    )
    parser.add_argument("--labels", action="store_true", help="refuse a pair without label picture (person contrast)")
    parser.add_argument("--resamples", type=int, metavar="N", help="bootstrap draws (default: 10000)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the bootstrap (default: 0)")
    parser.add_argument("--no-html", action="store_true", help="no report.html, and then no need of matplotlib")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="scoring processes (default: %(default)s)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on in --out: pictures that are kept there are not fused again"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation in --out")


def run(args: argparse.Namespace) -> int:
    """Predicts, scores, reports.

    Raises:
        InputError: anything named on the command line is missing, unreadable or ambiguous.
    """
    # Imported here: the other verbs need not wait for torch.
    from isfl_ros.benchmarks.environment import describe_environment
    from isfl_ros.evaluation import missing, report, scoring
    from isfl_ros.evaluation.bootstrap import BootstrapConfig
    from isfl_ros.evaluation.sets import read_set

    for flag, value in (("--jobs", args.jobs), ("--missing-pairs", args.missing_pairs)):
        if value < 1:
            raise InputError(f"{flag} out of range", expected="at least 1", got=str(value))
    given = {"resamples": args.resamples, "seed": args.seed}
    bootstrap = BootstrapConfig(**{name: value for name, value in given.items() if value is not None})
    if not args.no_html:
        require_module("matplotlib", extra="demo", otherwise="pass --no-html")
    report.check_out(args.out, overwrite=args.overwrite, resume=args.resume)
    sets = [read_set(spec) for spec in args.data]
    _refuse_twice("set", [pair_set.name for pair_set in sets])
    _check_labels(sets, wanted=args.labels)
    _check_sequences(args.sequence, [pair_set.name for pair_set in sets])
    environment = describe_environment()
    if args.predictions is None:
        sets, kept = _fuse(args, sets, environment)
    else:
        sets, kept = _find_kept(args, sets)
    predictions = args.predictions or args.out / report.PREDICTIONS
    models = missing.require_model(kept) if args.missing else []
    scores = scoring.score_predictions(
        list(kept), sets, predictions, jobs=args.jobs, sequences=args.sequence, models=models,
        missing_pairs=args.missing_pairs,
    )
    evaluation = report.Evaluation(
        scores=scores,
        sets=sets,
        kept=kept,
        predictions=predictions,
        references=_references(args.reference, list(kept)),
        bootstrap=bootstrap,
        environment=environment,
        models=models,
        missing_pairs=args.missing_pairs,
    )
    print(report.write_report(args.out, evaluation, with_html=not args.no_html))
    print(f"written: {args.out}")
    return 0


def _fuse(
    args: argparse.Namespace, sets: list[PairSet], environment: dict
) -> tuple[list[PairSet], dict[str, KeptMethod]]:
    from isfl_ros.benchmarks.timing import take_turns, wall_clock
    from isfl_ros.evaluation import methods as rows
    from isfl_ros.evaluation import missing, predict, report
    from isfl_ros.evaluation.baselines import BASELINES

    with contextlib.ExitStack() as stack:
        models = [rows.Model(*_named(text, needs_name=False)) for text in args.model]
        for model in models:
            stack.callback(model.close)
        methods: list[rows.Method] = [
            *(rows.Baseline(name) for name in args.baseline or BASELINES),
            *(rows.FusedPictures(*_named(text, needs_name=True), sets) for text in args.images),
            *models,
        ]
        names = [method.name for method in methods]
        _refuse_twice("method", names)
        _references(args.reference, names)
        if args.missing and not models:
            raise InputError("--missing needs a row that runs a network", expected="--model")
        sets = _usable(args, sets, [method.problem for method in methods])
        # Nothing was written before this line: what is refused leaves everything as it was.
        if args.overwrite:
            report.clear(args.out)
        predictions = args.out / report.PREDICTIONS
        kept = predict.predict(methods, sets, predictions)
        if args.missing:
            missing.predict_missing(methods, kept, sets, predictions, pairs=args.missing_pairs)
        cpu = environment["cpu"]
        when_and_where = f"{environment['date']}, {cpu['name']}, {cpu['usable_cores']} cores"
        # A frame of each in turn, so that a drift of the machine meets all alike.
        frames, warm_up = rows.LATENCY_FRAMES, rows.LATENCY_WARM_UP
        samples_ms = take_turns(rows.timed(methods), wall_clock, frames=frames, warm_up=warm_up)
        costs = rows.complexity(methods, samples_ms, run=when_and_where)
        for method in methods:
            kept[method.name].record(method.description, costs.get(method.name))
    return sets, kept


def _find_kept(args: argparse.Namespace, sets: list[PairSet]) -> tuple[list[PairSet], dict[str, KeptMethod]]:
    from isfl_ros.evaluation import missing
    from isfl_ros.evaluation.methods import MODEL, weights_digest
    from isfl_ros.evaluation.predict import kept_methods

    if args.images:
        raise InputError("--images and --predictions contradict each other", do="kept pictures are scored as they are")
    kept = {method.name: method for method in kept_methods(args.predictions)}
    models = dict(_named(text, needs_name=False) for text in args.model)
    wanted = [*(args.baseline or []), *models] or list(kept)
    _refuse_twice("method", wanted)
    for name in wanted:
        if name not in kept:
            raise InputError(f"{args.predictions} holds no pictures of {name!r}", expected=f"one of {', '.join(kept)}")
    for name, model in models.items():
        kept[name].check_identity({"kind": MODEL, "weights": weights_digest(model)})
    kept = {name: kept[name] for name in wanted}
    _references(args.reference, wanted)
    sets = _usable(args, sets, [method.problem for method in kept.values()])
    if args.missing:
        missing.check_kept(kept, sets, args.predictions, pairs=args.missing_pairs)
    return sets, kept


def _usable(args: argparse.Namespace, sets: list[PairSet], checks: list) -> list[PairSet]:
    """What can be evaluated; everything that cannot is refused, or named and left out."""
    from isfl_ros.evaluation.flicker import check_sequence
    from isfl_ros.evaluation.sets import count_by_cause, examine, refuse, refuse_empty

    sets = examine(sets, checks, jobs=args.jobs)
    if args.bad_pairs == "refuse":
        refuse(sets)
    refuse_empty(sets)
    for pair_set in sets:
        if pair_set.name in args.sequence:
            check_sequence(pair_set)
    for pair_set in sets:
        for item in pair_set.left_out:
            _log.warning("left out: %s/%s (%s): %s", item.set, item.stem, item.cause, item.why)
        if pair_set.left_out:
            count, counted = len(pair_set.left_out), count_by_cause(pair_set.left_out)
            _log.warning("%s: %d of %d pairs left out (%s)", pair_set.name, count, pair_set.total, counted)
    return sets


def _check_labels(sets: list[PairSet], *, wanted: bool) -> None:
    for pair_set in sets:
        unlabelled = [pair.stem for pair in pair_set.pairs if pair.label is None]
        if wanted and unlabelled:
            raise InputError(
                f"{pair_set.name}: {unlabelled[0]} has no label picture", got=f"{len(unlabelled)} without label",
                do="leave out --labels, or this set",
            )


def _check_sequences(asked: list[str], sets: list[str]) -> None:
    for name in asked:
        if name not in sets:
            raise InputError("--sequence names no set", expected=f"one of {', '.join(sets)}", got=repr(name))


def _references(asked: list[str] | None, names: list[str]) -> list[str]:
    if asked is None:
        return ["laplacian" if "laplacian" in names else names[0]]
    for name in asked:
        if name not in names:
            expected = f"one of {', '.join(names)}"
            raise InputError("--reference is no row of the table", expected=expected, got=repr(name))
    return list(dict.fromkeys(asked))


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
