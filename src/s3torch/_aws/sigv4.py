"""AWS Signature Version 4 for S3, as pure functions.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. S3 differs from other services
in that the path is encoded once and never normalised: ``//``, ``.`` and ``..`` are parts of keys.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

__all__ = [
    "EMPTY_SHA256",
    "UNSIGNED_PAYLOAD",
    "Credentials",
    "authorization",
    "canonical_query",
    "canonical_request",
    "encode_path",
    "signing_key",
    "string_to_sign",
    "timestamp",
]

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; its secrets do not show in ``repr``."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def timestamp(seconds: float) -> str:
    """Return a time as ``YYYYMMDDTHHMMSSZ``.

    Args:
        seconds: Since the epoch.
    """
    return _format_time(int(seconds))


@functools.lru_cache(maxsize=4)  # thousands of requests share a second
def _format_time(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def encode_path(path: str) -> str:
    """Percent-encode a path as S3 wants it: all but unreserved characters and ``/``."""
    return quote(path, safe="/")


def canonical_query(parameters: Mapping[str, str]) -> str:
    """Return a query sorted and encoded; it serves for the signature and on the wire."""
    pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in parameters.items())
    return "&".join([f"{name}={value}" for name, value in pairs])


def canonical_request(
    method: str, path: str, query: str, fields: Mapping[str, str], payload_sha256: str
) -> tuple[str, str]:
    """Return the canonical request and the list of signed header names.

    Args:
        method: ``GET``, ``PUT``, ...
        path: Encoded by ``encode_path``.
        query: From ``canonical_query``.
        fields: Header fields to sign, by lower-case name.
        payload_sha256: Hex digest of the body, or ``UNSIGNED-PAYLOAD``.
    """
    names = sorted(fields)
    signed_names = ";".join(names)
    lines = "\n".join([f"{name}:{fields[name]}" for name in names])
    if " " in lines:  # runs of spaces count as one
        lines = "\n".join([f"{name}:{' '.join(fields[name].split())}" for name in names])
    return f"{method}\n{path}\n{query}\n{lines}\n\n{signed_names}\n{payload_sha256}", signed_names


def string_to_sign(canonical: str, when: str, scope: str) -> str:
    """Return the string that is signed, of a canonical request."""
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{digest}"


def signing_key(secret_key: str, date: str, region: str) -> bytes:
    """Derive the key for one day (``YYYYMMDD``) and region."""
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


@functools.lru_cache(maxsize=64)  # a key is valid for a day, and copying its prepared HMAC halves the cost of signing
def _keyed_hash(secret_key: str, date: str, region: str) -> hmac.HMAC:
    return hmac.new(signing_key(secret_key, date, region), digestmod="sha256")


def authorization(
    method: str,
    path: str,
    query: str,
    fields: Mapping[str, str],
    *,
    payload_sha256: str,
    credentials: Credentials,
    region: str,
    when: str,
) -> str:
    """Return the Authorization field of a request; arguments as in ``canonical_request``.

    Args:
        credentials: Whose signature; a session token must be among ``fields`` already.
        region: That signs.
        when: From ``timestamp``; must be the ``x-amz-date`` among ``fields``.
    """
    date = when[:8]
    scope = f"{date}/{region}/s3/aws4_request"
    canonical, signed_names = canonical_request(method, path, query, fields, payload_sha256)
    keyed_hash = _keyed_hash(credentials.secret_key, date, region).copy()
    keyed_hash.update(string_to_sign(canonical, when, scope).encode())
    return (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope},"
        f"SignedHeaders={signed_names},Signature={keyed_hash.hexdigest()}"
    )
