"""One bucket in memory, and how S3 answers requests about it.

Known are GetObject and HeadObject with Range, part number and If-Match, GetObjectAttributes, PutObject and multipart
uploads with If-None-Match and If-Match, CopyObject, UploadPartCopy, DeleteObject with If-Match, ListObjectsV2,
ListMultipartUploads and ListParts.
Signatures are not looked at; checksums of uploads are (CRC32, SHA1 and SHA256). As S3 gives each object a CRC64NVME
where an upload brings no checksum, this one gives it a CRC32. Source: https://docs.aws.amazon.com/AmazonS3/latest/API/.

It is one file of over 450 lines: one operation is some ten of them, and all are about the same few tables.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import formatdate
from itertools import accumulate
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from s3torch.testing.faulty.wire import Request

__all__ = [
    "OPERATIONS",
    "Answer",
    "Objects",
    "Upload",
    "checksum_fields",
    "document_answer",
    "error_answer",
    "operation_of",
    "page_size_of",
    "parse_range",
    "query_of",
    "s3_error",
]

OPERATIONS = frozenset(
    {
        "AbortMultipartUpload",
        "CompleteMultipartUpload",
        "CopyObject",
        "CreateMultipartUpload",
        "DeleteObject",
        "GetObject",
        "GetObjectAttributes",
        "HeadObject",
        "ListMultipartUploads",
        "ListObjectsV2",
        "ListParts",
        "PutObject",
        "UploadPart",
        "UploadPartCopy",
    }
)
# When everything was stored that a bucket without a clock has.
_ONE_TIME = datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()
_MODIFIED_IN_XML = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_MOST_KEYS = 1000  # of one page
_OF_PAGE = {"part-number-marker": "0", "max-parts": "1000"}
_CHECKSUMS = {
    "crc32": lambda content: zlib.crc32(content).to_bytes(4, "big"),
    "sha1": lambda content: hashlib.sha1(content, usedforsecurity=False).digest(),
    "sha256": lambda content: hashlib.sha256(content).digest(),
    "sha512": lambda content: hashlib.sha512(content).digest(),
    "md5": lambda content: hashlib.md5(content, usedforsecurity=False).digest(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is to be sent to a request.

    Args:
        status: The HTTP status.
        fields: Header fields; `Content-Length` follows from the body where it is not given.
        body: To HEAD it is not sent.
    """

    status: int
    fields: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""


def s3_error(code: str, message: str = "") -> bytes:
    """Returns the XML body of an S3 error response, as `SlowDown`.

    https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    """
    return (
        f"{_XML}<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        "<RequestId>REQUEST</RequestId><HostId>HOST</HostId></Error>"
    ).encode()


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """Returns the half-open range that a Range field asks for, empty if unsatisfiable, or None if it asks for none."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", value)
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    start = int(match[1])
    if not match[2]:
        return start, size
    last = int(match[2])
    return None if last < start else (start, min(last + 1, size))


def operation_of(request: Request) -> str:
    """Returns the S3 API's name of what is asked for, or the method if S3 knows nothing like it."""
    query = query_of(request)
    is_of_object = "/" in request.path.lstrip("/").rstrip("/")
    if request.method == "GET" and "uploads" in query:
        return "ListMultipartUploads"
    if request.method == "GET" and "uploadId" in query:
        return "ListParts"
    if request.method == "GET" and "attributes" in query:
        return "GetObjectAttributes"
    if request.method == "GET":
        return "GetObject" if is_of_object else "ListObjectsV2"
    if request.method == "PUT" and "x-amz-copy-source" in request.headers:
        return "UploadPartCopy" if "partNumber" in query else "CopyObject"
    names = {
        "HEAD": "HeadObject",
        "PUT": "UploadPart" if "partNumber" in query else "PutObject",
        "POST": "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload",
        "DELETE": "AbortMultipartUpload" if "uploadId" in query else "DeleteObject",
    }
    return names.get(request.method, request.method)


_OF_OBJECT = ("x-amz-checksum-type", "FULL_OBJECT")


def checksum_fields(content: bytes, algorithm: str = "crc32") -> dict[str, str]:
    """Returns the header fields of a checksum of a whole object."""
    value = base64.b64encode(_CHECKSUMS[algorithm](content)).decode()
    return dict([(f"x-amz-checksum-{algorithm}", value), _OF_OBJECT])


