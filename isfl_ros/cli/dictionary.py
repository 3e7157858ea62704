"""``isfl dictionary``: the confounder dictionaries of a training configuration, and pictures of what they hold."""

from __future__ import annotations

import argparse
from pathlib import Path

from isfl_ros.errors import InputError, require_module

HELP = "make the confounder dictionaries of the model baffm from training pictures, and show what they stand for"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument(
        "config",
        help="YAML file of a training, or the name of a shipped one (config/train/NAME.yaml): sets, network, seed",
    )
    parser.add_argument("--data", required=True, help="folder to which the YAML's sets are relative")
    parser.add_argument(
        "--out", required=True, type=Path,
        help="folder to make; `dictionary: {folder: OUT}` in the YAML then trains with it",
    )
    parser.add_argument("--prototypes", type=int, metavar="N", help="overrides the YAML's network.prototypes")
    parser.add_argument("--backbone", metavar="MODEL", help="overrides the YAML's dictionary.backbone")
    parser.add_argument("--seed", type=int, help="overrides the YAML's seed")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice (default)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier dictionary in --out")


def run(args: argparse.Namespace) -> int:
    """Makes the folder.

    Raises:
        InputError: the configuration's network takes no dictionary, there are too few pictures, or a file is unusable.
    """
    require_module("sklearn", extra="train")

    import dataclasses

    import torch

    from isfl_ros.device import choose_device
    from isfl_ros.io.dataset import select_pairs
    from isfl_ros.io.staging import check_replaceable, staged_folder
    from isfl_ros.network.dictionary import RECORD, write_dictionaries
    from isfl_ros.training.config import read_config, recipe_path
    from isfl_ros.training.data import decode_pairs
    from isfl_ros.training.dictionary import build_dictionaries, write_sheets

    if args.threads < 0:
        raise InputError("--threads out of range", expected="0 or more", got=str(args.threads))
    check_replaceable(args.out, marker=RECORD, overwrite=args.overwrite)  # before the pictures are read
    config = read_config(recipe_path(args.config))
    network = dict(config.network) | ({} if args.prototypes is None else {"prototypes": args.prototypes})
    config = dataclasses.replace(config, network=network, seed=config.seed if args.seed is None else args.seed)
    shape = config.network_config()
    if not getattr(shape, "needs_dictionary", False):
        raise InputError(
            f"{args.config}: the network takes no dictionary", expected="model baffm with adjustment backdoor",
            got=f"model {config.model}",
        )
    source = config.dictionary
    if args.backbone is not None:
        source = dataclasses.replace(source, backbone=args.backbone)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    pairs = [pair for spec in config.data.sets for pair in select_pairs(spec, root=args.data)]
    loaded = list(decode_pairs(pairs, "training pairs"))
    dictionaries, sheets = build_dictionaries(loaded, source, shape, seed=config.seed, device=device.device)
    with staged_folder(args.out, marker=RECORD, overwrite=args.overwrite) as folder:
        write_sheets(folder, sheets)
        write_dictionaries(folder, dictionaries)
    record = dictionaries.record
    for modality, share in record.explained_variance.items():
        counts = record.members[modality]
        print(
            f"{modality}: {record.prototypes} prototypes of {record.images} pictures, {record.entries} of"
            f" {record.backbone_width} components ({share:.1%} of the variance), {counts[0]} to {counts[-1]} regions"
            " each"
        )
    print(f"written: {args.out}")
    return 0
