"""Ablations: one training for each variant of a recipe, one table of all of them.

``python -m isfl_ros.benchmarks.ablation readings --data DATA --out OUT`` takes ``config/ablations/readings.yaml``: a recipe with a
further key ``variants``, name -> keys that replace the recipe's. Every variant is trained in a folder of its own, once for each seed;
what is trained already is kept, what was interrupted continues. Then all of them are compared by ``isfl evaluate``.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Sequence

import torch

from isfl_ros.errors import InputError
from isfl_ros.training.config import TrainingConfig, merge_documents, parse_config, read_document, recipe_path
from isfl_ros.training.loop import Trainer

NAMED = "config/ablations"
"""Folder of the shipped ablations."""
SETS = {
    "roadscene_val": "MANIFEST.csv:set=roadscene,use=val",
    "msrs": "MANIFEST.csv:set=msrs_test,outside=00130..01190",
}
"""Pairs on which no shipped recipe trains, by name."""


def read_variants(path: Path) -> dict[str, TrainingConfig]:
    """The configuration of every variant, in the file's order; ``recipe`` is the variant's name.

    Raises:
        InputError: there are no variants, or one of them has a key or value that does not exist.
    """
    document = read_document(path)
    variants = document.pop("variants", None) if isinstance(document, dict) else None
    if not isinstance(variants, dict) or not variants:
        raise InputError(f"{path} has no variants", expected="variants: {NAME: {KEY: VALUE, ...}, ...}", got=repr(variants))
    configs = {}
    for name, changes in variants.items():
        if not isinstance(changes, dict) or not isinstance(name, str):
            raise InputError(f"{path}: variant {name!r} is not a mapping", expected="keys and values", got=repr(changes))
        merged = merge_documents(merge_documents(document, changes), {"recipe": name})
        configs[name] = parse_config(merged, f"{path}: variant {name}")
    return configs


def train_variants(
    configs: dict[str, TrainingConfig], *, seeds: Sequence[int] | None, data: Path, out: Path, device: str
) -> dict[str, Path]:
    """Trains what is not trained yet; the model folders by name, variant after variant and seed after seed.

    Args:
        configs: the variants by name.
        seeds: of the trainings of each; None: every variant's own.
        data: folder to which the sets are relative.
        out: the runs go to ``out/runs/NAME-seedN``.
        device: see :func:`~isfl_ros.device.choose_device`.

    Raises:
        InputError: as the trainer, or ``seeds`` would take the place of a difference between the variants.
    """
    own = {config.seed for config in configs.values()}
    if seeds is not None and len(own) > 1:
        raise InputError("the variants differ in their seed", got=str(sorted(own)), do="leave --seeds out")
    models = {}
    for name, config in configs.items():
        for seed in seeds or (config.seed,):
            run = out / "runs" / f"{name}-seed{seed}"
            config_of_seed = dataclasses.replace(config, seed=seed)
            trainer = Trainer(config_of_seed, data_root=data, out=run, device=device, workers=1)
            print(f"{run.name}: {config.steps} steps", flush=True)
            models[run.name] = trainer.run(resume=True)
    return models


def evaluate(models: dict[str, Path], *, sets: dict[str, str], reference: str, data: Path, out: Path) -> int:
    """Compares the models; what ``isfl evaluate`` returns."""
    words = [sys.executable, "-m", "isfl_ros.cli.main", "evaluate", "--baseline", "average"]
    words += ["--model", *(f"{name}={folder}" for name, folder in models.items())]
    words += ["--data", *(f"{name}={data}/{spec}" for name, spec in sets.items()), "--reference", reference]
    words += ["--missing", "--missing-pairs", "4", "--no-html", "--resume", "--out", str(out)]
    return subprocess.run(words, check=False).returncode


def _sets(words: Sequence[str] | None) -> dict[str, str]:
    if not words:
        return SETS
    for word in words:
        if "=" not in word:
            raise InputError("a set has no name", expected="NAME=SET", got=repr(word))
    return dict(word.split("=", 1) for word in words)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, compares, and says where the table lies."""
    parser = argparse.ArgumentParser(description="Train and compare the variants of a recipe.")
    parser.add_argument("ablation", help=f"YAML file, or the name of a shipped one ({NAMED}/NAME.yaml)")
    parser.add_argument("--data", required=True, type=Path, help="folder to which the sets are relative")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and of the table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="a training for each (default: the recipe's seed)")
    parser.add_argument(
        "--sets", nargs="+", metavar="NAME=SET", help="what the table is about, relative to --data (default: pairs that no recipe uses)"
    )
    parser.add_argument("--reference", metavar="NAME", help="run that the others are compared with (default: the first)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--train-only", action="store_true", help="no table yet")
    args = parser.parse_args(argv)
    try:
        configs = read_variants(recipe_path(args.ablation, NAMED))
        unknown = [name for name in args.only or () if name not in configs]
        if unknown:
            raise InputError(f"there is no variant {unknown[0]!r}", expected=f"one of {', '.join(configs)}")
        if args.only:
            configs = {name: configs[name] for name in args.only}
        if args.threads:
            torch.set_num_threads(args.threads)
        models = train_variants(configs, seeds=args.seeds, data=args.data, out=args.out, device=args.device)
        if args.train_only:
            return 0
        reference = args.reference or next(iter(models))
        print(f"compared with {reference}", flush=True)
        return evaluate(models, sets=_sets(args.sets), reference=reference, data=args.data, out=args.out / "evaluation")
    except InputError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
