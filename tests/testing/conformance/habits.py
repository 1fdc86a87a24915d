"""Wrong habits of servers, each with the checks that must not pass, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from s3torch.config import S3ClientConfig
from s3torch.testing.conformance import Outcome
from s3torch.testing.faulty.objects import Answer, operation_of
from s3torch.testing.faulty.wire import Request

from .whole import Habit, WholeS3, has_signed_body, query_of, refusal, with_fields, without

__all__ = ["CASES", "Case"]

FAILED, NOT_SUPPORTED = Outcome.FAILED, Outcome.NOT_SUPPORTED
MiB = 1024 * 1024
_READS = ("GetObject", "HeadObject")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A habit, and how the one check comes out that is for it.

    Args:
        name: In words.
        check: Its name.
        outcome: Of that check.
        habit: Makes the habit, as some remember what was before.
        leaves: Whether something cannot be removed.
        keeps_versions: Whether the bucket does.
        config: Of the client.
    """

    name: str
    check: str
    outcome: Outcome = FAILED
    habit: Callable[[], Habit] = field(repr=False)
    leaves: bool = False
    keeps_versions: bool = True
    config: S3ClientConfig = field(default_factory=S3ClientConfig, repr=False)


CASES: list[Case] = []


def case(
    name: str,
    check: str,
    outcome: Outcome = FAILED,
    *,
    leaves: bool = False,
    keeps_versions: bool = True,
    config: S3ClientConfig | None = None,
):
    """Returns a decorator that makes a case of a habit; one that takes no argument makes the habit anew."""

    def add(habit):
        makes = habit if habit.__code__.co_argcount == 0 else lambda: habit
        CASES.append(
            Case(
                name=name,
                check=check,
                outcome=outcome,
                habit=makes,
                leaves=leaves,
                keeps_versions=keeps_versions,
                config=config or S3ClientConfig(),
            )
        )
        return habit

    return add


def _is(request: Request, *operations: str) -> bool:
    return operation_of(request) in operations


def _lists(request: Request, **query: str) -> bool:
    """Whether this is a listing of objects with these parameters."""
    asked = query_of(request)
    return _is(request, "ListObjectsV2") and "list-type" in asked and query.items() <= asked.items()


def _rewritten(answer: Answer, pattern: str, text: str) -> Answer:
    """Returns an answer with another document."""
    return replace(answer, body=re.sub(pattern.encode(), text.encode(), answer.body))


def _asking(request: Request, pattern: str, text: str) -> Request:
    """Returns a request for another target."""
    return replace(request, target=re.sub(pattern, text, request.target))


def _damaging(name: str, check: str, pattern: str) -> None:
    """Adds a case of a server that damages objects of some keys when they are read by ranges or by readers."""

    @case(name, check)
    def habit(request, s3):
        answer = s3.answer(request)
        if not _is(request, "GetObject") or not re.search(pattern, s3.key_of(request)) or not answer.body:
            return answer
        return replace(answer, body=bytes([answer.body[0] ^ 1]) + answer.body[1:])


def _refusing(name: str, check: str, applies: Callable[[Request, str], object]) -> None:
    """Adds a case of a server that refuses some requests, given request and key."""

    @case(name, check)
    def habit(request, s3):
        return refusal(400, "InvalidRequest") if applies(request, s3.key_of(request)) else s3.answer(request)


# Objects


@case("refuses checksums", "object.put-get")
@case("refuses checksums, and gets none", "checksum.accepted", config=S3ClientConfig(checksums="off"))
def _refuses_checksums(request, s3):
    if _is(request, "PutObject") and "x-amz-checksum-crc32" in request.headers:
        return refusal(400, "InvalidArgument")
    return s3.answer(request)


@case("cuts large objects off, and says nothing", "object.large")
def _cuts(request, s3):
    answer = s3.answer(request)
    return replace(answer, body=answer.body[:MiB]) if _is(request, "GetObject") else answer


@case("closes the connection in large objects", "object.large")
def _truncates(request, s3):
    answer = s3.answer(request)
    if not _is(request, "GetObject") or len(answer.body) < MiB:
        return answer
    length = str(len(answer.body))
    return replace(with_fields(answer, Content_Length=length, Connection="close"), body=answer.body[:MiB])


@case("stores large objects cut off", "object.large")
def _stores_cut(request, s3):
    if not _is(request, "PutObject") or len(request.body) < MiB:
        return s3.answer(request)
    return s3.instead(request, without(replace(request, body=request.body[:MiB]), "x-amz-checksum-crc32"))


