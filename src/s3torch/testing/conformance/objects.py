"""Checks of single objects: put, get, head, deletes and copies."""

from __future__ import annotations

import hashlib
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from s3torch._aws.answers import parse_http_date
from s3torch.errors import ObjectNotFoundError
from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import UnsupportedError, equal, raises, same_bytes, that
from s3torch.testing.conformance.site import MiB

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS"]

CHECKS = Checks()


@CHECKS.add(
    "object.put-get",
    "An object that a writer has put is read back byte for byte, of 1 byte and of 100,000.",
    "s3torch cannot be used with this server as it is configured, and the other checks are not made. If the error "
    'names a checksum, set S3ClientConfig(checksums="off").',
)
def _put_get(site: Site) -> None:
    for size in (1, 100_000):
        content = os.urandom(size)
        same_bytes(site.get(site.put(content)), content, f"an object of {size} bytes")


@CHECKS.add(
    "object.large",
    "An object of 3 MiB comes back whole by one request, and 100 times in a row an object of 10 kB does.",
    "Large objects are damaged, on their way up or down: do not use this server.",
)
def _large(site: Site) -> None:
    content = os.urandom(3 * MiB)
    same_bytes(site.get(site.put(content)), content, "an object of 3 MiB")
    key = site.put(content[:10_000])
    for _ in range(100):
        same_bytes(site.get(key), content[:10_000], "an object of 10 kB")


@CHECKS.add(
    "object.missing",
    "A key that is not there is an ObjectNotFoundError, by GET and by HEAD.",
    "A program that looks for its latest checkpoint sees another error than FileNotFoundError.",
)
def _missing(site: Site) -> None:
    key = site.key("nothing")
    asks: dict[str, Callable[[], object]] = {
        "a reader": partial(site.read, key),
        "head_object": partial(site.client.head_object, site.bucket, key),
        "read_range": partial(site.client.read_range, site.bucket, key, 5, 10),
    }
    for what, ask in asks.items():
        raises(ObjectNotFoundError, ask, f"{what} of a missing key")
    for method in ("GET", "HEAD"):
        equal(site.send(method, key).status, 404, f"the status of a {method} of a missing key")


@CHECKS.add(
    "object.head",
    "HEAD tells the size, 0 as well, and has an ETag.",
    "Readers that need the size ask by a GET more, or raise an error.",
)
def _head(site: Site) -> None:
    for size in (0, 1234):
        key = site.put(b"x" * size)
        answer = site.send("HEAD", key)
        equal(answer.status, 200, "the status of a HEAD")
        equal(answer.answered.get("content-length"), str(size), f"the Content-Length of a HEAD of {size} bytes")
        that(answer.answered.get("etag"), "a HEAD has no ETag")
        equal(site.client.head_object(site.bucket, key).size, size, "the size that head_object tells")


@CHECKS.add(
    "object.last-modified",
    "The time of the last change is within a minute of the server's own clock.",
    "The newest of several objects cannot be told by its time.",
)
def _last_modified(site: Site) -> None:
    answered = site.send("HEAD", site.put(b"content")).answered
    modified, now = (parse_http_date(answered.get(name, "")) for name in ("last-modified", "date"))
    that(modified is not None, f"the Last-Modified of a HEAD is {answered.get('last-modified')!r}")
    if modified is not None and now is not None:
        that(abs(now - modified) <= 60, f"Last-Modified is {now - modified:+.0f} s before the server's own Date")


@CHECKS.add(
    "object.empty",
    "An object of 0 bytes is stored, and read as b''.",
    "Empty objects raise errors: leave them out of datasets.",
)
def _empty(site: Site) -> None:
    answer = site.send("GET", site.put(b""))
    equal((answer.status, answer.body), (200, b""), "status and body of a GET of an empty object")


@CHECKS.add(
    "object.replace",
    "A second PUT replaces an object, and each read after it has the new one only.",
    "A checkpoint that was just saved may be loaded in its old form: give each step a key of its own.",
)
def _replace(site: Site) -> None:
    key = site.key()
    for size in (1000, 2000, 500):
        content = os.urandom(size)
        site.put(content, key)
        same_bytes(site.get(key), content, f"the object replaced by one of {size} bytes")
        same_bytes(site.get(key), content, f"the object replaced by one of {size} bytes, read again,")


