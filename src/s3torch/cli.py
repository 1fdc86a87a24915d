"""The command ``s3torch``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from s3torch._version import __version__
from s3torch.bench.arguments import add_arguments
from s3torch.errors import S3Error

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: The command line without the program's name; None takes the process's.
    """
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    except S3Error as error:
        print(f"s3torch: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s3torch", description="Feeds PyTorch from S3.")
    parser.add_argument("--version", action="version", version=f"s3torch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="train on images in a local S3 server, start to finish",
        description="Start a real S3 server on this machine, upload 1,797 handwritten digits as PNG objects, train a "
        "small network from them, save and reload its checkpoint, and read a slice of a large object.",
    )
    demo.add_argument("--epochs", type=_positive, default=8, help="passes over the training set (default: 8)")
    demo.add_argument("--workers", type=_positive, default=2, help="DataLoader workers (default: 2)")
    demo.set_defaults(command=_demo)
    bench = commands.add_parser(
        "bench",
        help="measure s3torch beside other clients, here or on your own bucket",
        description="Read the same objects with s3torch and with the other clients that are installed, in turn, each "
        "measurement in a process of its own, and print medians and spreads. Without --uri everything is read from "
        "servers that are started on this machine.",
    )
    add_arguments(bench)
    bench.set_defaults(command=_bench)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _demo(options: argparse.Namespace) -> int:
    try:
        from s3torch.demo import run
    except ModuleNotFoundError as error:
        print(f"s3torch: the demo needs {error.name}: pip install 's3torch[demo]'", file=sys.stderr)
        return 1
    return run(epochs=options.epochs, workers=options.workers)


def _bench(options: argparse.Namespace) -> int:
    if not sys.platform.startswith("linux"):
        print("s3torch: the benchmarks need Linux, whose /proc tells what a process takes", file=sys.stderr)
        return 1
    from s3torch.bench.command import run

    return run(options)