@case("answers 403 where there is nothing", "object.missing")
def _hides(request, s3):
    answer = s3.answer(request)
    return refusal(403, "AccessDenied") if answer.status == 404 else answer


@case("HEAD has the length of its own body", "object.head")
def _head_of_nothing(request, s3):
    answer = s3.answer(request)
    return with_fields(answer, Content_Length="0") if request.method == "HEAD" and answer.status == 200 else answer


@case("tells no time", "object.last-modified")
def _timeless(request, s3):
    return with_fields(s3.answer(request), Last_Modified=None)


@case("answers 204 for empty objects", "object.empty")
def _no_content(request, s3):
    answer = s3.answer(request)
    is_empty = _is(request, "GetObject") and answer.status == 200 and not answer.body
    return replace(answer, status=204) if is_empty and "range" not in request.headers else answer


@case("reads an old version once", "object.replace")
def _stale():
    before: dict[str, bytes] = {}

    def habit(request, s3):
        key = s3.key_of(request)
        if _is(request, "PutObject") and key in s3 and "if-none-match" not in request.headers:
            before[key] = s3[key]
        answer = s3.answer(request)
        if _is(request, "GetObject") and answer.status == 200 and key in before:
            return replace(answer, body=before.pop(key))
        return answer

    return habit


@case("PUT tells another ETag", "object.etag")
def _other_etag(request, s3):
    answer = s3.answer(request)
    return with_fields(answer, ETag=f'"{"0" * 32}"') if _is(request, "PutObject") and answer.status == 200 else answer


@case("each answer has an ETag of its own", "object.etag")
def _new_etags():
    count = iter(range(1_000_000))

    def habit(request, s3):
        answer = s3.instead(request, without(request, "if-match"))
        if _is(request, "GetObject", "HeadObject") and "ETag" in answer.fields:
            return with_fields(answer, ETag=f'"{next(count)}"')
        return answer

    return habit


@case("ETags are weak", "object.etag")
def _weak(request, s3):
    answer = s3.answer(request)
    if not _is(request, "PutObject", *_READS) or "ETag" not in answer.fields:
        return answer
    return with_fields(answer, ETag=f"W/{answer.fields['ETag']}")


@case("ETags are no MD5s", "object.etag-md5", NOT_SUPPORTED)
def _no_md5(request, s3):
    def turned(text: str) -> str:
        return re.sub("[0-9a-f]{32}", lambda found: found[0][::-1], text)

    headers = {name: turned(text) if name.startswith("if-") else text for name, text in request.headers.items()}
    body = turned(request.body.decode()).encode() if request.method == "POST" else request.body
    answer = s3.instead(request, replace(request, headers=headers, body=body))
    if "ETag" in answer.fields:
        answer = with_fields(answer, ETag=turned(answer.fields["ETag"]))
    is_document = answer.fields.get("Content-Type") == "application/xml" and not _is(request, "GetObject")
    return replace(answer, body=turned(answer.body.decode()).encode()) if is_document else answer


@case("forgets metadata", "object.metadata")
def _forgets(request, s3):
    answer = s3.answer(request)
    return replace(answer, fields={name: text for name, text in answer.fields.items() if "x-amz-meta-" not in name})


@case("deletes nothing", "delete.object", leaves=True)
def _keeps(request, s3):
    return Answer(status=204) if _is(request, "DeleteObject") and s3.key_of(request) in s3 else s3.answer(request)


@case("answers 404 where there is nothing to delete", "delete.missing")
def _nothing_to_delete(request, s3):
    is_missing = _is(request, "DeleteObject") and s3.key_of(request) not in s3 and not query_of(request)
    return refusal(404, "NoSuchKey") if is_missing else s3.answer(request)


@case("copies are empty", "copy.object")
def _empty_copies(request, s3):
    answer = s3.answer(request)
    if _is(request, "CopyObject") and answer.status == 200:
        s3[s3.key_of(request)] = b""
    return answer


@case("copies what is not there", "copy.missing")
def _copies_nothing(request, s3):
    answer = s3.answer(request)
    if not _is(request, "CopyObject") or answer.status == 200:
        return answer
    return Answer(status=200, body=b'<CopyObjectResult><ETag>"0"</ETag></CopyObjectResult>')


@case("decodes the source of a copy twice", "copy.odd-keys")
def _decodes_twice(request, s3):
    if not _is(request, "CopyObject"):
        return s3.answer(request)
    headers = {**request.headers, "x-amz-copy-source": unquote(request.headers["x-amz-copy-source"])}
    return s3.instead(request, replace(request, headers=headers))


