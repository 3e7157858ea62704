"""Dispatcher of ``isfl VERB``: parse, call, print errors as one line."""

from __future__ import annotations

import argparse
import logging
import signal
import sys

from isfl_ros import __version__
from isfl_ros.cli import benchmark, demo, dictionary, evaluate, fuse, import_checkpoint, train
from isfl_ros.errors import InputError

# Verb modules import torch, matplotlib and the like only when they run, so that `isfl --help` is quick.
_VERBS = {
    "demo": demo,
    "fuse": fuse,
    "train": train,
    "dictionary": dictionary,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "import-checkpoint": import_checkpoint,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser with every verb; a verb's own arguments are added when it is the one called."""
    parser = argparse.ArgumentParser(prog="isfl", description="Thermal and RGB fusion: demo, training, evaluation.")
    parser.add_argument("--version", action="version", version=f"isfl_ros {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, module in _VERBS.items():
        verbs.add_parser(verb, help=module.HELP, add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status: 0 done, 2 bad input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    namespace, rest = build_parser().parse_known_args(argv)
    module = _VERBS[namespace.verb]
    parser = argparse.ArgumentParser(prog=f"isfl {namespace.verb}", description=module.HELP[0].upper() + module.HELP[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_arguments(parser)
    args = parser.parse_args(rest)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: children stopped, nothing left aside
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return module.run(args)
    except InputError as error:
        if args.debug:
            raise
        print(f"isfl {namespace.verb}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if args.debug or error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"isfl {namespace.verb}: error: {where}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"isfl {namespace.verb}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