@CHECKS.add(
    "object.etag",
    "PUT, GET and HEAD tell one and the same ETag, in quotes, each time; other bytes have another one.",
    "Readers pin the version that they read by its ETag: they raise ObjectChangedError, or mix two versions.",
)
def _etag(site: Site) -> None:
    key = site.key()
    first = site.send("PUT", key, body=b"one").answered.get("etag")
    second = site.send("PUT", key, body=b"two").answered.get("etag")
    that(first and second, "the answer to a PUT has no ETag")
    that(first != second, f"other bytes of the same size have the same ETag {first}")
    found = {"PUT": second}
    for name in ("GET", "HEAD", "GET again"):
        found[name] = site.send(name.split()[0], key).answered.get("etag")
    that(len(set(found.values())) == 1, f"the ETags of one object differ: {found}")
    that(re.fullmatch('"[^"]+"', str(second)), f'the ETag {second} is not of the form "..."')


@CHECKS.add(
    "object.etag-md5",
    "The ETag of an object of one PUT is the MD5 of its bytes.",
    "An upload that goes on where it was interrupted (resume=True) sends all parts again.",
    needs=["object.etag"],
)
def _etag_md5(site: Site) -> None:
    etag = site.send("PUT", site.key(), body=b"content").answered.get("etag", "")
    if etag.strip('"') != hashlib.md5(b"content", usedforsecurity=False).hexdigest():
        raise UnsupportedError(f"the ETag of b'content' is {etag}")


@CHECKS.add(
    "object.metadata",
    "Metadata and the content type are kept, and told by HEAD.",
    "What put_object(metadata=..., content_type=...) is told is lost.",
)
def _metadata(site: Site) -> None:
    key = site.key()
    with site.client.put_object(
        site.bucket, key, metadata={"step": "5"}, content_type="application/x-checkpoint"
    ) as writer:
        writer.write(b"content")
    answered = site.send("HEAD", key).answered
    equal(answered.get("x-amz-meta-step"), "5", "the metadata")
    equal(answered.get("content-type"), "application/x-checkpoint", "the content type")


@CHECKS.add(
    "delete.object",
    "A deleted object is gone at once, for GET and for HEAD.",
    "Old checkpoints cannot be cleaned away.",
    needs=["object.missing"],
)
def _delete(site: Site) -> None:
    key = site.put(b"content")
    site.client.delete_object(site.bucket, key)
    for method in ("GET", "HEAD"):
        equal(site.send(method, key).status, 404, f"the status of a {method} of a deleted object")


@CHECKS.add(
    "delete.missing",
    "To delete a key that is not there is no error.",
    "Two processes that clean up at the same time see errors.",
)
def _delete_missing(site: Site) -> None:
    answer = site.send("DELETE", site.key("nothing"))
    that(answer.status in {200, 204}, f"the status of a DELETE of a missing key is {answer.status}")


@CHECKS.add(
    "copy.object",
    "A copy has the bytes of its source, which stays as it is.",
    "copy_object cannot be used: read and write instead.",
)
def _copy(site: Site) -> None:
    content = os.urandom(10_000)
    source, target = site.put(content), site.key()
    site.client.copy_object(site.bucket, source, site.bucket, target)
    for what, key in (("the copy", target), ("the source after it was copied", source)):
        same_bytes(site.get(key), content, what)


@CHECKS.add(
    "copy.missing",
    "To copy what is not there is an ObjectNotFoundError, and makes no object.",
    "A copy of a missing object ends in another error, or in an object that nobody wrote.",
    needs=["object.missing", "copy.object"],
)
def _copy_missing(site: Site) -> None:
    source, target = site.key("nothing"), site.key()
    copy = partial(site.client.copy_object, site.bucket, source, site.bucket, target)
    raises(ObjectNotFoundError, copy, "a copy of a missing object")
    equal(site.send("HEAD", target).status, 404, "the status of a HEAD of the copy")