# Multipart uploads


@case("takes each part once", "multipart.parts-in-any-order")
def _once(request, s3):
    query = query_of(request)
    upload = s3.open_uploads().get(query.get("uploadId", ""))
    is_there = _is(request, "UploadPart") and upload is not None and int(query["partNumber"]) in upload.parts
    return refusal(400, "InvalidPart") if is_there else s3.answer(request)


@case("joins parts in the order of their arrival", "multipart.parts-in-any-order")
def _by_arrival():
    arrived: dict[str, list[bytes]] = {}

    def habit(request, s3):
        query = query_of(request)
        if _is(request, "UploadPart"):
            arrived.setdefault(query["uploadId"], []).append(request.body)
        answer = s3.answer(request)
        if _is(request, "CompleteMultipartUpload") and answer.status == 200 and query["uploadId"] in arrived:
            s3[s3.key_of(request)] = b"".join(arrived[query["uploadId"]])
        return answer

    return habit


@case("takes any ETag of a part", "multipart.wrong-etag")
def _any_etag(request, s3):
    answer = s3.answer(request)
    if _is(request, "CompleteMultipartUpload") and answer.status == 400:
        s3.instead(request, replace(request, method="PUT", target=request.path, body=b"content"))
        return Answer(
            status=200, body=b'<CompleteMultipartUploadResult><ETag>"0"</ETag></CompleteMultipartUploadResult>'
        )
    return answer


@case("lists no uploads", "multipart.list")
def _lists_no_uploads(request, s3):
    answer = s3.answer(request)
    return _rewritten(answer, "(?s)<Upload>.*</Upload>", "") if "uploads" in query_of(request) else answer


@case("shows objects before they are complete", "multipart.upload")
def _shows(request, s3):
    begun = [upload.key for upload in s3.open_uploads().values() if upload.checksum_type]
    if request.method == "HEAD" and s3.key_of(request) in begun:
        return Answer(status=200, fields={"ETag": '"0"'})
    return s3.answer(request)


@case("aborts nothing", "multipart.abort", leaves=True)
def _aborts_nothing(request, s3):
    return Answer(status=204) if _is(request, "AbortMultipartUpload") else s3.answer(request)


@case("lists other ETags of parts", "multipart.resume")
def _lists_other_parts(request, s3):
    answer = s3.answer(request)
    is_parts = request.method == "GET" and "uploadId" in query_of(request)
    return _rewritten(answer, "<ETag>[^<]*</ETag>", f"<ETag>{'0' * 32}</ETag>") if is_parts else answer


# Conditions, versions, access


def _ignoring(name: str, check: str, field_name: str, *operations: str, with_range: bool = False) -> None:
    """Adds a case of a server that ignores a header field."""

    @case(name, check)
    def habit(request, s3):
        if not _is(request, *operations) or (with_range and "range" not in request.headers):
            return s3.answer(request)
        return s3.instead(request, without(request, field_name))


_ignoring("ignores If-Match", "condition.get-if-match", "if-match", *_READS)
_ignoring("ignores If-Match of ranges", "range.if-match", "if-match", *_READS, with_range=True)
_ignoring("ignores If-None-Match of reads", "condition.get-if-none-match", "if-none-match", *_READS)
_ignoring("ignores If-None-Match", "condition.put-if-none-match", "if-none-match", "PutObject")
_ignoring("ignores it on completion", "condition.complete-if-none-match", "if-none-match", "CompleteMultipartUpload")


def _not_implementing(name: str, check: str, operation: str) -> None:
    @case(name, check, NOT_SUPPORTED)
    def habit(request, s3):
        is_asked = _is(request, operation) and "if-none-match" in request.headers
        return refusal(501, "NotImplemented") if is_asked else s3.answer(request)


_not_implementing("has no If-None-Match", "condition.put-if-none-match", "PutObject")
_not_implementing("has none on completion", "condition.complete-if-none-match", "CompleteMultipartUpload")


@case("ignores version ids", "version.read")
def _newest(request, s3):
    is_read = request.method in {"GET", "HEAD"} and "versionId" in query_of(request)
    return s3.instead(request, _asking(request, r"\?.*", "")) if is_read else s3.answer(request)


@case("keeps no versions", "version.read", NOT_SUPPORTED, keeps_versions=False)
def _right(request, s3):
    return s3.answer(request)


