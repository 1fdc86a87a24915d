"""Checks of conditional requests, of versions, and of who may send them."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from s3torch._aws.answers import parse_http_date
from s3torch.errors import ObjectExistsError
from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import UnavailableError, UnsupportedError, equal, raises, same_bytes, that

if TYPE_CHECKING:
    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS"]

CHECKS = Checks()

_OTHER_ETAG = '"00000000000000000000000000000000"'


@CHECKS.add(
    "condition.get-if-match",
    "A GET with If-Match gives the object if the ETag is its own, and status 412 if it is another.",
    "An object that is replaced while it is read may come as a mixture of both versions.",
    needs=["object.etag"],
)
def _get_if_match(site: Site) -> None:
    key = site.put(b"content")
    etag = site.send("HEAD", key).answered.get("etag", "")
    right = site.send("GET", key, fields={"if-match": etag})
    equal((right.status, right.body), (200, b"content"), "status and body of a GET with the right If-Match")
    equal(site.send("GET", key, fields={"if-match": _OTHER_ETAG}).status, 412, "the status of a GET with another one")


@CHECKS.add(
    "condition.get-if-none-match",
    "A GET or HEAD with If-None-Match is status 304 if the ETag is the object's own, and the object if it is not.",
    "s3torch sends no such request; caches in front of the bucket do.",
    needs=["object.etag"],
)
def _get_if_none_match(site: Site) -> None:
    key = site.put(b"content")
    etag = site.send("HEAD", key).answered.get("etag", "")
    for method in ("GET", "HEAD"):
        same = site.send(method, key, fields={"if-none-match": etag})
        equal(same.status, 304, f"the status of a {method} with If-None-Match of its own ETag")
    other = site.send("GET", key, fields={"if-none-match": _OTHER_ETAG})
    equal((other.status, other.body), (200, b"content"), "status and body of a GET with If-None-Match of another ETag")


@CHECKS.add(
    "condition.put-if-none-match",
    "A PUT with `If-None-Match: *` stores a new object, and is refused where there is one.",
    "put_object(if_none_match=True) may overwrite an object that another process has just written: use keys that "
    "no two processes share.",
)
def _put_if_none_match(site: Site) -> None:
    key = site.key()
    star = {"if-none-match": "*"}
    _expect_stored(site.send("PUT", key, body=b"first", fields=star).status)
    refused = site.send("PUT", key, body=b"second", fields=star).status
    kept = site.send("GET", key).body
    that(refused == 412, f"a PUT with If-None-Match: * over an object is status {refused}, and it holds {kept!r} now")
    same_bytes(kept, b"first", "the object after a PUT with If-None-Match: * was refused")
    raises(ObjectExistsError, partial(_put_if_absent, site, key), "put_object(if_none_match=True) over an object")


def _put_if_absent(site: Site, key: str) -> None:
    with site.client.put_object(site.bucket, key, if_none_match=True) as writer:
        writer.write(b"third")


@CHECKS.add(
    "condition.complete-if-none-match",
    "A multipart upload that is completed with `If-None-Match: *` is refused where there is an object.",
    "put_object(if_none_match=True) of a large object may overwrite one that another process has just written.",
    needs=["condition.put-if-none-match", "multipart.upload"],
)
def _complete_if_none_match(site: Site) -> None:
    key = site.put(b"first")
    upload_id = site.begin_upload(key)
    etag = site.send_part(key, upload_id, 1, b"second")
    done = site.complete_upload(key, upload_id, [etag], {"if-none-match": "*"})
    if done.status == 501:
        raise UnsupportedError("CompleteMultipartUpload with If-None-Match: * is status 501")
    is_refused = done.status in {409, 412} or b"<Code>PreconditionFailed<" in done.body
    kept = site.send("GET", key).body
    that(is_refused and kept == b"first", f"it is answered with status {done.status}, and the object is {kept!r} now")


def _expect_stored(status: int) -> None:
    if status == 501:
        raise UnsupportedError("a PUT with If-None-Match: * is status 501")
    equal(status, 200, "the status of a PUT with If-None-Match: * of a new key")


@CHECKS.add(
    "version.read",
    "A version that was replaced or deleted is read by its id, and the newest without one.",
    "get_object(version_id=...) cannot be used; a bucket without versions keeps the last object only.",
    needs=["object.head", "delete.object"],
)
def _version(site: Site) -> None:
    key = site.key()
    ids = [site.send("PUT", key, body=content).answered.get("x-amz-version-id") for content in (b"one", b"three")]
    first, second = ids
    if first is None or second is None or "null" in ids:
        raise UnsupportedError("the answer to a PUT has no x-amz-version-id: the bucket keeps no versions")
    site.client.delete_object(site.bucket, key)
    equal(site.send("GET", key).status, 404, "the status of a GET after the object was deleted")
    for version_id, content in ((first, b"one"), (second, b"three")):
        version = site.send("GET", key, query={"versionId": version_id})
        equal((version.status, version.body), (200, content), f"status and body of a GET of the version {version_id}")
        known = site.client.head_object(site.bucket, key, version_id=version_id)
        equal((known.size, known.version_id), (len(content), version_id), "size and id told by HEAD of a version")


@CHECKS.add(
    "access.signature",
    "A request whose signature is wrong is refused.",
    "Whoever reaches the server reads and overwrites everything: keep it off networks that others share.",
)
def _signature(site: Site) -> None:
    if site.config.unsigned:
        raise UnavailableError("requests are not signed: the configuration says unsigned=True")
    key = site.put(b"content")
    answer = site.send("GET", key, is_forged=True)
    if answer.status < 400:
        raise UnsupportedError(f"a GET with a wrong signature is status {answer.status}")
    that(answer.status in {400, 401, 403}, f"a GET with a wrong signature is status {answer.status}")


@CHECKS.add(
    "access.clock",
    "The server's clock is within 5 minutes of this machine's.",
    "Signed requests are refused when the difference passes 15 minutes; set both clocks (NTP).",
)
def _clock(site: Site) -> None:
    date = site.send("HEAD", site.put(b"content")).answered.get("date", "")
    theirs = parse_http_date(date)
    if theirs is None:
        raise UnsupportedError(f"the answer's Date is {date!r}: a clock that is wrong cannot be corrected by it")
    that(abs(theirs - time.time()) < 300, f"the server's clock is {theirs - time.time():+.0f} s off")
