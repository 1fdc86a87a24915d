"""``python -m s3torch.testing.conformance``: checks a server, and exits with 1 if a check fails or none can be made."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from s3torch.config import S3ClientConfig
from s3torch.errors import S3Error
from s3torch.testing.conformance.report import Outcome, Result
from s3torch.testing.conformance.running import checks, run

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and return the exit status: 0 if none failed, 1 if one did or none could be made, 130 on Ctrl-C.

    Args:
        arguments: The command line without the program's name; None takes the process's.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for each in checks():
            _say(f"{each.name:32} {each.shows}")
        return 0
    if options.bucket is None:
        parser.error("--bucket is missing: name a bucket that may be written to. Its other objects are not touched.")
    config = S3ClientConfig(
        force_path_style=options.path_style,
        checksums=options.checksums,
        profile=options.profile,
        unsigned=options.unsigned,
        verify=str(options.ca) if options.ca else True,
    )
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that whoever is told to end cleans up as after Ctrl-C
    try:
        report = run(
            options.bucket,
            endpoint=options.endpoint,
            region=options.region,
            s3client_config=config,
            prefix=options.prefix,
            names=options.check or None,
            timeout=options.timeout,
            progress=_show,
        )
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: what was stored is removed, unless that was interrupted as well\n")
        return _INTERRUPTED
    except S3Error as error:
        sys.stderr.write(f"No check could be made: {error}\n")
        return _FAILED
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.json:
        options.json.write_text(f"{report.to_json()}\n", encoding="utf-8")
    _say(f"\n{report}")
    return 0 if report.ok else _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s3torch.testing.conformance",
        description="Check whether an S3 server does what s3torch needs. Keys below a prefix of its own are written "
        "and removed again; nothing else in the bucket is touched. Credentials are found as the AWS tools find them.",
    )
    parser.add_argument("--bucket", help="which exists and may be written to (required)")
    parser.add_argument("--endpoint", metavar="URL", help="of the server (default: as the AWS tools find it)")
    parser.add_argument("--region", help="of the bucket (default: as the AWS tools find it)")
    parser.add_argument("--profile", help="of the AWS configuration files")
    parser.add_argument("--prefix", default="s3torch-conformance/", help="of all keys (default: %(default)s)")
    parser.add_argument("--path-style", action="store_true", help="force_path_style=True: host/bucket/key")
    parser.add_argument("--checksums", choices=("on", "off", "strict"), default="on", help="(default: %(default)s)")
    parser.add_argument("--unsigned", action="store_true", help="send no credentials")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="PEM file of the authorities to trust")
    parser.add_argument(
        "--check",
        action="append",
        metavar="NAME",
        help="make this check only, or those of a group such as `range`, and what they need; may be repeated",
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="for all checks (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--list", action="store_true", help="list the checks, and make none")
    return parser


def _show(number: int, count: int, result: Result) -> None:
    mark = "" if result.outcome is Outcome.PASSED else f"  {result.seen}"
    _say(f"[{number:2}/{count}] {result.name:32} {result.outcome.value}{mark[:200]}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # whoever reads this through a pipe wants to see how far it is


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
