"""``isfl fuse``: folders of thermal and visible pictures in, fused pictures out."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from isfl_ros.errors import InputError

HELP = "fuse folders of thermal and visible pictures"

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from isfl_ros.backends.choice import IMPLEMENTATION_CHOICES, PRECISION_CHOICES
    from isfl_ros.device import DEVICES
    from isfl_ros.images import GAIN_MODES, GainControlConfig
    from isfl_ros.pipeline import PipelineConfig
    from isfl_ros.registration import REFERENCES

    gain, pipeline = GainControlConfig(), PipelineConfig()
    parser.add_argument("--thermal", required=True, help="folder of thermal pictures, 8- or 16-bit")
    parser.add_argument("--rgb", required=True, help="folder of visible pictures of the same stems")
    parser.add_argument("--out", required=True, help="folder to write <stem>.png into")
    parser.add_argument("--homography", metavar="FILE", help="YAML file that registers the cameras (default: aligned)")
    parser.add_argument(
        "--reference",
        choices=REFERENCES,
        help=f"camera into whose picture --homography warps the other's (default: {REFERENCES[0]})",
    )
    parser.add_argument("--model", default=pipeline.model, help="model folder or shipped name (default: %(default)s)")
    parser.add_argument("--luma", action="store_true", help="write the one-channel fused luma instead of colour")
    parser.add_argument("--gates", action="store_true", help="also write <stem>_gate.png")
    parser.add_argument("--device", default=pipeline.device, choices=DEVICES, help="default: %(default)s")
    parser.add_argument(
        "--implementation", default=pipeline.implementation, choices=IMPLEMENTATION_CHOICES, help="default: %(default)s"
    )
    parser.add_argument("--precision", default=pipeline.precision, choices=PRECISION_CHOICES, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=pipeline.threads, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument(
        "--agc-mode",
        default=gain.mode,
        choices=[mode for mode in GAIN_MODES if mode != "percentile_smoothed"],
        help="gain control of 16-bit thermal pictures (default: %(default)s); single pictures have no time to smooth over",
    )
    parser.add_argument("--agc-low", type=float, default=gain.low, help="black of fixed gain (default: %(default)s)")
    parser.add_argument("--agc-high", type=float, default=gain.high, help="white of fixed gain (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="leave out pairs whose outputs exist")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from isfl_ros.images import GainControlConfig, to_uint8
    from isfl_ros.io.folders import find_pairs, read_pair, write_png
    from isfl_ros.pipeline import FusionPipeline, PipelineConfig, check_pair
    from isfl_ros.registration import REFERENCES, Alignment, Registration

    out = Path(args.out)
    if out.resolve() in (Path(args.thermal).resolve(), Path(args.rgb).resolve()):
        raise InputError(f"{out} is an input folder", do="choose another --out")
    if args.resume and args.overwrite:
        raise InputError("--resume and --overwrite contradict each other", do="pass one of them")
    if args.reference is not None and args.homography is None:
        raise InputError("--reference without --homography", expected="something to warp", do="pass both or neither")
    registration = Registration() if args.homography is None else Registration.from_file(args.homography)
    for concern in registration.concerns:
        _log.warning("%s: %s", args.homography, concern)
    reference = args.reference or REFERENCES[0]
    alignment = Alignment(registration, reference=reference)
    pairs = find_pairs(args.thermal, args.rgb)

    def outputs(stem: str) -> list[Path]:
        return [out / f"{stem}.png"] + ([out / f"{stem}_gate.png"] if args.gates else [])

    _refuse_clashes([path for pair in pairs for path in outputs(pair.stem)])
    present = [path for pair in pairs for path in outputs(pair.stem) if path.exists()]
    if present and not (args.overwrite or args.resume):
        raise InputError(f"{present[0]} exists", got=f"{len(present)} in all", do="pass --overwrite or --resume")
    todo = [pair for pair in pairs if not (args.resume and all(path.exists() for path in outputs(pair.stem)))]
    # Everything is read once before anything is written: a bad picture at the end must not leave half a folder.
    for pair in tqdm(todo, desc="checking", unit="pair", leave=False):
        thermal, rgb = read_pair(pair, registered=not alignment.warps)
        try:
            check_pair(thermal, rgb, alignment=alignment)
        except InputError as error:
            raise InputError(f"{pair.thermal}: {error}") from error
    gain = GainControlConfig(mode=args.agc_mode, low=args.agc_low, high=args.agc_high)
    pipeline = FusionPipeline(
        PipelineConfig(
            model=args.model,
            device=args.device,
            implementation=args.implementation,
            precision=args.precision,
            threads=args.threads,
            gain=gain,
        )
    )
    pipeline.set_registration(registration, reference=reference)
    if args.gates and not pipeline.has_gates:
        raise InputError(f"model {args.model} has no gates", do="leave out --gates")
    d = pipeline.description
    print(
        f"model {d['model']} on {d['device']} ({d['device_reason']}), {d['implementation']} ({d['implementation_reason']}),"
        f" {d['precision']} ({d['precision_reason']})"
    )
    if alignment.warps:
        covered = f"covers {registration.overlap:.0%} of it"
        print(f"{alignment.other} warped into {reference} by {args.homography}, {covered}")
    for pair in tqdm(todo, desc="fusing", unit="pair"):
        result = pipeline.fuse(*read_pair(pair, registered=not alignment.warps), gate=args.gates)
        paths = outputs(pair.stem)
        if args.gates:
            write_png(paths[1], to_uint8(result.gate))
        write_png(paths[0], result.luma if args.luma else result.rgb)  # last: its presence says that the pair is done
    print(f"{len(todo)} fused into {out}" + (f", {len(pairs) - len(todo)} were there" if len(todo) < len(pairs) else ""))
    return 0


def _refuse_clashes(paths: list[Path]) -> None:
    """A pair named ``x_gate`` beside a pair ``x`` would write one file twice."""
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise InputError(f"two pairs would both write {path}", do="rename one of them or leave out --gates")
        seen.add(path)
