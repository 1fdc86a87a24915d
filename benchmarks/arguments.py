"""The command line of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["make_parser"]

_SIZES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; its results know it as ``parser``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Read the same objects with s3torch and with the other clients that are installed, in turn, each "
        "measurement in a process of its own, and print medians and spreads. Without --uri everything is read from "
        "servers that are started on this machine.",
    )
    parser.add_argument("case", nargs="*", metavar="CASE", help="what to measure (default: all; see --list)")
    parser.add_argument("--repeat", type=_positive, default=5, metavar="N", help="rounds of each case (default: 5)")
    parser.add_argument("--clients", metavar="NAME,...", help="who takes part (default: all that are installed)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write results.json, results.md and charts there, case by case"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and their clients, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="one short round with small objects, to see that it works")
    parser.add_argument(
        "--keys", type=_positive, default=200_000, metavar="N", help="keys of the case listing (default: 200000)"
    )
    own = parser.add_argument_group("your own data", "the cases are loader, large and ranges; nothing is written")
    own.add_argument("--uri", metavar="s3://BUCKET/PREFIX", help="measure on these objects instead of local servers")
    own.add_argument("--endpoint", metavar="URL", help="of the server (default: as the AWS tools find it)")
    own.add_argument("--region", help="of the bucket (default: as the AWS tools find it)")
    own.add_argument(
        "--max-objects", type=_positive, default=10_000, metavar="N", help="objects that are listed (default: 10000)"
    )
    own.add_argument(
        "--max-bytes",
        type=_size,
        default=_size("256M"),
        metavar="N",
        help="bytes that one client reads in one round, and once more to warm up, such as 64M (default: 256M)",
    )
    parser.set_defaults(parser=parser)
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
