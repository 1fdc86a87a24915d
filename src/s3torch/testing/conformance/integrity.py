"""Checks of checksums: who notices damaged bytes, on their way up and on their way down."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from typing import TYPE_CHECKING

from s3torch._aws import checksums
from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import UnsupportedError, equal, same_bytes, that
from s3torch.testing.conformance.site import MiB

if TYPE_CHECKING:
    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS"]

CHECKS = Checks()

_ASK = {"x-amz-checksum-mode": "ENABLED"}


def _crc32(content: bytes) -> str:
    return base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()


def _fields(content: bytes) -> dict[str, str]:
    """Return the header fields by which s3torch sends the CRC32 of a body."""
    return checksums.upload_fields(checksums.compute(checksums.CRC32, [memoryview(content)]))


def _told(site: Site, key: str) -> str | None:
    """Return the CRC32 of the whole object that a HEAD tells."""
    return site.send("HEAD", key, fields=_ASK).answered.get("x-amz-checksum-crc32")


@CHECKS.add(
    "checksum.accepted",
    "A PUT with the CRC32 of its body is accepted, and stores the body.",
    'Set S3ClientConfig(checksums="off").',
)
def _accepted(site: Site) -> None:
    content = os.urandom(1000)
    key = site.key()
    answer = site.send("PUT", key, body=content, fields=_fields(content))
    equal(answer.status, 200, "the status of a PUT with x-amz-checksum-crc32")
    same_bytes(site.send("GET", key).body, content, "the object")


@CHECKS.add(
    "checksum.right",
    "A checksum that GET or HEAD tells is that of the bytes; none is as good here.",
    'Each read of a whole object is an IntegrityError: set S3ClientConfig(checksums="off").',
)
def _right(site: Site) -> None:
    content = os.urandom(1000)
    key = site.put(content)
    for method in ("GET", "HEAD"):
        told = site.send(method, key, fields=_ASK).answered.get("x-amz-checksum-crc32")
        that(told in {None, _crc32(content)}, f"{method} tells the CRC32 {told}, and it is {_crc32(content)}")


@CHECKS.add(
    "checksum.verified",
    "A PUT whose body does not have the CRC32 that was sent with it is refused.",
    "Damage on the way to the server is noticed by TLS, or over plain HTTP by the signed SHA-256 where the server "
    "looks at that; else by nobody.",
    needs=["checksum.accepted", "object.missing"],
)
def _verified(site: Site) -> None:
    key = site.key()
    answer = site.send("PUT", key, body=b"damaged", fields=_fields(b"content"))
    if answer.status < 400:
        raise UnsupportedError(f"a PUT with a wrong x-amz-checksum-crc32 is status {answer.status}")
    equal(site.send("HEAD", key).status, 404, "the status of a HEAD after the refusal")


@CHECKS.add(
    "checksum.stored",
    "An object is kept with the CRC32 that it was sent with, and GET and HEAD tell it.",
    'Reads are not compared with a checksum; checksums="strict" is an UnverifiedError.',
    needs=["checksum.accepted", "checksum.right"],
)
def _stored(site: Site) -> None:
    content = os.urandom(1000)
    key = site.key()
    site.send("PUT", key, body=content, fields=_fields(content))
    found = {
        "HEAD": _told(site, key),
        "GET": site.send("GET", key, fields=_ASK).answered.get("x-amz-checksum-crc32"),
    }
    if set(found.values()) == {None}:
        raise UnsupportedError("neither GET nor HEAD tells an x-amz-checksum-crc32")
    equal(found, dict.fromkeys(found, _crc32(content)), "the CRC32 that is told")


@CHECKS.add(
    "checksum.multipart",
    "An object of several parts has the CRC32 of all its bytes, as s3torch asks for.",
    'What was sent in parts is compared by checksums="strict" alone, if the server tells a checksum of its parts.',
    needs=["checksum.stored", "multipart.upload"],
)
def _multipart(site: Site) -> None:
    content = os.urandom(6 * MiB)
    key = site.put(content)
    answered = site.send("HEAD", key, fields=_ASK).answered
    told = answered.get("x-amz-checksum-crc32")
    if told is None or "-" in told or answered.get("x-amz-checksum-type") == "COMPOSITE":
        raise UnsupportedError(f"HEAD tells the CRC32 {told!r} of the type {answered.get('x-amz-checksum-type')!r}")
    equal(told, _crc32(content), "the CRC32 of an object of two parts")


@CHECKS.add(
    "checksum.payload-hash",
    "A PUT whose body does not have the SHA-256 that was signed is refused.",
    "Over plain HTTP whoever is on the way can change what is uploaded; the CRC32 finds accidents only.",
    needs=["object.missing"],
)
def _payload_hash(site: Site) -> None:
    key = site.key()
    answer = site.send("PUT", key, body=b"damaged", payload_sha256=hashlib.sha256(b"content").hexdigest())
    if answer.status < 400:
        raise UnsupportedError(f"a PUT with a wrong x-amz-content-sha256 is status {answer.status}")
    that(site.send("HEAD", key).status == 404, "the object is there although the PUT was refused")
