"""``isfl import-checkpoint``: the authors' released weights into a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "the authors' released weights into a model folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="the released checkpoint: .safetensors, or .pth (read with weights_only=True)")
    parser.add_argument("--out", required=True, help="model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> int:
    from isfl_ros.network.checkpoint import save_model
    from isfl_ros.network.release import read_release

    network, info = read_release(args.file)
    save_model(Path(args.out), network, info, overwrite=args.overwrite)
    print(f"{args.out}: {info.architecture}, {sum(p.numel() for p in network.parameters())} parameters")
    return 0
