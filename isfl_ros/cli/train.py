"""``isfl train``: train from a YAML file, in one process or in those that torchrun starts."""

from __future__ import annotations

import argparse
from pathlib import Path

from isfl_ros.errors import InputError, require_module

HELP = "train a network from a YAML file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from isfl_ros.backends.choice import TRAINING_CHOICES

    parser.add_argument("config", help="YAML file, or the name of a shipped one (config/train/NAME.yaml)")
    parser.add_argument("--data", required=True, help="folder to which the YAML's sets are relative")
    parser.add_argument("--out", required=True, help="folder of the run: checkpoints, TensorBoard, model")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--implementation", default=TRAINING_CHOICES[0], choices=TRAINING_CHOICES, help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice (default)")
    parser.add_argument("--steps", type=int, help="overrides the YAML's steps")
    parser.add_argument("--seed", type=int, help="overrides the YAML's seed")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    parser.add_argument(
        "--cache", metavar="DIR", help="keep decoded pictures in DIR, for later runs and other processes"
    )
    parser.add_argument(
        "--workers", type=int, help="threads that cut batches ahead; 0 cuts in the loop (default: by device and cores)"
    )


def run(args: argparse.Namespace) -> int:
    require_module("tensorboard", extra="train")

    from isfl_ros.training.distributed import launched

    for option in ("threads", "workers"):
        if (getattr(args, option) or 0) < 0:
            raise InputError(f"--{option} out of range", expected="0 or more", got=str(getattr(args, option)))
    world = launched()
    try:
        return _train(args, world)
    except InputError as error:
        if world.size == 1:
            raise
        raise InputError(f"process {world.rank} of {world.size}: {error}") from error


def _train(args: argparse.Namespace, world) -> int:
    import dataclasses
    import logging

    import torch

    from isfl_ros.backends.choice import choose_for_training
    from isfl_ros.training.config import read_config, recipe_path
    from isfl_ros.training.distributed import choose_device_of, process_group
    from isfl_ros.training.loop import Trainer
    from isfl_ros.training.prefetch import default_workers

    def say(text: str) -> None:
        if world.is_main:
            print(text, flush=True)

    config = read_config(recipe_path(args.config))
    overrides = {key: getattr(args, key) for key in ("steps", "seed") if getattr(args, key) is not None}
    config = dataclasses.replace(config, **overrides)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not world.is_main:
        logging.getLogger().setLevel(logging.WARNING)
    device = choose_device_of(world, args.device)
    say(f"device: {device.device} ({device.reason})")
    kind = torch.device(device.device).type
    implementation, reason = choose_for_training(kind, args.implementation, config.build_network())
    say(f"implementation: {implementation} ({reason})")
    workers = default_workers(device.device, world.local_size) if args.workers is None else args.workers
    with process_group(world, device.device):
        if not args.resume:
            world.from_main(lambda: _refuse_second_run(Path(args.out)))
        trainer = Trainer(
            config,
            data_root=args.data,
            out=args.out,
            device=device.device,
            implementation=implementation,
            world=world,
            workers=workers,
            cache=args.cache,
        )
        say(f"{trainer.pair_count} training pairs, {len(trainer.validation)} for validation, {config.steps} steps")
        say(f"{world.size} processes with {workers} workers each; batch {config.data.batch} over all of them")
        model = trainer.run(resume=args.resume)
        say(_throughput(trainer.throughput))
        say(f"model: {model}")
    return 0


def _refuse_second_run(out: Path) -> None:
    if (out / "checkpoints").exists():
        raise InputError(f"{out} holds a run already", do="pass --resume or choose another --out")


def _throughput(facts: dict) -> str:
    where = f"{facts['processes']} x {facts['hardware']}, {facts['threads']} threads each, {facts['precision']}"
    if "images_per_second" not in facts:
        return f"throughput: unknown, no step was measured ({where})"
    return (
        f"throughput: {facts['images_per_second']:.2f} images/s of {facts['patch']} px,"
        f" {facts['passes_per_second']:.2f} passes/s over {facts['measured_steps']} steps ({where})"
    )
