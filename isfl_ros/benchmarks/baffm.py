"""The second paper's tables: trains what they need, evaluates it, writes them.

``python -m isfl_ros.benchmarks.baffm --data DATA --out OUT --parts adjustment size bias gate comparison``

Every training is a run folder of its own below ``OUT/runs``, and one that is done is kept: what is interrupted goes on
with the same command, and parts and seeds can be spread over several calls. A part is evaluated once all its
trainings are done.

| part | question | trainings |
|---|---|---|
| ``comparison`` | where the model stands beside ISFL and the free baselines | the model, first seed |
| ``adjustment`` | with the back-door adjustment or without, parameters matched | both, every seed |
| ``size`` | prototypes in a dictionary: 20, 25, 30 | each, every seed |
| ``bias`` | trained on night scenes alone, tested on day scenes, with and without | both, every seed |
| ``gate`` | ISFL's gate over the adjusted features, or not | both, every seed |
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from isfl_ros.benchmarks import baffm_figures
from isfl_ros.benchmarks.environment import describe_environment
from isfl_ros.errors import InputError
from isfl_ros.io.staging import write_bytes
from isfl_ros.network.checkpoint import DESCRIPTION
from isfl_ros.training.config import TrainingConfig, parse_config, read_config, recipe_path

PARTS = ("adjustment", "size", "bias", "gate", "comparison")
SIZES = (20, 25, 30)
SETS = {
    "llvip_test": "MANIFEST.csv:set=llvip_test",
    "roadscene_val": "MANIFEST.csv:set=roadscene,use=val",  # the rest of roadscene is trained on
    "tno": "MANIFEST.csv:set=tno",
}
"""Sets of the tables, relative to the data folder; none is trained on."""
NIGHT = (
    "MANIFEST.csv:set=msrs_train,exclude=*D",
    "MANIFEST.csv:set=msrs_test,name_from=00130,name_below=01190,exclude=*D",
)
"""What the scene-bias experiment trains on: MSRS names end in N by night and in D by day."""
SCENES = {
    "msrs_day": "MANIFEST.csv:set=msrs_test,outside=00130..01190,exclude=*N",
    "msrs_night": "MANIFEST.csv:set=msrs_test,outside=00130..01190,exclude=*D",
}
"""What it is tested on: the scene type that was never seen, and the one that was."""
_BASELINES = ("average", "maximum", "laplacian")
_MISSING_PAIRS = 4
"""Pairs of each set on which a camera is taken away: five regions, two cameras, two passes each."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training."""

    name: str
    """Of its run folder, and of its row."""
    variant: str
    """What the trials that differ by their seed alone have in common."""
    seed: int
    network: Mapping[str, object] = field(default_factory=dict)
    """Keys of the network that differ from the recipe's."""
    scenes: bool = False
    """Trained on one scene type alone."""


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """What to make.

    Raises:
        InputError: on construction, when a value is out of range.
    """

    data: Path
    out: Path
    parts: tuple[str, ...] = PARTS
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: str = "baffm-cpu"
    """YAML file or shipped name of the training that all trials share."""
    steps: int | None = None
    """Overrides the recipe's steps."""
    threads: int = 0
    """Of a training; 0 leaves torch's choice."""
    jobs: int = 1
    """Scoring processes."""
    against: str = "isfl"
    """Model that stands in the comparison."""
    sets: Mapping[str, str] = field(default_factory=lambda: dict(SETS))
    night: tuple[str, ...] = NIGHT
    scenes: Mapping[str, str] = field(default_factory=lambda: dict(SCENES))

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise InputError("unknown part", expected=f"some of {', '.join(PARTS)}", got=repr(part))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError("--seeds out of range", expected="different numbers from 0 on", got=str(self.seeds))
        if self.jobs < 1:
            raise InputError("--jobs out of range", expected="at least 1", got=str(self.jobs))
        if self.threads < 0:
            raise InputError("--threads out of range", expected="0 or more", got=str(self.threads))


