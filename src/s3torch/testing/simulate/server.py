"""An S3 server in memory: a request goes in, an answer comes out, and no time passes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from s3torch.testing.simulate.model import BucketModel, Stored

__all__ = ["Answer", "Request", "Server", "Upload", "parse_request"]

_DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
_PART = re.compile(rb"<PartNumber>(\d+)</PartNumber><ETag>(.*?)</ETag>")


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        method: Of HTTP.
        key: The object's; empty for the bucket.
        query: Parameters.
        fields: Header fields by lower-case name.
        body: Its bytes.
    """

    method: str
    key: str
    query: Mapping[str, str]
    fields: Mapping[str, str]
    body: bytes

    @property
    def name(self) -> str:
        """What it asks for, in a word."""
        for parameter, name in (("uploads", "create"), ("partNumber", "part"), ("list-type", "list")):
            if parameter in self.query:
                return "list uploads" if self.method == "GET" and name == "create" else name
        if "uploadId" in self.query:
            return {"POST": "complete", "GET": "list parts"}.get(self.method, "abort")
        return self.method.lower()


@dataclass
class Answer:
    """One answer.

    Args:
        status: Of HTTP.
        fields: Header fields beside the length.
        body: Its bytes.
    """

    status: int
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def encode(self, method: str, *, closes: bool = False) -> bytes:
        """Return it as bytes."""
        length = self.fields.pop("content-length", str(len(self.body)))
        lines = [f"HTTP/1.1 {self.status} .", f"content-length: {length}", f"date: {_DATE}"]
        lines += [f"{name}: {value}" for name, value in self.fields.items()]
        if closes:
            lines.append("connection: close")
        head = "\r\n".join([*lines, "", ""]).encode()
        return head if method == "HEAD" else head + self.body


def failure(status: int, code: str) -> Answer:
    """Return an answer that is an error."""
    return Answer(status, {}, f"<Error><Code>{code}</Code><Message>It is so.</Message></Error>".encode())


def _page(root: str, content: str) -> Answer:
    """Return the only page of a listing."""
    document = f"<{root}><IsTruncated>false</IsTruncated>{content}</{root}>"
    return Answer(200, {"content-type": "application/xml"}, document.encode())


@dataclass
class Upload:
    """A multipart upload that is neither completed nor aborted.

    Attributes:
        is_known: Whether the client has named it: it has read the answer to its creation.
    """

    key: str
    parts: dict[int, Stored] = field(default_factory=dict)
    is_known: bool = False


def parse_request(head: bytes, body: bytes) -> Request:
    """Return a request from its bytes."""
    first, *lines = head.decode("ascii").split("\r\n")
    method, target, _ = first.split(" ")
    parts = urlsplit(target)
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    key = unquote(parts.path).lstrip("/").partition("/")[2]
    return Request(method, key, query, fields, body)


