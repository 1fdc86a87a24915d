"""Whether a success is S3's answer to what was asked. Pure.

``must_be_s3`` has the rule; ``Operation`` asks for every success.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from s3torch._aws import etags
from s3torch._aws.answers import Subject, has_marks, not_s3_sentence
from s3torch._transfer.http1 import Head
from s3torch.errors import ProtocolError

__all__ = ["Shows", "describe_root", "must_be_s3", "must_be_s3_document", "not_s3", "root_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shows:
    """What shows that a success answers the operation; see ``must_be_s3``. By default: nothing but an empty body.

    Attributes:
        root: The root element of the document, such as ``ListBucketResult``; empty where S3 sends none.
        ending: What the root element ends with at least, where some servers change it; empty where none does.
        stores: Whether the operation stores bytes: then the head has their ETag.
        is_object: Whether the answer is a stored object, or the head of one.
    """

    root: str = ""
    ending: str | tuple[str, ...] = ""
    stores: bool = False
    is_object: bool = False


_HTML_TYPES = ("text/html", "application/xhtml+xml")
_MD5_ETAG = re.compile(r'"?[0-9a-f]{32}(?:-[0-9]{1,5})?"?')
# What may stand before the root element, in the first bytes of a document.
_ROOT = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?[^>]*>\s*|<!--.*?-->\s*)*<(?:!DOCTYPE\s+)?(?:[\w.-]+:)?([\w.-]+)",
    re.DOTALL | re.IGNORECASE,
)
_MOST_BEFORE_ROOT = 4096


def must_be_s3(head: Head, shows: Shows, etag: str | None = None) -> str:
    """Return why the head of a success cannot be that of S3's answer to the operation; empty if it can.

    A success is not believed for its status. Something else may answer in S3's place: a captive portal or a proxy with
    a page for people, a web server, or S3 itself where it does not find the bucket's name in the host, so that
    ``PUT /key`` makes a bucket, and ``GET /key`` lists one. The rule:

    - What stores bytes has answered with their ETag.
    - An object has an ETag, a Last-Modified or a Content-Range; some servers have no ETags.
    - An object may be a page of HTML, and so may what a portal answers. So HTML is believed if the head shows S3: by a
      field ``x-amz-*`` (or ``x-goog-*``), by an ETag that is an MD5, or by the ETag that was asked for.
    - What S3 answers by a document has the document's root element, and what it answers by nothing has no body: that
      is ``must_be_s3_document``. Neither is a part of something.

    What remains is an answer to DELETE that is a status alone: nothing tells S3's from another one.

    Args:
        head: Of the answer.
        shows: What shows that it is S3's.
        etag: What the object's ETag must be, or None for any.
    """
    fields = head.fields
    found = fields.get("etag")
    if not shows.is_object:
        if head.status == 206 or "content-range" in fields:
            return "with a part of something"
        return "without the ETag of what was to be stored" if shows.stores and not etags.opaque(found) else ""
    if not (fields.get("content-range") or fields.get("last-modified") or etags.opaque(found)):
        return "without ETag, Last-Modified and Content-Range, of which an object has one at least"
    if not _is_html_type(head) or _shows_s3(head) or (etag and found and etags.are_same(etag, found)):
        return ""
    return "by a page of HTML, which nothing shows to be an object"


def must_be_s3_document(head: Head, shows: Shows, body: bytes) -> str:
    """Return why the body of a success, which is no object, cannot be S3's; empty if it can. See ``must_be_s3``."""
    root = root_of(body)
    if root.lower() == "html" or (body.strip() and not shows.root and _is_html_type(head)):
        return "by a page of HTML"
    if shows.root and root != shows.root and not (shows.ending and root.endswith(shows.ending)):
        return f"by {describe_root(body)} where <{shows.root}> is due"
    if not shows.root and not shows.stores and body.strip():
        return "with a body where none is due"
    return ""


def not_s3(subject: Subject, status: int, fields: Mapping[str, str], how: str) -> ProtocolError:
    """Return the error of a success that is not S3's answer.

    Args:
        subject: What was asked.
        status: Of the answer.
        fields: Header fields of the answer, by lower-case name.
        how: It was answered.
    """
    return ProtocolError(
        not_s3_sentence(subject, how),
        bucket=subject.bucket,
        key=subject.key,
        status=status,
        request_id=fields.get("x-amz-request-id"),
    )


def _is_html_type(head: Head) -> bool:
    return "content-type" in head.fields and head.fields["content-type"].lower().startswith(_HTML_TYPES)


def _shows_s3(head: Head) -> bool:
    """Whether a head has what S3 and the servers like it have."""
    return has_marks(head.fields) or _MD5_ETAG.fullmatch(head.fields.get("etag", "")) is not None


def root_of(body: bytes) -> str:
    """Return the name of a document's root element; empty if it is no document.

    White space may stand before it: S3 sends some while it is at work.
    """
    match = _ROOT.match(body.lstrip()[:_MOST_BEFORE_ROOT])
    return "" if match is None else match[1].decode("latin-1")


def describe_root(body: bytes) -> str:
    """Return what a document is, by its root element, for a sentence."""
    root = root_of(body)
    if root.lower() == "html":
        return "a page of HTML"
    return f"<{root[:80]}>" if root else "no XML"