@dataclass(frozen=True, slots=True)
class _Layout:
    """How an object was uploaded in parts.

    Args:
        ends: Where each part ends, in order.
        values: The checksum of each, of all its bytes; none if they have none.
        algorithm: Of these.
    """

    ends: Sequence[int]
    values: Sequence[bytes] = ()
    algorithm: str = "crc32"

    def extent(self, number: int) -> tuple[int, int]:
        """Returns where a part lies."""
        return (self.ends[number - 2] if number > 1 else 0), self.ends[number - 1]

    def fields(self, number: int) -> dict[str, str]:
        """Returns the header fields of a part's checksum."""
        if not self.values:
            return {}
        name = f"x-amz-checksum-{self.algorithm}"
        return {name: base64.b64encode(self.values[number - 1]).decode(), "x-amz-checksum-type": "COMPOSITE"}


@dataclass(slots=True)
class Upload:
    """A multipart upload.

    Args:
        key: Of the object.
        parts: By number.
        checksum_type: That it was begun with; empty if with none.
        began: When, in seconds since the epoch.
    """

    key: str
    parts: dict[int, bytes] = field(default_factory=dict)
    checksum_type: str = ""
    began: float = 0.0


class Objects(MutableMapping[str, bytes]):
    """The objects of one bucket by key: a mapping for the test, and an S3 for the client. May be shared by threads.

    Args:
        bucket: Its name; any other does not exist.
        contents: What is in it at first.

    Attributes:
        clock: Tells when something is stored, in seconds since the epoch. None: all objects are of one time, and
            uploads were begun in the first seconds of the epoch, in order.
    """

    def __init__(self, bucket: str, contents: Mapping[str, bytes] | None = None) -> None:
        self.bucket = bucket
        self.clock: Callable[[], float] | None = None
        self._times: dict[str, float] = {}
        self._stored: dict[str, tuple[bytes, str]] = {}  # content and ETag
        self._checksums: dict[str, dict[str, str]] = {}  # header fields; of those that an upload brought
        self._layouts: dict[str, _Layout] = {}  # of objects that were uploaded in parts
        self._uploads: dict[str, Upload] = {}
        self._uploads_begun = 0
        self._lock = self._new_lock()
        self.update(contents or {})

    def __repr__(self) -> str:
        return f"<Objects of {self.bucket!r}: {len(self._stored)} objects, {len(self._uploads)} uploads>"

    def __getstate__(self) -> dict[str, object]:
        with self._lock:
            return {name: copy(value) for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = self._new_lock()

    def __getitem__(self, key: str) -> bytes:
        return self._stored[key][0]

    def __setitem__(self, key: str, content: bytes) -> None:
        content = bytes(content)
        with self._lock:
            self._stored[key] = content, self._etag_of([content])
            self._checksums[key] = checksum_fields(content)
            self._layouts.pop(key, None)
            self._note_time(key)

    def __delitem__(self, key: str) -> None:
        with self._lock:
            del self._stored[key]
            del self._checksums[key]
            self._layouts.pop(key, None)
            self._times.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._stored))

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def uploads(self) -> list[str]:
        """The ids of multipart uploads that were neither completed nor aborted."""
        return list(self._uploads)

    def open_uploads(self) -> dict[str, Upload]:
        """Returns copies of the uploads that were neither completed nor aborted, by id, as they were begun."""
        with self._lock:
            return {name: replace(upload, parts=dict(upload.parts)) for name, upload in self._uploads.items()}

    def checksums_of(self, key: str) -> dict[str, str]:
        """Returns the header fields of the checksum that an object is stored with; a test may change them."""
        return self._checksums[key]

    def store_in_parts(
        self,
        key: str,
        parts: Sequence[bytes],
        algorithm: str = "crc32",
        hashed: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Stores an object as a multipart upload does whose checksum is of the type COMPOSITE.

        Args:
            key: Of the object.
            parts: Their bytes.
            algorithm: Of the checksums, in lower-case letters.
            hashed: Computes one; None for those that are known here.
        """
        hashed = hashed or _CHECKSUMS[algorithm]
        values = [hashed(part) for part in parts]
        composite = base64.b64encode(hashed(b"".join(values))).decode()
        with self._lock:
            self._stored[key] = b"".join(parts), self._etag_of(parts, is_upload=True)
            self._layouts[key] = _Layout(list(accumulate(map(len, parts))), values, algorithm)
            self._checksums[key] = {
                f"x-amz-checksum-{algorithm}": f"{composite}-{len(parts)}",
                "x-amz-checksum-type": "COMPOSITE",
            }

    def damage(self, key: str, position: int) -> None:
        """Flips a bit of an object where it is stored: ETag and checksums stay."""
        with self._lock:
            content, etag = self._stored[key]
            flipped = bytes([content[position] ^ 1])
            self._stored[key] = content[:position] + flipped + content[position + 1 :], etag

    def key_of(self, request: Request) -> str:
        """Returns the key that a request is about; empty if it is about the bucket."""
        return unquote(request.path).removeprefix(f"/{self.bucket}").removeprefix("/")

    def answer(self, request: Request) -> Answer:
        """Does what a request asks for, and returns what S3 answers."""
        if unquote(request.path).split("/")[1] != self.bucket:
            return error_answer(404, "NoSuchBucket")
        key, query = self.key_of(request), query_of(request)
        operation = operation_of(request)
        with self._lock:
            if operation in {"PutObject", "UploadPart"} and not _is_intact(request):
                return error_answer(400, "BadDigest")
            if operation in {"PutObject", "CompleteMultipartUpload", "DeleteObject"}:
                refusal = self._unfulfilled(request, key)
                if refusal is not None:
                    return refusal
            if operation == "ListObjectsV2":
                return self._page(query)
            if operation == "ListMultipartUploads":
                return self._uploads_page(query)
            if operation in {"GetObject", "HeadObject"}:
                return self._read(request, key, query.get("partNumber", ""))
            if operation == "GetObjectAttributes":
                return self._attributes(request, key)
            if operation == "PutObject":
                self[key] = request.body
                for algorithm in _CHECKSUMS:
                    if f"x-amz-checksum-{algorithm}" in request.headers:
                        self._checksums[key] = checksum_fields(request.body, algorithm)
                return Answer(status=200, fields={"ETag": self._stored[key][1]})
            if operation == "DeleteObject":
                self.pop(key, None)
                return Answer(status=204)
            if operation == "CopyObject":
                return self._copy(request, key)
            if operation == "CreateMultipartUpload":
                return self._begin(key, request.headers.get("x-amz-checksum-type", ""))
            return self._go_on(operation, request, key, query)

    def _is_refused(self, request: Request, key: str) -> bool:
        return request.headers.get("if-none-match") == "*" and key in self._stored

    def _unfulfilled(self, request: Request, key: str) -> Answer | None:
        """Returns the answer to a change whose condition is not fulfilled; None if it is, or there is none."""
        if self._is_refused(request, key):
            return error_answer(412, "PreconditionFailed")
        wanted = request.headers.get("if-match")
        if wanted is None:
            return None
        if key not in self._stored:
            return error_answer(404, "NoSuchKey")
        return None if wanted in {self._stored[key][1], "*"} else error_answer(412, "PreconditionFailed")

    def _note_time(self, key: str) -> None:
        if self.clock is not None:
            self._times[key] = self.clock()

    def modified_at(self, key: str) -> float:
        """Returns when an object was stored, in seconds since the epoch."""
        return self._times.get(key, _ONE_TIME)

    def _etag_of(self, parts: Sequence[bytes], *, is_upload: bool = False) -> str:
        """Returns the ETag of an object of these parts: an MD5, or one of the parts' MD5s if it is of an upload."""
        digests = [hashlib.md5(part, usedforsecurity=False) for part in parts]
        if not is_upload:
            return f'"{digests[0].hexdigest()}"'
        joined = b"".join(digest.digest() for digest in digests)
        return f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"'

    def _new_lock(self) -> AbstractContextManager[object]:
        """Returns what a thread holds while it is at work here."""
        return threading.RLock()

    def _attributes(self, request: Request, key: str) -> Answer:
        if key not in self._stored:
            return error_answer(404, "NoSuchKey")
        content, etag = self._stored[key]
        told = self._checksums[key].items()
        fields = {name.rpartition("-")[2].upper(): value.partition("-")[0] for name, value in told}
        kind = self._checksums[key].get("x-amz-checksum-type")
        checksum = "".join(
            f"<Checksum{name}>{value}</Checksum{name}>" for name, value in fields.items() if name != "TYPE"
        )
        checksum += f"<ChecksumType>{kind}</ChecksumType>" if kind else ""
        parts, layout = "", self._layouts.get(key)
        if layout is not None:
            after, most = (int(request.headers.get(f"x-amz-{name}", default)) for name, default in _OF_PAGE.items())
            last = min(after + min(most, _MOST_KEYS), len(layout.ends))
            parts = (
                f"<ObjectParts><IsTruncated>{str(last < len(layout.ends)).lower()}</IsTruncated>"
                f"<NextPartNumberMarker>{last}</NextPartNumberMarker><PartsCount>{len(layout.ends)}</PartsCount>"
                f"{''.join(self._part_element(layout, number) for number in range(after + 1, last + 1))}</ObjectParts>"
            )
        answer = document_answer(
            f"<GetObjectAttributesResponse><ETag>{escape(etag.strip(chr(34)))}</ETag><Checksum>{checksum}</Checksum>"
            f"{parts}<ObjectSize>{len(content)}</ObjectSize></GetObjectAttributesResponse>"
        )
        modified = formatdate(int(self.modified_at(key)), usegmt=True)
        return replace(answer, fields={**answer.fields, "Last-Modified": modified})

    def _part_element(self, layout: _Layout, number: int) -> str:
        start, stop = layout.extent(number)
        name = f"Checksum{layout.algorithm.upper()}"
        value = layout.fields(number).get(f"x-amz-checksum-{layout.algorithm}")
        checksum = f"<{name}>{value}</{name}>" if value else ""
        return f"<Part><PartNumber>{number}</PartNumber><Size>{stop - start}</Size>{checksum}</Part>"

    def _read_part(self, request: Request, key: str, number: int, fields: dict[str, str]) -> Answer:
        content, _ = self._stored[key]
        layout = self._layouts.get(key, _Layout([len(content)]))
        if not 1 <= number <= len(layout.ends):
            return error_answer(416, "InvalidPartNumber")
        start, stop = layout.extent(number)
        fields |= {
            "x-amz-mp-parts-count": str(len(layout.ends)),
            "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}",
        }
        if "x-amz-checksum-mode" in request.headers:
            fields |= layout.fields(number)
        return Answer(status=206, fields=fields, body=content[start:stop])

    def _read(self, request: Request, key: str, part_number: str) -> Answer:
        if key not in self._stored:
            return error_answer(404, "NoSuchKey")
        content, etag = self._stored[key]
        size = len(content)
        if request.headers.get("if-match", etag) not in {etag, "*"}:
            return error_answer(412, "PreconditionFailed")
        fields = {"ETag": etag, "Accept-Ranges": "bytes", "x-amz-request-id": "REQUEST"}
        fields["Last-Modified"] = formatdate(int(self.modified_at(key)), usegmt=True)
        if part_number:
            return self._read_part(request, key, int(part_number), fields)
        checksums = self._checksums[key] if "x-amz-checksum-mode" in request.headers else {}
        extent = parse_range(request.headers.get("range", ""), size)
        if extent is None:
            return Answer(status=200, fields={**fields, **checksums}, body=content)
        start, stop = extent
        if start >= stop:
            return error_answer(416, "InvalidRange", {"Content-Range": f"bytes */{size}"})
        fields["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if stop - start == size:
            fields.update({name: value.partition("-")[0] for name, value in checksums.items()})  # as S3 does
        return Answer(status=206, fields=fields, body=content[start:stop])

    def _source_of(self, request: Request) -> str | None:
        """Returns the key that a copy is of; None if there is no such object."""
        named = request.headers["x-amz-copy-source"].partition("?versionId=")[0]  # there is one version of each
        bucket, _, source = unquote(named).lstrip("/").partition("/")
        return source if bucket == self.bucket and source in self._stored else None

    def _copy(self, request: Request, key: str) -> Answer:
        source = self._source_of(request)
        if source is None:
            return error_answer(404, "NoSuchKey")
        if request.headers.get("x-amz-copy-source-if-match", "*") not in {"*", self._stored[source][1]}:
            return error_answer(412, "PreconditionFailed")
        self[key] = self[source]
        etag = escape(self._stored[key][1])
        return document_answer(f"<CopyObjectResult><ETag>{etag}</ETag>{_MODIFIED_IN_XML}</CopyObjectResult>")

    def _begin(self, key: str, checksum_type: str) -> Answer:
        self._uploads_begun += 1
        upload_id = f"upload-{self._uploads_begun}"
        began = self._uploads_begun - 1.0 if self.clock is None else self.clock()
        self._uploads[upload_id] = Upload(key, checksum_type=checksum_type, began=began)
        answer = document_answer(
            f"<InitiateMultipartUploadResult><Bucket>{self.bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        )
        if not checksum_type:
            return answer
        told = {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": checksum_type}
        return replace(answer, fields={**answer.fields, **told})

    def _go_on(self, operation: str, request: Request, key: str, query: Mapping[str, str]) -> Answer:
        upload = self._uploads.get(query.get("uploadId", ""))
        if operation not in OPERATIONS:
            return error_answer(405, "MethodNotAllowed")
        if upload is None:
            return error_answer(404, "NoSuchUpload")
        if operation == "UploadPart":
            upload.parts[int(query["partNumber"])] = request.body
            return Answer(status=200, fields={"ETag": self._etag_of([request.body])})
        if operation == "UploadPartCopy":
            return self._copy_part(request, upload, int(query["partNumber"]))
        if operation == "ListParts":
            return self._parts_page(upload, query)
        if operation == "AbortMultipartUpload":
            del self._uploads[query["uploadId"]]
            return Answer(status=204)
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", request.body)]
        if not numbers or not set(numbers) <= upload.parts.keys():
            return error_answer(400, "InvalidPart")
        content = b"".join(upload.parts[number] for number in numbers)
        checksums = [checksum_fields(upload.parts[number])["x-amz-checksum-crc32"] for number in numbers]
        told = [value.decode() for value in re.findall(rb"<ChecksumCRC32>([^<]*)</ChecksumCRC32>", request.body)]
        if upload.checksum_type and told != checksums:
            return error_answer(400, "InvalidPart")
        if not _is_intact(replace(request, body=content)):
            return error_answer(400, "BadDigest")
        del self._uploads[query["uploadId"]]
        self._stored[key] = content, self._etag_of([upload.parts[number] for number in numbers], is_upload=True)
        self._checksums[key] = checksum_fields(content) if upload.checksum_type else {}
        self._layouts[key] = _Layout(list(accumulate(len(upload.parts[number]) for number in numbers)))
        self._note_time(key)
        return document_answer(
            f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>{escape(self._stored[key][1])}</ETag>"
            "</CompleteMultipartUploadResult>"
        )

    def _copy_part(self, request: Request, upload: Upload, number: int) -> Answer:
        source = self._source_of(request)
        if source is None:
            return error_answer(404, "NoSuchKey")
        content, etag = self._stored[source]
        if request.headers.get("x-amz-copy-source-if-match", etag) != etag:
            return error_answer(412, "PreconditionFailed")
        extent = parse_range(request.headers.get("x-amz-copy-source-range", ""), len(content)) or (0, len(content))
        part = upload.parts[number] = content[slice(*extent)]
        checksum = checksum_fields(part)["x-amz-checksum-crc32"] if upload.checksum_type else ""
        told = f"<ChecksumCRC32>{checksum}</ChecksumCRC32>" if checksum else ""
        return document_answer(
            f"<CopyPartResult>{_MODIFIED_IN_XML}<ETag>{escape(self._etag_of([part]))}</ETag>{told}</CopyPartResult>"
        )

    def _parts_page(self, upload: Upload, query: Mapping[str, str]) -> Answer:
        marker, most = int(query.get("part-number-marker", 0)), min(int(query.get("max-parts", 1000)), 1000)
        numbers = sorted(number for number in upload.parts if number > marker)
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber>{_MODIFIED_IN_XML}"
            f"<ETag>{escape(self._etag_of([upload.parts[number]]))}</ETag><Size>{len(upload.parts[number])}</Size></Part>"
            for number in numbers[:most]
        )
        kind = upload.checksum_type
        told = f"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>{kind}</ChecksumType>" if kind else ""
        following = numbers[:most][-1] if numbers else marker
        return document_answer(
            f"<ListPartsResult><NextPartNumberMarker>{following}</NextPartNumberMarker>{told}{parts}"
            f"<IsTruncated>{str(len(numbers) > most).lower()}</IsTruncated></ListPartsResult>"
        )

    def _uploads_page(self, query: Mapping[str, str]) -> Answer:
        most = min(int(query.get("max-uploads", 1000)), 1000)
        after = query.get("key-marker", ""), query.get("upload-id-marker", "")
        encode = quote if query.get("encoding-type") == "url" else escape
        found = sorted(
            (upload.key, name, upload.began)
            for name, upload in self._uploads.items()
            if upload.key.startswith(query.get("prefix", ""))
        )
        found = [each for each in found if (each[:2] > after if after[1] else each[0] > after[0] or not after[0])]
        page, is_truncated = found[:most], len(found) > most
        uploads = "".join(
            f"<Upload><Key>{encode(key)}</Key><UploadId>{name}</UploadId>"
            f"<Initiated>{_in_xml(began)}</Initiated>"
            "<StorageClass>STANDARD</StorageClass></Upload>"
            for key, name, began in page
        )
        following = (
            f"<NextKeyMarker>{encode(page[-1][0])}</NextKeyMarker>"
            f"<NextUploadIdMarker>{page[-1][1]}</NextUploadIdMarker>"
            if is_truncated
            else ""
        )
        encoding = "<EncodingType>url</EncodingType>" if encode is quote else ""
        return document_answer(
            f"<ListMultipartUploadsResult>{encoding}{following}{uploads}"
            f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated></ListMultipartUploadsResult>"
        )

    def _page(self, query: Mapping[str, str]) -> Answer:
        names = self._names(query)
        after = (query.get("continuation-token") or query.get("start-after", "")).encode()
        start = bisect_right(names, after, key=str.encode) if after else 0
        stop = start + page_size_of(query)
        token = names[stop - 1] if stop < len(names) and stop > start else None
        return self._page_of(names[start:stop], token, query)

    def _names(self, query: Mapping[str, str]) -> list[str]:
        """Returns the keys, and what the delimiter groups, that a listing has, in order."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names: dict[str, None] = {}
        for key in sorted(self._stored, key=str.encode):
            if key.startswith(prefix):
                group, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                names[prefix + group + found if found else key] = None
        return list(names)

    def _page_of(self, names: Sequence[str], token: str | None, query: Mapping[str, str]) -> Answer:
        """Returns the page that has these names.

        Args:
            names: Keys, and what the delimiter groups.
            token: Names the next page; None if this is the last.
            query: Of the request.
        """
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        encode = quote if query.get("encoding-type") == "url" else escape
        entries = []
        for name in names:
            if delimiter and delimiter in name[len(prefix) :]:
                entries.append(f"<CommonPrefixes><Prefix>{encode(name)}</Prefix></CommonPrefixes>")
            elif name in self._stored:
                content, etag = self._stored[name]
                entries.append(
                    f"<Contents><Key>{encode(name)}</Key><LastModified>{_in_xml(self.modified_at(name))}</LastModified><ETag>{escape(etag)}</ETag>"
                    f"<Size>{len(content)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
        following = "" if token is None else f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
        encoding = "<EncodingType>url</EncodingType>" if encode is quote else ""
        return document_answer(
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{self.bucket}</Name><Prefix>{encode(prefix)}</Prefix>{following}<KeyCount>{len(entries)}</KeyCount>"
            f"<MaxKeys>{page_size_of(query)}</MaxKeys>{encoding}<IsTruncated>{str(token is not None).lower()}"
            f"</IsTruncated>{''.join(entries)}</ListBucketResult>"
        )


def _in_xml(seconds: float) -> str:
    """Returns a time as S3's documents write it, cut to the second."""
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def page_size_of(query: Mapping[str, str]) -> int:
    """Returns how many names a page of a listing has at most."""
    return min(int(query.get("max-keys", _MOST_KEYS)), _MOST_KEYS)


def query_of(request: Request) -> dict[str, str]:
    """Returns the parameters of a request."""
    return dict(parse_qsl(urlsplit(request.target).query, keep_blank_values=True))


def _is_intact(request: Request) -> bool:
    """Whether a body has the checksums that were sent with it."""
    told = [name for name in _CHECKSUMS if f"x-amz-checksum-{name}" in request.headers]
    return all(checksum_fields(request.body, name).items() <= {_OF_OBJECT, *request.headers.items()} for name in told)


def error_answer(status: int, code: str, fields: Mapping[str, str] | None = None) -> Answer:
    """Returns the answer of an error, by its code."""
    more = {"Content-Type": "application/xml", "x-amz-request-id": "REQUEST", **(fields or {})}
    return Answer(status=status, fields=more, body=s3_error(code))


def document_answer(root: str) -> Answer:
    """Returns the answer that has an XML document."""
    return Answer(status=200, fields={"Content-Type": "application/xml"}, body=f"{_XML}{root}".encode())