class Server:
    """Serves one bucket.

    Args:
        bucket: What is there.

    Attributes:
        uploads: By id.
    """

    def __init__(self, bucket: BucketModel) -> None:
        self.bucket = bucket
        self.uploads: dict[str, Upload] = {}
        self._numbers = 0

    def answer(self, request: Request) -> Answer:
        """Carry a request out."""
        if request.name == "list uploads":
            return self._list_uploads(request)
        if request.name == "list parts":
            return self._list_parts(request)
        if request.method in ("GET", "HEAD"):
            return self._list(request) if not request.key else self._get(request)
        if request.method == "PUT":
            return self._put(request)
        if request.method == "POST":
            return self._create(request) if "uploads" in request.query else self._complete(request)
        if "uploadId" in request.query:
            found = self.uploads.pop(request.query["uploadId"], None)
            return failure(404, "NoSuchUpload") if found is None else Answer(204)
        self.bucket.remove(request.key)
        return Answer(204)

    def _get(self, request: Request) -> Answer:
        stored = self.bucket.get(request.key)
        if stored is None:
            return failure(404, "NoSuchKey")
        if request.fields.get("if-match", stored.etag) != stored.etag:
            return failure(412, "PreconditionFailed")
        size = len(stored.content)
        fields = {"etag": stored.etag, "last-modified": _DATE}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.fields.get("range", ""))
        start, stop, status = 0, size, 200
        if asked is not None:
            start, stop, status = int(asked[1]), min(int(asked[2]) + 1, size), 206
            if start >= size:
                refusal = failure(416, "InvalidRange")
                refusal.fields["content-range"] = f"bytes */{size}"
                return refusal
            fields["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        if "x-amz-checksum-mode" in request.fields and stop - start == size:
            fields |= {"x-amz-checksum-crc32": stored.crc32, "x-amz-checksum-type": "FULL_OBJECT"}
        if request.method == "HEAD":
            return Answer(status, {"content-length": str(stop - start), **fields})
        return Answer(status, fields, stored.content[start:stop])

    def _list(self, request: Request) -> Answer:
        query = request.query
        prefix, most = query.get("prefix", ""), int(query.get("max-keys", "1000"))
        after = query.get("continuation-token") or query.get("start-after", "")
        keys = [key for key in self.bucket.keys if key.startswith(prefix) and key > after]
        page, is_truncated = keys[:most], len(keys) > most
        items = []
        for key in page:
            stored = self.bucket.get(key)
            assert stored is not None
            items.append(
                f"<Contents><Key>{escape(quote(key))}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.content)}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if is_truncated else ""
        document = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bucket</Name><Prefix>{escape(quote(prefix))}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{most}</MaxKeys><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>{token}{''.join(items)}</ListBucketResult>"
        )
        return Answer(200, {"content-type": "application/xml"}, document.encode())

    def _list_uploads(self, request: Request) -> Answer:
        begun = "".join(
            f"<Upload><Key>{escape(quote(upload.key))}</Key><UploadId>{upload_id}</UploadId>"
            f"<Initiated>{datetime.fromtimestamp(number, timezone.utc).isoformat()}</Initiated></Upload>"
            for number, (upload_id, upload) in enumerate(self.uploads.items())
            if upload.key.startswith(request.query.get("prefix", ""))
        )
        return _page("ListMultipartUploadsResult", f"<EncodingType>url</EncodingType>{begun}")

    def _list_parts(self, request: Request) -> Answer:
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None:
            return failure(404, "NoSuchUpload")
        return _page(
            "ListPartsResult",
            "".join(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(stored.etag)}</ETag>"
                f"<Size>{len(stored.content)}</Size></Part>"
                for number, stored in sorted(upload.parts.items())
            ),
        )

    def _put(self, request: Request) -> Answer:
        stored = Stored.of(request.body)
        if request.fields.get("x-amz-checksum-crc32", stored.crc32) != stored.crc32:
            return failure(400, "BadDigest")
        if "partNumber" in request.query:
            upload = self.uploads.get(request.query["uploadId"])
            if upload is None:
                return failure(404, "NoSuchUpload")
            upload.is_known = True
            upload.parts[int(request.query["partNumber"])] = stored
        else:
            self.bucket.put(request.key, stored)
        return Answer(200, {"etag": stored.etag})

    def _create(self, request: Request) -> Answer:
        self._numbers += 1
        upload_id = f"upload-{self._numbers}"
        self.uploads[upload_id] = Upload(request.key)
        asked = ("x-amz-checksum-algorithm", "x-amz-checksum-type")
        fields = {name: request.fields[name] for name in asked if name in request.fields}
        document = f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        return Answer(200, fields, document.encode())

    def _complete(self, request: Request) -> Answer:
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None:
            return failure(404, "NoSuchUpload")
        named = [
            (int(number), unescape(etag.decode(), {"&quot;": '"'})) for number, etag in _PART.findall(request.body)
        ]
        parts = [upload.parts.get(number) for number, _ in named]
        if not parts or any(part is None or part.etag != etag for part, (_, etag) in zip(parts, named, strict=True)):
            return failure(400, "InvalidPart")
        digest = hashlib.md5(usedforsecurity=False)
        content = b""
        for part in parts:
            assert part is not None
            digest.update(bytes.fromhex(part.etag.strip('"')))
            content += part.content
        del self.uploads[request.query["uploadId"]]
        self.bucket.put(upload.key, Stored.of(content, f'"{digest.hexdigest()}-{len(parts)}"'))
        document = b"<CompleteMultipartUploadResult><Key>k</Key></CompleteMultipartUploadResult>"
        return Answer(200, {}, document)
