"""The command ``s3torch``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from s3torch._version import __version__
from s3torch.errors import S3Error

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_NO_URI = (
    "--uri s3://BUCKET/PREFIX is missing. This command measures s3torch on your own objects. The benchmarks that "
    "compare it with other clients are not installed: run `make bench` or `python -m benchmarks` in a clone of the "
    "repository."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: The command line without the program's name; None takes the process's.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if "uri" in options and options.uri is None:
        options.parser.error(_NO_URI)  # first, as what is unknown may be an option of the other benchmarks
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
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
        help="measure s3torch on your own bucket",
        description="Read your own objects, round after round, and print medians and spreads. Nothing is written to "
        "the bucket. The cases are loader, large and ranges.",
    )
    bench.add_argument("case", nargs="*", metavar="CASE", help="what to measure (default: loader large ranges)")
    bench.add_argument("--uri", metavar="s3://BUCKET/PREFIX", help="the objects to read (required)")
    bench.add_argument("--endpoint", metavar="URL", help="of the server (default: as the AWS tools find it)")
    bench.add_argument("--region", help="of the bucket (default: as the AWS tools find it)")
    bench.add_argument("--repeat", type=_positive, default=5, metavar="N", help="rounds of each case (default: 5)")
    bench.add_argument(
        "--max-objects", type=_positive, default=10_000, metavar="N", help="objects to list (default: 10000)"
    )
    bench.add_argument(
        "--max-bytes",
        type=_size,
        default=_size("256M"),
        metavar="N",
        help="bytes to read in one measurement, and once more to warm up, such as 64M (default: 256M)",
    )
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="write own.json and own.md there")
    bench.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    bench.set_defaults(command=_bench, parser=bench)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in _SIZES or not number.isdigit() or not int(number):
        raise argparse.ArgumentTypeError(f"must be bytes, or such as 64M or 1G, got {text!r}")
    return int(number) * _SIZES[unit]


def _demo(options: argparse.Namespace) -> int:
    try:
        from s3torch.demo import run
    except ModuleNotFoundError as error:
        print(f"s3torch: the demo needs {error.name}: pip install 's3torch[demo]'", file=sys.stderr)
        return 1
    return run(epochs=options.epochs, workers=options.workers)


def _bench(options: argparse.Namespace) -> int:
    from s3torch._own_bench import CASES, Effort, run

    for case in options.case:
        if case not in CASES:
            options.parser.error(f"there is no case {case!r}; the cases are {', '.join(CASES)}")
    effort = Effort(max_bytes=options.max_bytes)
    if options.quick:
        effort = replace(effort, max_items=128, seconds=0.2)
    return run(
        options.uri,
        list(dict.fromkeys(options.case)) or list(CASES),
        endpoint=options.endpoint,
        region=options.region,
        rounds=1 if options.quick else options.repeat,
        max_objects=options.max_objects,
        effort=effort,
        out=options.out,
    )
