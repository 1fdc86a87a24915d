"""SSE-C: encryption by S3 with a key that it is told with each request, and does not keep.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

from s3torch._transfer.connection import Origin
from s3torch._transfer.proxy import Proxy
from s3torch.errors import ConfigError

__all__ = ["check_may_carry_key", "customer_key_fields", "of_source"]

_LENGTH = 32  # bytes: AES-256
_PREFIX = "x-amz-server-side-encryption-customer-"
_SOURCE_PREFIX = "x-amz-copy-source-server-side-encryption-customer-"


def customer_key_fields(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Return the header fields that tell the key in a file: 32 bytes, or their base64.

    Raises:
        ConfigError: The file cannot be read, or holds no such key; what it holds is not shown.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The key of S3ClientConfig(sse_customer_key_file={_shown(path)}) cannot be read: {error.strerror}."
        ) from None  # whose text shows the path
    key = content if len(content) == _LENGTH else _decoded(content.strip())
    if len(key) != _LENGTH:
        raise ConfigError(
            f"S3ClientConfig(sse_customer_key_file={_shown(path)}) must name a file of 32 bytes, or their base64."
        )
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    return {
        f"{_PREFIX}algorithm": "AES256",
        f"{_PREFIX}key": base64.b64encode(key).decode(),
        f"{_PREFIX}key-md5": base64.b64encode(digest).decode(),
    }


def _shown(path: str | os.PathLike[str]) -> str:
    """Return a path for a message; three dots for what may be the key itself."""
    text = os.fspath(path)
    return "..." if len(text) == _LENGTH or len(_decoded(text.encode(errors="replace"))) == _LENGTH else repr(text)


def of_source(fields: Mapping[str, str]) -> Mapping[str, str]:
    """Return the header fields that tell the same key for what is copied."""
    return {name.replace(_PREFIX, _SOURCE_PREFIX): value for name, value in fields.items()}


def check_may_carry_key(origin: Origin, proxy: Proxy | None = None) -> None:
    """Refuse to send a key where others could read it.

    Args:
        origin: Where the bucket answers.
        proxy: That leads there; None if it is reached directly.

    Raises:
        ConfigError: It is plain HTTP, and leaves this machine.
    """
    if origin.scheme != "https" and (proxy is not None or not _is_loopback(origin.host)):
        raise ConfigError(
            f"The key of S3ClientConfig(sse_customer_key_file=...) is not sent to {origin}: over plain HTTP everybody "
            "on the way could read it, and S3 refuses it. Use an https endpoint."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
