"""Makes the checks, one after the other, and cleans up behind them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from s3torch._version import __version__
from s3torch.config import S3ClientConfig
from s3torch.errors import (
    ArgumentError,
    BucketNotFoundError,
    CertificateError,
    ConnectionFailedError,
    CredentialsError,
    DeadlineError,
    S3Error,
)
from s3torch.testing.conformance import conditions, integrity, keys, listing, objects, ranges, training, uploads
from s3torch.testing.conformance.check import Check
from s3torch.testing.conformance.findings import UnavailableError, UnfulfilledError, UnsupportedError
from s3torch.testing.conformance.report import Outcome, Report, Result
from s3torch.testing.conformance.site import MiB, Site

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Progress", "checks", "run"]

_PREFIX = "s3torch-conformance/"
_SHOWN = 500  # characters of what was seen
_TIMEOUT = 600.0  # seconds for all checks; on one machine they take 5 to 30
_CALL_TIMEOUT = 30.0  # seconds for one call of a check: the largest moves 12 MiB
_ATTEMPTS = 3  # a fault that passes is no habit of the server; one that stays is found in seconds
_NOT_IMPLEMENTED = 501
# Without these nothing can be said of the server: they are the caller's to mend.
_UNUSABLE = (
    ArgumentError,
    BucketNotFoundError,
    CertificateError,
    ConnectionFailedError,
    CredentialsError,
    DeadlineError,
)

# What is needed is made before what needs it.
_CHECKS: tuple[Check, ...] = (
    *objects.CHECKS,
    *uploads.CHECKS,
    *conditions.CHECKS,
    *integrity.CHECKS,
    *ranges.CHECKS,
    *listing.CHECKS,
    *keys.CHECKS,
    *training.CHECKS,
)

Progress = Callable[[int, int, Result], None]


def checks() -> Sequence[Check]:
    """Return all checks, in the order in which they are made."""
    return _CHECKS


def run(
    bucket: str,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    prefix: str = _PREFIX,
    names: Iterable[str] | None = None,
    timeout: float = _TIMEOUT,
    progress: Progress | None = None,
) -> Report:
    """Check what a server does against what s3torch needs of it.

    Every key that is touched begins with ``prefix``, followed by a part that no other run has; all of them, their
    versions and uploads are removed in the end, also after an exception or Ctrl-C. Nothing else is read, changed or
    deleted. Credentials are found as by any client of s3torch.

    Args:
        bucket: Which exists, and may be read, written, listed and deleted from.
        endpoint: URL of the server. None: as a client finds it.
        region: Of the bucket. None: as a client finds it.
        s3client_config: Of the clients, as your program would set it: ``force_path_style``, ``checksums``, ``verify``,
            ``profile``. Parts are made smaller, and calls bounded, whatever it says.
        prefix: Of all keys.
        names: Of the checks to make, or beginnings of names such as ``range.``; what they need is made too. None makes
            all.
        timeout: Seconds after which no further check is begun; a call within one may take 30 more, and cleaning up
            120.
        progress: Called after each check with its number from 1, the number of checks, and its result.

    Returns:
        How each check came out.

    Raises:
        ArgumentError: A name is of no check, or an argument cannot work.
        CredentialsError: There are none, or the server does not accept them.
        BucketNotFoundError: There is no such bucket.
        ConnectionFailedError: There is no server.
        CertificateError: Its certificate is not trusted.
        DeadlineError: It does not answer.
    """
    chosen = _chosen(names)
    config = s3client_config or S3ClientConfig()
    call_timeout = min(config.call_timeout or _CALL_TIMEOUT, _CALL_TIMEOUT)
    site = Site(
        bucket=bucket,
        prefix=_own_prefix(prefix),
        region=region,
        endpoint=endpoint,
        config=replace(
            config,
            part_size=5 * MiB,
            hedging=False,  # a request that is sent twice says less
            call_timeout=call_timeout,
            max_attempts=min(config.max_attempts, _ATTEMPTS),
        ),
    )
    began, start = datetime.now(timezone.utc), time.monotonic()
    try:
        _require_server(site)
        try:
            results = _run_all(site, chosen, start + timeout, progress)
        finally:
            left_over = site.clean()
        return Report(
            endpoint=endpoint or str(site.client._access.bucket(bucket).endpoint.origin),
            bucket=bucket,
            prefix=site.prefix,
            results=tuple(results.values()),
            left_over=tuple(left_over),
            server=site.server,
            s3torch_version=__version__,
            began=began.isoformat(timespec="seconds"),
            seconds=time.monotonic() - start,
        )
    finally:
        site.close()


def _chosen(names: Iterable[str] | None) -> list[Check]:
    """Return the checks of these names and all that they need, in order."""
    if names is None:
        return list(_CHECKS)
    by_name = {each.name: each for each in _CHECKS}
    wanted: set[str] = set()
    for name in names:
        found = {each for each in by_name if each == name or each.startswith(f"{name.removesuffix('.')}.")}
        if not found:
            raise ArgumentError(f"There is no check {name!r}. The checks are {', '.join(by_name)}.")
        wanted |= found
    for each in reversed(_CHECKS):  # what is needed stands before
        if each.name in wanted:
            wanted.update(each.needs)
    return [each for each in _CHECKS if each.name in wanted]


def _own_prefix(prefix: str) -> str:
    """Return a prefix that no other run has."""
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    return f"{prefix}{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}/"


def _require_server(site: Site) -> None:
    """Ask for a key that is not there: raises what the caller has to mend before any check says anything."""
    try:
        site.client.read_range(site.bucket, site.key("nothing"), 0, 1)
    except _UNUSABLE:
        raise
    except S3Error:
        pass  # whatever else the server says is for the checks


def _run_all(site: Site, chosen: Sequence[Check], deadline: float, progress: Progress | None) -> Mapping[str, Result]:
    results: dict[str, Result] = {}
    for number, each in enumerate(chosen, 1):
        start = time.monotonic()
        outcome, seen = _why_skipped(each, results, is_late=start > deadline) or _outcome(each, site)
        results[each.name] = Result(
            name=each.name,
            shows=each.shows,
            outcome=outcome,
            seen=seen if len(seen) <= _SHOWN else f"{seen[:_SHOWN]}...",
            consequence=each.consequence if outcome in {Outcome.FAILED, Outcome.NOT_SUPPORTED} else "",
            seconds=time.monotonic() - start,
        )
        if progress is not None:
            progress(number, len(chosen), results[each.name])
    return results


def _why_skipped(each: Check, results: Mapping[str, Result], *, is_late: bool) -> tuple[Outcome, str] | None:
    """Return the outcome of a check that would show nothing, or None."""
    missing = [name for name in each.needs if results[name].outcome is not Outcome.PASSED]
    if missing:
        return Outcome.SKIPPED, f"it needs {', '.join(missing)}"
    return (Outcome.SKIPPED, "the time was up") if is_late else None


def _outcome(each: Check, site: Site) -> tuple[Outcome, str]:
    """Make one check. Whatever it raises is what a user would meet, so it is an outcome and ends nothing."""
    try:
        each.run(site)
    except UnsupportedError as error:
        return Outcome.NOT_SUPPORTED, str(error)
    except UnavailableError as error:
        return Outcome.SKIPPED, str(error)
    except UnfulfilledError as error:
        return Outcome.FAILED, str(error)
    except S3Error as error:
        is_missing = error.status == _NOT_IMPLEMENTED or error.code == "NotImplemented"
        return Outcome.NOT_SUPPORTED if is_missing else Outcome.FAILED, f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001  # torch and its workers raise errors of their own
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    return Outcome.PASSED, ""
