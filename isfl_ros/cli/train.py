"""``isfl train``: train from a YAML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from isfl_ros.errors import InputError

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


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import importlib.util

    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard is missing", do="install the package with its extra: pip install 'isfl_ros[train]'")

    import torch

    from isfl_ros.backends.choice import choose_for_training
    from isfl_ros.device import choose_device
    from isfl_ros.network.model import IsflNet
    from isfl_ros.resources import shared_directory
    from isfl_ros.training.config import read_config
    from isfl_ros.training.loop import Trainer

    path = Path(args.config)
    if not path.suffix:
        path = shared_directory() / "config" / "train" / f"{args.config}.yaml"
    config = read_config(path)
    overrides = {key: getattr(args, key) for key in ("steps", "seed") if getattr(args, key) is not None}
    config = dataclasses.replace(config, **overrides)
    if not args.resume and (Path(args.out) / "checkpoints").exists():
        raise InputError(f"{args.out} holds a run already", do="pass --resume or choose another --out")
    if args.threads < 0:
        raise InputError("--threads out of range", expected="0 or more", got=str(args.threads))
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    print(f"device: {device.device} ({device.reason})")
    implementation, reason = choose_for_training(device.device, args.implementation, IsflNet(config.network_config()))
    print(f"implementation: {implementation} ({reason})")
    trainer = Trainer(config, data_root=args.data, out=args.out, device=device.device, implementation=implementation)
    print(f"{trainer.pair_count} training pairs, {len(trainer.validation)} for validation, {config.steps} steps")
    print(f"model: {trainer.run(resume=args.resume)}")
    return 0