@case("checks no signatures", "access.signature", NOT_SUPPORTED)
def _trusts(request, s3):
    return s3.answer(without(request, "authorization"))


@case("its clock is an hour ahead", "access.clock")
def _ahead(request, s3):
    from email.utils import formatdate, parsedate_to_datetime

    answer = s3.answer(request)
    for name in ("Date", "Last-Modified"):
        if answer.fields.get(name):
            later = formatdate(parsedate_to_datetime(answer.fields[name]).timestamp() + 3600, usegmt=True)
            answer = replace(answer, fields={**answer.fields, name: later})
    return answer


@case("tells no Date", "access.clock", NOT_SUPPORTED)
def _dateless(request, s3):
    return with_fields(s3.answer(request), Date=None)


# Checksums


def _telling(request: Request, s3: WholeS3, told: Callable[[str], str | None]) -> Answer:
    """Returns the right answer, but for what it tells of the CRC32."""
    answer = s3.answer(request)
    name = "x-amz-checksum-crc32"
    if name not in answer.fields or not _is(request, *_READS):
        return answer
    return replace(answer, fields={**answer.fields, name: told(answer.fields[name])})


@case("tells wrong checksums", "checksum.right")
def _wrong_checksums(request, s3):
    return _telling(request, s3, lambda _: "AAAAAA==")


@case("tells no checksums", "checksum.stored", NOT_SUPPORTED)
def _no_checksums(request, s3):
    return _telling(request, s3, lambda _: None)


@case("tells no checksums of objects in parts", "checksum.multipart", NOT_SUPPORTED)
def _none_of_parts(request, s3):
    answer = s3.answer(request)
    is_of_parts = "-" in (answer.fields.get("ETag") or "")
    return _telling(request, s3, lambda _: None) if is_of_parts else answer


@case("tells no checksum to a HEAD with a condition", "reader.strict", NOT_SUPPORTED)
def _none_if_pinned(request, s3):
    is_pinned = request.method == "HEAD" and "if-match" in request.headers
    return _telling(request, s3, lambda _: None) if is_pinned else s3.answer(request)


@case("verifies no checksums", "checksum.verified", NOT_SUPPORTED)
def _believes(request, s3):
    answer = s3.answer(request)
    is_damaged = _is(request, "PutObject") and b"<Code>BadDigest<" in answer.body
    return s3.instead(request, without(request, "x-amz-checksum-crc32")) if is_damaged else answer


@case("does not look at the signed hash", "checksum.payload-hash", NOT_SUPPORTED)
def _believes_hash(request, s3):
    return s3.answer(request) if has_signed_body(request) else s3.carry_out(request)


# Ranges


