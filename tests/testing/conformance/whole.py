"""A server in memory that passes every check of the conformance suite, and can be given one wrong habit.

It stands on `Objects`, which knows what `FaultyServer` needs, and adds the rest: signatures, versions, lists of
uploads, metadata, If-None-Match of reads, wrong ETags of parts.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from urllib.parse import parse_qsl, quote, urlsplit
from xml.sax.saxutils import escape

from s3torch._aws import sigv4
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.objects import Answer, Objects, operation_of, s3_error
from s3torch.testing.faulty.wire import Request, Wire

__all__ = [
    "ACCESS_KEY",
    "SECRET_KEY",
    "Habit",
    "WholeS3",
    "has_signed_body",
    "query_of",
    "refusal",
    "serve",
    "with_fields",
    "without",
]

ACCESS_KEY, SECRET_KEY = "KEY", "SECRET"

Habit = Callable[[Request, "WholeS3"], Answer]


def query_of(request: Request) -> dict[str, str]:
    """Returns the parameters of a request."""
    return dict(parse_qsl(urlsplit(request.target).query, keep_blank_values=True))


def refusal(status: int, code: str) -> Answer:
    """Returns an error of S3."""
    return Answer(status=status, fields={"Content-Type": "application/xml"}, body=s3_error(code))


def with_fields(answer: Answer, **fields: str | None) -> Answer:
    """Returns an answer with other header fields; underscores stand for hyphens."""
    return replace(answer, fields={**answer.fields, **{name.replace("_", "-"): text for name, text in fields.items()}})


def without(request: Request, *names: str) -> Request:
    """Returns a request without some of its header fields."""
    return replace(request, headers={name: text for name, text in request.headers.items() if name not in names})


class WholeS3(Objects):
    """One bucket with versions that does all that the suite asks for.

    Args:
        bucket: Its name.
        keeps_versions: Whether it does.
    """

    def __init__(self, bucket: str, *, keeps_versions: bool = True) -> None:
        super().__init__(bucket)
        self._keeps_versions = keeps_versions
        self._kept: dict[str, dict[str, str]] = {}  # metadata and content type, as header fields
        self._changed: dict[str, float] = {}
        self._versions: dict[str, list[tuple[str, bytes | None]]] = {}  # None: a delete marker

    @property
    def versions(self) -> int:
        """How many versions there are, of all keys."""
        return sum(map(len, self._versions.values()))

    def answer(self, request: Request) -> Answer:
        """Does what a request asks for, and returns what S3 answers."""
        return self.instead(request, request)

    def instead(self, request: Request, other: Request) -> Answer:
        """Does what another request asks for, if the one that arrived is properly signed."""
        if not _is_signed(request):
            return refusal(403, "SignatureDoesNotMatch")
        if not has_signed_body(request):
            return refusal(400, "XAmzContentSHA256Mismatch")
        return self.carry_out(other)

    def carry_out(self, request: Request) -> Answer:
        """Does what a request asks for, whoever has sent it."""
        with self._lock:
            return with_fields(self._answer(request), Date=formatdate(usegmt=True))

    def _answer(self, request: Request) -> Answer:
        key, query, operation = self.key_of(request), query_of(request), operation_of(request)
        if not key and request.method == "GET" and "uploads" in query:
            return self._listed_uploads(query)
        if not key and request.method == "GET" and "versions" in query:
            return self._listed_versions(query)
        if request.method == "GET" and "uploadId" in query:
            return self._listed_parts(key, query["uploadId"])
        if operation == "CompleteMultipartUpload" and not self._has_etags(request, query):
            return refusal(400, "InvalidPart")
        if "versionId" in query:
            return self._of_version(request, key, query["versionId"])
        if operation in {"GetObject", "HeadObject"}:
            return self._read_newest(request, key)
        existed = key in self
        answer = super().answer(request)
        if answer.status == 200 and operation in {"PutObject", "CompleteMultipartUpload", "CopyObject"}:
            return self._note(request, key, answer)
        if operation == "DeleteObject" and existed and self._keeps_versions:
            self._versions[key].append((self._new_id(), None))
        return answer

    def _new_id(self) -> str:
        return f"v{self.versions + 1}-{time.monotonic_ns()}"

    def _note(self, request: Request, key: str, answer: Answer) -> Answer:
        names = ("content-type", *(name for name in request.headers if name.startswith("x-amz-meta-")))
        self._kept[key] = {name: request.headers[name] for name in names if name in request.headers}
        self._changed[key] = time.time()
        if not self._keeps_versions:
            return answer
        version_id = self._new_id()
        self._versions.setdefault(key, []).append((version_id, self[key]))
        return with_fields(answer, x_amz_version_id=version_id)

    def _read_newest(self, request: Request, key: str) -> Answer:
        answer = super().answer(request)
        if answer.status not in {200, 206}:
            return answer
        if request.headers.get("if-none-match") == answer.fields["ETag"]:
            return Answer(status=304, fields={"ETag": answer.fields["ETag"]})
        modified = formatdate(self._changed.get(key, 0), usegmt=True)
        answer = with_fields(answer, Last_Modified=modified, **self._kept.get(key, {}))
        if self._keeps_versions:
            answer = with_fields(answer, x_amz_version_id=self._versions[key][-1][0])
        return answer

    def _of_version(self, request: Request, key: str, version_id: str) -> Answer:
        versions = self._versions.get(key, [])
        found = [content for each, content in versions if each == version_id and content is not None]
        if request.method == "DELETE":
            self._versions[key] = [pair for pair in versions if pair[0] != version_id]
            return Answer(status=204)
        if not found:
            return refusal(404, "NoSuchVersion")
        one = Objects(self.bucket, {key: found[0]})
        return with_fields(one.answer(request), x_amz_version_id=version_id)

    def _has_etags(self, request: Request, query: dict[str, str]) -> bool:
        upload = self.open_uploads().get(query["uploadId"])
        told = re.findall(rb"<PartNumber>(\d+)</PartNumber>\s*<ETag>(?:&quot;|\")?([^<&\"]*)", request.body)
        return upload is None or all(
            int(number) in upload.parts and _md5(upload.parts[int(number)]) == etag.decode() for number, etag in told
        )

    def _listed_uploads(self, query: dict[str, str]) -> Answer:
        encode, encoding = _encoding(query)
        entries = "".join(
            f"<Upload><Key>{encode(upload.key)}</Key><UploadId>{name}</UploadId>"
            "<Initiated>2026-01-01T00:00:00.000Z</Initiated><StorageClass>STANDARD</StorageClass></Upload>"
            for name, upload in self.open_uploads().items()
            if upload.key.startswith(query.get("prefix", ""))
        )
        return _document(
            f"<ListMultipartUploadsResult>{encoding}<IsTruncated>false</IsTruncated>{entries}</ListMultipartUploadsResult>"
        )

    def _listed_parts(self, key: str, name: str) -> Answer:
        upload = self.open_uploads().get(name)
        if upload is None or upload.key != key:
            return refusal(404, "NoSuchUpload")
        told = f"<ChecksumType>{upload.checksum_type}</ChecksumType>" if upload.checksum_type else ""
        algorithm = "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>" if upload.checksum_type else ""
        entries = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{_md5(part)}&quot;</ETag><Size>{len(part)}</Size></Part>"
            for number, part in sorted(upload.parts.items())
        )
        return _document(
            f"<ListPartsResult><IsTruncated>false</IsTruncated>{algorithm}{told}{entries}</ListPartsResult>"
        )

    def _listed_versions(self, query: dict[str, str]) -> Answer:
        encode, encoding = _encoding(query)
        entries = "".join(
            f"<{kind}><Key>{encode(key)}</Key><VersionId>{version_id}</VersionId></{kind}>"
            for key, versions in self._versions.items()
            for version_id, content in versions
            if key.startswith(query.get("prefix", ""))
            for kind in ("DeleteMarker" if content is None else "Version",)
        )
        return _document(f"<ListVersionsResult>{encoding}{entries}</ListVersionsResult>")


def _encoding(query: dict[str, str]) -> tuple[Callable[[str], str], str]:
    """Returns how keys are written in a listing, and the element that says so."""
    return (quote, "<EncodingType>url</EncodingType>") if query.get("encoding-type") == "url" else (escape, "")


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _document(root: str) -> Answer:
    return Answer(status=200, fields={"Content-Type": "application/xml"}, body=root.encode())


def _is_signed(request: Request) -> bool:
    """Whether the signature is that of our key; what is not signed at all is let in."""
    given = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)",
        request.headers.get("authorization", ""),
    )
    if given is None:
        return "authorization" not in request.headers
    access_key, date, region, names, signature = given.groups()
    path, _, query = request.target.partition("?")
    pairs = sorted(pair if "=" in pair else f"{pair}=" for pair in query.split("&")) if query else []
    fields = {name: request.headers[name] for name in names.split(";")}
    canonical, _ = sigv4.canonical_request(
        request.method, path, "&".join(pairs), fields, request.headers["x-amz-content-sha256"]
    )
    scope = f"{date}/{region}/s3/aws4_request"
    text = sigv4.string_to_sign(canonical, request.headers["x-amz-date"], scope)
    key = sigv4.signing_key(SECRET_KEY, date, region)
    return access_key == ACCESS_KEY and signature == hmac.new(key, text.encode(), "sha256").hexdigest()


def has_signed_body(request: Request) -> bool:
    """Whether the body has the SHA-256 that was signed, if one was."""
    told = request.headers.get("x-amz-content-sha256", sigv4.UNSIGNED_PAYLOAD)
    return not re.fullmatch("[0-9a-f]{64}", told) or told == hashlib.sha256(request.body).hexdigest()


@contextmanager
def serve(objects: WholeS3, habit: Habit | None = None) -> Iterator[str]:
    """Serves a bucket with a habit on loopback; yields the URL. An answer that says `Connection: close` is the last."""

    def handle(request: Request, wire: Wire) -> None:
        answer = objects.answer(request) if habit is None else habit(request, objects)
        wire.respond(answer.status, answer.fields, answer.body)
        if answer.fields.get("Connection") == "close":
            wire.close()

    with ScriptedServer(handle) as server:
        yield server.endpoint
