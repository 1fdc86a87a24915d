"""Checks of multipart uploads: what large objects and checkpoints are sent by."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from s3torch.testing.conformance.check import Checks
from s3torch.testing.conformance.findings import equal, same_bytes, that
from s3torch.testing.conformance.site import MiB

if TYPE_CHECKING:
    from s3torch.testing.conformance.site import Site

__all__ = ["CHECKS"]

CHECKS = Checks()

_LOOKS = 200  # at what has arrived of 10 MiB, 10 s in all
_PART = 5 * MiB  # the least that S3 permits, and what the clients of the checks are configured with


class _GivenUpError(Exception):
    """Leaves the block of a writer."""


@CHECKS.add(
    "multipart.parts-in-any-order",
    "Parts may be sent in any order, and replaced; the numbers say where each stands.",
    "Parts that are sent side by side are put together wrongly.",
    needs=["object.large"],
)
def _any_order(site: Site) -> None:
    key = site.key()
    parts = [os.urandom(_PART), os.urandom(_PART), b"the end"]
    upload_id = site.begin_upload(key)
    site.send_part(key, upload_id, 2, parts[0])
    etags = {number: site.send_part(key, upload_id, number, parts[number - 1]) for number in (3, 2, 1)}
    done = site.complete_upload(key, upload_id, [etags[1], etags[2], etags[3]])
    equal(done.status, 200, "the status of CompleteMultipartUpload")
    got = site.send("GET", key)
    same_bytes(got.body, b"".join(parts), "an object of three parts, sent in the order 2, 3, 2, 1")


@CHECKS.add(
    "multipart.wrong-etag",
    "An upload is not completed by a part whose ETag is not that of what arrived.",
    "A part that was damaged or replaced on its way becomes part of the object, without an error.",
    needs=["multipart.parts-in-any-order", "object.missing"],
)
def _wrong_etag(site: Site) -> None:
    key = site.key()
    upload_id = site.begin_upload(key)
    site.send_part(key, upload_id, 1, b"content")
    done = site.complete_upload(key, upload_id, ['"00000000000000000000000000000000"'])
    refused = done.status >= 400 or b"<Error>" in done.body  # S3 may answer 200 before it knows
    that(refused, f"a wrong ETag of a part is answered with status {done.status}, and the object is there")
    equal(site.send("HEAD", key).status, 404, "the status of a HEAD after the refusal")


@CHECKS.add(
    "multipart.list",
    "An upload that was begun is listed by its key.",
    "Uploads that were interrupted cannot be found: neither gone on with (resume=True) nor aborted.",
    needs=["multipart.parts-in-any-order"],
)
def _list(site: Site) -> None:
    key = site.key("upload")
    upload_id = site.begin_upload(key)
    listed = site.client.list_multipart_uploads(site.bucket, key)
    equal([(each.key, each.upload_id) for each in listed], [(key, upload_id)], "the uploads listed")


@CHECKS.add(
    "multipart.upload",
    "An object that is sent in parts, side by side, is put together in their order, and appears when all are there.",
    "Objects of more than S3ClientConfig(part_size=...) cannot be written: set it larger than any object.",
    needs=["multipart.parts-in-any-order", "object.missing"],
)
def _upload(site: Site) -> None:
    content = os.urandom(2 * _PART + 12_345)
    key = site.key()
    with site.client.put_object(site.bucket, key) as writer:
        writer.write(content)
        equal(site.send("HEAD", key).status, 404, "the status of a HEAD before the upload is completed")
    same_bytes(site.send("GET", key).body, content, "an object of three parts")


@CHECKS.add(
    "multipart.abort",
    "An upload that is given up leaves no object, and nothing in the list of uploads.",
    "Parts of uploads that were given up stay, and are paid for: set a lifecycle rule, or abort them by hand.",
    needs=["multipart.upload", "multipart.list"],
)
def _abort(site: Site) -> None:
    key = site.key()
    with suppress(_GivenUpError), site.client.put_object(site.bucket, key) as writer:
        writer.write(os.urandom(_PART + 1000))
        raise _GivenUpError
    equal(site.send("HEAD", key).status, 404, "the status of a HEAD of what was given up")
    uploads = [upload.key for upload in site.client.list_multipart_uploads(site.bucket, key) if upload.key == key]
    equal(uploads, [], "the uploads listed")


# Of the content: the last of all may be the note of what the upload was begun with.
_A_PART = re.compile(rb"<PartNumber>1<")


def _wait_for_a_part(site: Site, key: str) -> None:
    """Wait until a part of the one upload of a key has arrived; each request moves on what is in flight."""
    [upload] = site.client.list_multipart_uploads(site.bucket, key)
    for _ in range(_LOOKS):
        parts = site.send("GET", key, query={"uploadId": upload.upload_id})
        equal(parts.status, 200, "the status of ListParts")
        if _A_PART.search(parts.body):
            return
        time.sleep(0.05)
    that(False, "no part that was sent is listed by ListParts")


@CHECKS.add(
    "multipart.resume",
    "An upload that was interrupted goes on where it was: parts that arrived are not sent again.",
    "put_object(resume=True) sends everything again.",
    needs=["multipart.upload", "multipart.list", "object.etag-md5"],
)
def _resume(site: Site) -> None:
    content = os.urandom(_PART + 1000)
    for size in (None, len(content)):
        key = site.key()
        with suppress(_GivenUpError), site.client.put_object(site.bucket, key, resume=True, size=size) as writer:
            writer.write(content)
            _wait_for_a_part(site, key)
            raise _GivenUpError
        sent = site.client.stats.bytes_sent
        with site.client.put_object(site.bucket, key, resume=True, size=size) as writer:
            writer.write(content)
        sent = site.client.stats.bytes_sent - sent
        same_bytes(site.get(key), content, f"the object, its size {'not ' if size is None else ''}told,")
        that(sent < _PART, f"{sent} bytes of {len(content)} were sent again")