def _range_of(request: Request, s3: WholeS3) -> tuple[str, str, int] | None:
    """Returns first and last byte as they were asked for, and the object's size."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    content = s3.get(s3.key_of(request))
    return (asked[1], asked[2], len(content)) if asked and content is not None else None


def _with_ranges(name: str, check: str, applies: Callable[[str, str, int], object], status: int = 200) -> None:
    """Adds a case of a server that answers some ranges by the whole object, or by an error."""

    @case(name, check)
    def habit(request, s3):
        asked = _range_of(request, s3)
        if asked is None or not applies(*asked):
            return s3.answer(request)
        return s3.instead(request, without(request, "range")) if status == 200 else refusal(status, "InvalidRange")


_with_ranges("ignores ranges", "range.bytes", lambda *_: True)
_with_ranges("ignores open ranges", "range.open-end", lambda first, last, _: first and not last)
_with_ranges("ignores suffixes", "range.suffix", lambda first, *_: not first)
_with_ranges("answers nothing by all", "range.unsatisfiable", lambda first, _, size: first and 0 < size <= int(first))
_with_ranges("refuses ranges of nothing", "range.empty-object", lambda _first, _last, size: size == 0, 400)
_with_ranges(
    "refuses ranges beyond the end",
    "range.past-end",
    lambda first, last, size: first and last and int(first) < size <= int(last),
    416,
)


@case("answers a range by the first bytes", "range.bytes")
def _first_bytes(request, s3):
    answer = s3.answer(request)
    if answer.status != 206:
        return answer
    return replace(answer, body=s3[s3.key_of(request)][: len(answer.body)])


_damaging("damages what is read by vectors", "range.vectors", "/vectors$")
_damaging("damages what is read in parts", "range.parallel", "/parallel$")
_damaging("damages sequential reads", "reader.sequential", "/sequential$")
_damaging("damages range-based reads", "reader.range-based", "/range_based$")
_damaging("damages adaptive reads", "reader.adaptive", "/adaptive$")
_damaging("mixes up concurrent requests", "connection.parallel", "/many/")


@case("closes each connection", "connection.keep-alive", NOT_SUPPORTED)
def _closes(request, s3):
    return with_fields(s3.answer(request), Connection="close")


# Listings and keys


@case("lists all keys for any prefix", "list.prefix")
def _any_prefix(request, s3):
    return s3.instead(request, _asking(request, r"prefix=[^&]*", "prefix=")) if _lists(request) else s3.answer(request)


@case("pages are endless", "list.pages")
def _endless(request, s3):
    if not _lists(request, **{"max-keys": "10"}):
        return s3.answer(request)
    return s3.instead(request, _asking(request, r"continuation-token=[^&]*&", ""))


@case("pages are of any length", "list.pages")
def _any_length(request, s3):
    return s3.instead(request, _asking(request, "max-keys=10&", "")) if _lists(request) else s3.answer(request)


@case("lists old sizes", "list.fresh")
def _old_sizes(request, s3):
    answer = s3.answer(request)
    is_fresh = _lists(request) and query_of(request).get("prefix", "").endswith("/fresh")
    return _rewritten(answer, "<Size>.*?</Size>", "<Size>1</Size>") if is_fresh else answer


@case("lists ETags without quotes", "list.etag")
def _unquoted(request, s3):
    answer = s3.answer(request)
    return _rewritten(answer, '"(?=[0-9a-f]{32})|(?<=[0-9a-f]{32})"|&quot;', "") if _lists(request) else answer


@case("lists in the wrong order", "list.order")
def _backwards(request, s3):
    answer = s3.answer(request)
    if not _lists(request):
        return answer
    entries = re.findall(rb"<Contents>.*?</Contents>", answer.body)
    rest = re.sub(rb"<Contents>.*?</Contents>", b"", answer.body)
    return replace(answer, body=rest.replace(b"</ListBucketResult>", b"".join(entries[::-1]) + b"</ListBucketResult>"))


@case("ignores start-after", "list.start-after")
def _from_the_start(request, s3):
    return s3.instead(request, _asking(request, r"&start-after=[^&]*", "")) if _lists(request) else s3.answer(request)


@case("ignores delimiters", "list.delimiter")
def _no_groups(request, s3):
    return s3.instead(request, _asking(request, r"delimiter=[^&]*&", "")) if _lists(request) else s3.answer(request)


@case("ignores other delimiters", "list.other-delimiter")
def _folders_only(request, s3):
    is_other = _lists(request) and query_of(request).get("delimiter", "/") != "/"
    return s3.instead(request, _asking(request, r"delimiter=[^&]*&", "")) if is_other else s3.answer(request)


@case("collapses slashes", "keys.slashes")
def _collapses(request, s3):
    return s3.instead(request, _asking(request, "(?<=[^/])/{2,}", "/")) if "//" in request.path else s3.answer(request)


@case("turns backslashes into slashes", "keys.backslash")
def _turns(request, s3):
    return s3.instead(request, _asking(request, "%5C(?=[^?]*$)", "/")) if "%5C" in request.path else s3.answer(request)


_refusing("refuses semicolons", "keys.characters", lambda _, key: ";" in key)
_refusing("refuses dots", "keys.dots", lambda _, key: {".", ".."} & set(key.split("/")))
_refusing("refuses control characters", "keys.control", lambda _, key: re.search("[\x00-\x1f\x7f]", key))
_refusing("refuses long keys", "keys.long", lambda _, key: len(key.encode()) > 1000)


@case("has folders", "keys.prefix-of-another")
def _folders(request, s3):
    key = s3.key_of(request)
    is_below = _is(request, "PutObject") and any(key.startswith(f"{other}/") for other in s3)
    return refusal(409, "ParentIsObject") if is_below else s3.answer(request)


# Training


_damaging("damages samples of map-style datasets", "dataset.map", "/map/")
_damaging("damages samples of iterable datasets", "dataset.iterable", "/iterable/")
_damaging("damages samples of workers", "dataset.workers", "/workers/")
_damaging("damages samples ahead", "dataset.look-ahead", "/look-ahead/")
_damaging("damages checkpoints", "checkpoint.torch", r"\.pt$")
_damaging("damages distributed checkpoints", "checkpoint.dcp", r"\.metadata$")
_damaging("damages tensors", "checkpoint.safetensors", r"\.safetensors$")
