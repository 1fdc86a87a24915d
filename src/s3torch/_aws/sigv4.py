"""AWS Signature Version 4 for S3, as pure functions.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. S3 differs from other services
in that the path is encoded once and never normalised: ``//``, ``.`` and ``..`` are parts of keys.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

__all__ = [
    "EMPTY_SHA256",
    "UNSIGNED_PAYLOAD",
    "Credentials",
    "Signer",
    "canonical_query",
    "canonical_request",
    "encode_path",
    "signing_key",
    "string_to_sign",
    "timestamp",
]

_NEEDS_NO_CODE = re.compile(r"[A-Za-z0-9/_.~-]*")

_BLOCK = 64  # bytes that SHA-256 takes at a time
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))

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
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def encode_path(path: str) -> str:
    """Percent-encode a path as S3 wants it: all but unreserved characters and ``/``."""
    return path if _NEEDS_NO_CODE.fullmatch(path) else quote(path, safe="/")


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
    end, signed_names = _canonical_end(fields, payload_sha256)
    return f"{method}\n{path}\n{query}\n{end}", signed_names


def _canonical_end(fields: Mapping[str, str], payload_sha256: str) -> tuple[str, str]:
    names = sorted(fields)
    signed_names = ";".join(names)
    lines = "\n".join([f"{name}:{fields[name]}" for name in names])
    if " " in lines:  # runs of spaces count as one
        lines = "\n".join([f"{name}:{' '.join(fields[name].split())}" for name in names])
    return f"{lines}\n\n{signed_names}\n{payload_sha256}", signed_names


def string_to_sign(canonical: str, when: str, scope: str) -> str:
    """Return the string that is signed, of a canonical request."""
    return _beginning_to_sign(when, scope) + hashlib.sha256(canonical.encode()).hexdigest()


def _beginning_to_sign(when: str, scope: str) -> str:
    return f"AWS4-HMAC-SHA256\n{when}\n{scope}\n"


def signing_key(secret_key: str, date: str, region: str, service: str = "s3") -> bytes:
    """Derive the key for one day (``YYYYMMDD``), region and service."""
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, service, "aws4_request"):
        inner, outer = _keyed_hashes(key)
        inner.update(part.encode())
        outer.update(inner.digest())
        key = outer.digest()
    return key


def _keyed_hashes(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """Return the inner and outer hash of an HMAC (RFC 2104): to copy and feed these takes half of what ``hmac`` takes.

    Nor do they let other threads run meanwhile, which may fork and leave the child the locks of OpenSSL.
    """
    if len(key) > _BLOCK:
        key = hashlib.sha256(key).digest()
    key = key.ljust(_BLOCK, b"\0")
    return hashlib.sha256(key.translate(_INNER_PAD)), hashlib.sha256(key.translate(_OUTER_PAD))


@functools.lru_cache(maxsize=64)  # a key is valid for a day
def _signing_hashes(secret_key: str, date: str, region: str, service: str) -> tuple[hashlib._Hash, hashlib._Hash]:
    return _keyed_hashes(signing_key(secret_key, date, region, service))


class Signer:
    """Signs requests of one second, which differ by method, path and query alone.

    Args:
        fields: Header fields to sign, by lower-case name: ``host`` and all ``x-amz-*``; ``x-amz-date`` is ``when``.
        payload_sha256: Hex digest of the body, or ``UNSIGNED-PAYLOAD``.
        credentials: Whose signature; a session token must be among ``fields`` already.
        region: That signs.
        when: From ``timestamp``.
        service: That it is signed for.

    Attributes:
        preamble: The Authorization field up to the signature.
    """

    __slots__ = ("_canonical_end", "_inner", "_outer", "preamble")

    def __init__(
        self,
        fields: Mapping[str, str],
        *,
        payload_sha256: str,
        credentials: Credentials,
        region: str,
        when: str,
        service: str = "s3",
    ) -> None:
        date = when[:8]
        scope = f"{date}/{region}/{service}/aws4_request"
        self._canonical_end, signed_names = _canonical_end(fields, payload_sha256)
        inner, self._outer = _signing_hashes(credentials.secret_key, date, region, service)
        self._inner = inner.copy()
        self._inner.update(_beginning_to_sign(when, scope).encode())
        self.preamble = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope},SignedHeaders={signed_names},Signature="
        )

    def signature(self, method: str, path: str, query: str) -> str:
        """Return the signature of a request; arguments as in ``canonical_request``."""
        canonical = f"{method}\n{path}\n{query}\n{self._canonical_end}"
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(hashlib.sha256(canonical.encode()).hexdigest().encode())
        outer.update(inner.digest())
        return outer.hexdigest()