def trials_of(part: str, seeds: Sequence[int]) -> list[Trial]:
    """Trainings of a part, seed by seed, so that a part of them is a smaller experiment and not half of one."""
    without = {"adjustment": "conventional"}
    variants: dict[str, list[tuple[str, dict[str, object], bool]]] = {
        "comparison": [("baffm", {}, False)],
        "adjustment": [("baffm", {}, False), ("without", without, False)],
        "size": [("baffm" if n == 25 else f"n{n}", {} if n == 25 else {"prototypes": n}, False) for n in SIZES],
        "bias": [("night", {}, True), ("night-without", without, True)],
        "gate": [("gate", {"gate": True}, False), ("baffm", {}, False)],
    }
    return [
        Trial(name=f"{variant}-s{seed}", variant=variant, seed=seed, network=network, scenes=scenes)
        for seed in (seeds[:1] if part == "comparison" else seeds)
        for variant, network, scenes in variants[part]
    ]


def training_of(trial: Trial, config: TablesConfig) -> TrainingConfig:
    """What a trial trains: the recipe with the trial's differences.

    Raises:
        InputError: the recipe is missing, of another model, or changes what the trials are about.
    """
    base = read_config(recipe_path(config.recipe))
    if base.model != "baffm":
        raise InputError(f"{config.recipe} trains another model", expected="model baffm", got=base.model)
    for key in ("adjustment", "prototypes", "gate"):
        if key in base.network:
            raise InputError(f"{config.recipe} sets network.{key}, which the trials vary", do="leave it out")
    data = dataclasses.replace(base.data, sets=config.night) if trial.scenes else base.data
    steps = base.steps if config.steps is None else config.steps
    return dataclasses.replace(
        base, network={**base.network, **trial.network}, data=data, seed=trial.seed, steps=steps
    )


def make_tables(config: TablesConfig) -> dict[str, dict]:
    """Trains, evaluates and writes, part by part.

    Returns:
        The document of every part that was asked for.

    Raises:
        InputError: a training or an evaluation failed, or its folder holds one of another configuration.
    """
    wanted = [trial for part in config.parts for trial in trials_of(part, config.seeds)]
    trainings = {trial.name: training_of(trial, config) for trial in wanted}  # refused before anything is trained
    documents = {}
    for part in config.parts:
        trials = trials_of(part, config.seeds)
        for trial in trials:
            _train(trial, trainings[trial.name], config)
        documents[part] = _evaluate(part, trials, trainings, config)
        text = json.dumps(documents[part], indent=1, allow_nan=False) + "\n"
        write_bytes(config.out / f"{part}.json", text.encode())
        write_bytes(config.out / "tables.md", _all_tables(config.out).encode())
        print(documents[part]["markdown"], flush=True)
    return documents


def _train(trial: Trial, training: TrainingConfig, config: TablesConfig) -> None:
    folder = config.out / "runs" / trial.name
    if _is_done(folder, training):
        print(f"{trial.name}: trained before", flush=True)
        return
    print(f"{trial.name}: training {training.steps} steps", flush=True)
    path = config.out / "runs" / f"{trial.name}.yaml"
    values = json.loads(json.dumps(dataclasses.asdict(training)))  # YAML knows lists, no tuples
    write_bytes(path, yaml.safe_dump(values, sort_keys=False).encode())
    _isfl(
        "train", str(path), "--data", str(config.data), "--out", str(folder), "--cache", str(config.out / "cache"),
        "--threads", str(config.threads), "--resume",
    )


def _is_done(folder: Path, training: TrainingConfig) -> bool:
    path = folder / "model" / DESCRIPTION
    if not path.is_file():
        return False
    facts = json.loads(path.read_text())["training"]
    return facts["steps"] == training.steps and parse_config(facts["config"], str(path)) == training


