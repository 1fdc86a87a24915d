"""``python -m benchmarks``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.arguments import make_parser
from s3torch.errors import S3Error

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line asks for, and return the exit status.

    Args:
        arguments: The command line without the program's name; None takes the process's.
    """
    options = make_parser().parse_args(arguments)
    if not sys.platform.startswith("linux"):
        print("benchmarks: Linux is required, as memory is measured by its /proc", file=sys.stderr)
        return 1
    from benchmarks.command import run

    try:
        return run(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    except S3Error as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