def _evaluate(
    part: str, trials: Sequence[Trial], trainings: Mapping[str, TrainingConfig], config: TablesConfig
) -> dict:
    _require_one_backbone(trials, config.out / "runs")
    out = config.out / "evaluation" / part
    sets = config.scenes if part == "bias" else config.sets
    missing = None
    models = [f"{trial.name}={config.out / 'runs' / trial.name / 'model'}" for trial in trials]
    if part == "comparison":
        models.append(config.against)
        missing = out / "missing.csv"
    command = ["evaluate", "--no-html", "--out", str(out), "--jobs", str(config.jobs), "--model", *models]
    command += ["--data", *(f"{name}={config.data / spec}" for name, spec in sets.items())]
    command += ["--baseline", *_BASELINES, "--reference", "maximum"]
    if missing is not None:
        command += ["--missing", "--missing-pairs", str(_MISSING_PAIRS)]
    if out.exists():
        command.append("--resume")
    _isfl(*command)
    summary = json.loads((out / "summary.json").read_text())
    scores = baffm_figures.read_scores(out / "per_image.csv")
    variants: dict[str, list[str]] = {}
    for trial in trials:
        variants.setdefault(trial.variant, []).append(trial.name)
    figures = baffm_figures.figures_of(part, scores, variants, summary, missing=missing)
    return {
        "part": part,
        "seeds": list(config.seeds),
        "sets": dict(sets),
        "environment": describe_environment(),
        "training": json.loads(json.dumps(dataclasses.asdict(trainings[trials[0].name]))),
        **figures,
    }


def _require_one_backbone(trials: Sequence[Trial], runs: Path) -> None:
    """Refuses to compare dictionaries of different backbones: a name says little, a shipped model is trained anew at times."""
    found: dict[str, str] = {}
    for trial in trials:
        record = json.loads((runs / trial.name / "model" / DESCRIPTION).read_text()).get("dictionary") or {}
        if record:
            found.setdefault(record["backbone_sha256"], trial.name)
    if len(found) > 1:
        raise InputError(
            "dictionaries of different backbones in one table",
            got=", ".join(f"{name} {digest[:12]}" for digest, name in found.items()),
            do="remove the older of these runs, and train them again",
        )


def _all_tables(out: Path) -> str:
    found = [out / f"{part}.json" for part in PARTS]
    return "\n".join(json.loads(path.read_text())["markdown"] for path in found if path.is_file())


def _isfl(*words: str) -> None:
    """One verb, in a process of its own, whose memory goes with it.

    Raises:
        InputError: it did not end well; what it said stands above.
    """
    process = subprocess.run([sys.executable, "-m", "isfl_ros.cli.main", *words], check=False)
    if process.returncode == 130 or process.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if process.returncode:
        raise InputError(f"isfl {words[0]} failed", got=f"exit status {process.returncode}", do="see its message above")


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when every part was made, 2 for bad input, 130 for an interrupt."""
    default = TablesConfig(data=Path(), out=Path())
    parser = argparse.ArgumentParser(
        prog="python -m isfl_ros.benchmarks.baffm", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with MANIFEST.csv and its sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and tables; goes on where it is")
    parser.add_argument("--parts", nargs="+", default=default.parts, metavar="NAME", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=default.seeds, metavar="N", help="default: 0 1 2")
    parser.add_argument("--recipe", default=default.recipe, help="YAML file or shipped name (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="overrides the recipe's steps")
    parser.add_argument("--threads", type=int, default=default.threads, help="of a training; 0 leaves torch's choice")
    parser.add_argument("--jobs", type=int, default=default.jobs, help="scoring processes (default: %(default)s)")
    args = parser.parse_args(argv)
    # whoever ends this process must end the trainings with it
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        values = vars(args) | {"out": args.out.resolve(), "data": args.data.resolve()}
        values |= {"parts": tuple(dict.fromkeys(args.parts)), "seeds": tuple(args.seeds)}
        make_tables(TablesConfig(**values))
    except InputError as error:
        print(f"baffm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("baffm: interrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
