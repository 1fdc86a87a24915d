"""What is fuzzed: parsers of what comes from elsewhere, each with valid inputs and what must hold for any other.

A target takes bytes and a source of chance. It returns if the input was taken, or refused in the documented way; what
else it raises is a finding.
"""

from __future__ import annotations

import mmap
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from math import prod
from random import Random
from typing import Any
from urllib.parse import parse_qsl, unquote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from s3torch._aws.answers import Subject, error_from_answer, parse_error_document, parse_http_date
from s3torch._aws.attributes import GetObjectAttributes, HeadPart, parse_attributes
from s3torch._aws.copying import CopyObject, CopySource, UploadPartCopy
from s3torch._aws.express import AppendObject, CreateSession, RenameObject
from s3torch._aws.listing import ObjectInfo, parse_keys, parse_page
from s3torch._aws.multipart import (
    AbortMultipartUpload,
    CompleteMultipartUpload,
    CreateMultipartUpload,
    UploadedPart,
)
from s3torch._aws.operations import DeleteObject, GetObject, HeadObject, ListObjectsV2, Operation
from s3torch._aws.proxies import parse_proxy
from s3torch._aws.sending import PutObject, UploadPart
from s3torch._aws.sigv4 import EMPTY_SHA256, Credentials, Signer, canonical_query, canonical_request, encode_path
from s3torch._aws.upload_listing import ListMultipartUploads, ListParts, parse_parts, parse_uploads
from s3torch._transfer.http1 import Destination, Inbox, parse_content_range, read_body, read_head, read_small_body
from s3torch._transfer.proxy import Proxy
from s3torch.checkpoint.safetensors.format import BITS, build_header, parse_header, parse_header_size, parse_index
from s3torch.datasets.table import ObjectTable, S3BucketKeyData
from s3torch.datasets.table_file import of_mapping, version_1, version_2
from s3torch.errors import (
    CheckpointFormatError,
    ConfigError,
    ConnectionFailedError,
    InvalidURIError,
    ObjectChangedError,
    ObjectTableError,
    ProtocolError,
    ProxyError,
    ProxyRefusedError,
    RequestError,
    S3Error,
    TruncatedBodyError,
)
from s3torch.uri import parse_s3_uri, parse_version_uri
from tests._aws.answering import bucket

__all__ = ["TARGETS", "Target", "mutate"]

HOST = "bucket.s3.test"
_LIMIT = 4096  # of a small body, in bytes


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        run: Takes an input; raises if what must hold does not.
        seeds: Valid inputs.
        tokens: Pieces that mean something in such inputs.
        weight: How many inputs it gets in a round.
    """

    run: Callable[[bytes, Random], None]
    seeds: tuple[bytes, ...]
    tokens: tuple[bytes, ...]
    weight: int = 1


def mutate(data: bytes, target: Target, chance: Random) -> bytes:
    """Return an input with one to four damages."""
    draw = chance.random
    for _ in range(1 + int(draw() * 4)):
        size = len(data)
        start = int(draw() * (size + 1))
        kind = draw()
        if kind < 0.25:
            data = data[:start] + data[start + 1 + int(draw() * 8) :]
        elif kind < 0.5:
            token = target.tokens[int(draw() * len(target.tokens))]
            data = data[:start] + token + data[start + int(draw() * 4) :]
        elif kind < 0.7:
            data = data[:start] + bytes((int(draw() * 256),)) + data[start + 1 :]
        elif kind < 0.8:
            data = data[:start] + data[int(draw() * (size + 1)) :]  # a piece is lost, or repeated
        elif kind < 0.9:
            stop = start + int(draw() * 20)
            data = data[:stop] + data[start:stop] * (1 + int(draw() * 3)) + data[stop:]
        else:
            other = target.seeds[int(draw() * len(target.seeds))]
            data = data[:start] + other[int(draw() * len(other)) :]
    return data


def _feed(reader: Generator[memoryview, int, Any], data: bytes, chance: Random) -> Any:
    """Run a reader of an answer on bytes that arrive in random cuts, and then the end of the stream."""
    sent = turns = 0
    largest = 1 + int(chance.random() ** 4 * 2 * len(data))
    try:
        room = next(reader)
        while True:
            size = len(room)
            assert size, "a receive into no memory"
            turns += 1
            assert turns <= 2 * len(data) + 100, "the reader does not end"
            piece = data[sent : sent + (min(largest, size))]
            room[: len(piece)] = piece
            sent += len(piece)
            room = reader.send(len(piece))
    except StopIteration as stop:
        return stop.value


def _answer(data: bytes, chance: Random) -> None:
    inbox = Inbox()
    memory = bytearray(16)
    destination = Destination(memoryview(memory)[:3], memoryview(memory)[3:])
    is_small = chance.random() < 0.5

    def read() -> Generator[memoryview, int, bytes | None]:
        head = yield from read_head(inbox)
        assert 200 <= head.status <= 599
        if is_small:
            return (yield from read_small_body(inbox, head, _LIMIT))
        yield from read_body(inbox, head, destination, len(memory))
        return None

    try:
        body = _feed(read(), data, chance)
    except (ProtocolError, ConnectionFailedError, TruncatedBodyError):
        body = b""
    else:
        assert is_small or destination.filled == len(memory)
    assert body is None or len(body) <= _LIMIT
    assert len(inbox.memory) <= 64 * 1024
    assert 0 <= destination.filled <= len(memory)


def _content_range(data: bytes, chance: Random) -> None:
    try:
        found = parse_content_range(data.decode("latin-1"))
    except ProtocolError:
        return
    assert 0 <= found.start <= found.stop
    assert found.total is None or found.stop <= found.total


def _listing(data: bytes, chance: Random) -> None:
    try:
        keys = parse_keys(data)
    except ProtocolError:
        keys = None
    try:
        page = parse_page(data)
    except ProtocolError:
        return  # parse_keys does not look at what it does not want
    assert keys is not None, "parse_keys refuses what parse_page takes"
    assert keys.keys == [info.key.encode() for info in page.object_info]
    assert keys.sizes == [info.size for info in page.object_info]
    assert keys.continuation_token == page.continuation_token


_SUBJECT = Subject("GetObject", "bucket", "key", "http://127.0.0.1:9")


def _error(data: bytes, chance: Random) -> None:
    document = parse_error_document(data)
    status = 300 + int(chance.random() * 300)
    error = error_from_answer(_SUBJECT, status, {"retry-after": data[:9].decode("latin-1")}, document)
    assert len(str(error)) < 10_000
    assert error.status == status


_SIZE = 16


def _operations() -> list[Operation]:
    """Return a new request of each kind."""
    where, body, source = bucket(), [memoryview(b"body")], CopySource("bucket", "source")
    return [
        GetObject(where, "key", 0, _SIZE, memoryview(bytearray(_SIZE))),
        GetObject(where, "key", 0, _SIZE, memoryview(bytearray(_SIZE)), etag='"e"', is_whole=True),
        GetObject(where, "key", 5, 5 + _SIZE, memoryview(bytearray(_SIZE))),
        HeadObject(where, "key"),
        ListObjectsV2(where, {}, parse_page),
        PutObject(where, "key", body, None),
        UploadPart(where, "key", body, None, upload_id="u", part_number=1),
        CreateMultipartUpload(where, "key"),
        CompleteMultipartUpload(where, "key", "u", {1: UploadedPart("e", 4)}),
        AbortMultipartUpload(where, "key", "u"),
        DeleteObject(where, "key"),
        CreateSession(where),
        RenameObject(where, "key", "other"),
        AppendObject(where, "key", body, None, offset=0),
        CopyObject(where, "key", source),
        UploadPartCopy(where, "key", source, 0, 4, upload_id="u", part_number=1),
        ListMultipartUploads(where, "", {}),
        ListParts(where, "key", "u", 0),
        GetObjectAttributes(where, "key", None),
        HeadPart(where, "key", None, 1),
    ]


_FINAL = (ConnectionFailedError, ObjectChangedError, ProtocolError, RequestError, TruncatedBodyError)


def _operation(data: bytes, chance: Random) -> None:
    """Let an operation read an answer, and the corrections that it asks for the same one again."""
    operations = _operations()
    operation = operations[int(chance.random() * len(operations))]
    for _ in range(3):
        operation.request()
        try:
            error = _feed(operation.response(Inbox()), data, chance)
        except _FINAL as raised:
            error = raised
        if error is None:
            return _check_success(operation, data)
        assert isinstance(error, S3Error), f"{operation} returns {error!r}"
        if not operation.recover(error):
            return None
    return None


def _check_success(operation: Operation, data: bytes) -> None:
    """Check what an answer is taken for that was taken for a success."""
    head = operation.head
    assert head is not None
    if isinstance(operation, GetObject):
        assert operation.filled <= _SIZE
        assert operation.total is not None
        assert operation.filled == max(0, min(operation.stop, operation.total) - operation.start)
        return
    assert head.status != 206 or isinstance(operation, (HeadObject, HeadPart))
    if isinstance(operation, HeadObject):
        assert operation.size >= 0
    elif isinstance(operation, HeadPart):
        assert operation.part.size >= 0
    elif isinstance(operation, GetObjectAttributes):
        assert operation.page.following is None or operation.page.following
        assert all(
            len(value) == each.size for part in operation.page.parts for each, value in part.values.items() if value
        )
    elif isinstance(operation, PutObject):
        assert operation.etag.strip('W/"')
    elif isinstance(operation, CreateMultipartUpload):
        assert operation.upload_id
    elif isinstance(operation, ListObjectsV2):
        assert operation.page.object_info is not None
    elif isinstance(operation, (CopyObject, UploadPartCopy)):
        assert operation.etag.strip('W/"')
    elif isinstance(operation, CreateSession):
        assert operation.session.credentials.session_token
    elif isinstance(operation, (ListMultipartUploads, ListParts)):
        assert operation.page.following is None or operation.page.following
    root = operation.shows.ending or operation.shows.root
    assert root.encode() in data


def _uploads(data: bytes, chance: Random) -> None:
    for parse in (parse_uploads, parse_parts, parse_attributes):
        try:
            page = parse(data)
        except ProtocolError:
            continue
        assert page.following is None or page.following


def _uri(data: bytes, chance: Random) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        bucket, key = parse_s3_uri(text)
    except InvalidURIError:
        return
    assert bucket
    assert "/" not in bucket or bucket.startswith("arn:")
    assert text in (f"s3://{bucket}/{key}", f"s3://{bucket}")
    same, object_key, version_id = parse_version_uri(text)
    assert same == bucket
    assert key == (object_key if version_id is None else f"{object_key}?versionId={version_id}")


def _date(data: bytes, chance: Random) -> None:
    assert isinstance(parse_http_date(data.decode("latin-1")), float | None)


def _encoding(data: bytes, chance: Random) -> None:
    text = data.decode("utf-8", "replace")
    path = encode_path(text)
    assert unquote(path) == text
    assert path.isascii()
    assert path.isprintable()
    assert " " not in path
    cut = int(chance.random() * (len(text) + 1))
    parameters = {text[:cut]: text[cut:], "b": text}
    query = canonical_query(parameters)
    assert dict(parse_qsl(query, keep_blank_values=True)) == parameters
    assert query.isascii()


_KEYS = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")


class _RecordingAuth(S3SigV4Auth):
    canonical = ""

    def canonical_request(self, request: AWSRequest) -> str:
        self.canonical = super().canonical_request(request)
        return self.canonical


_AUTH = _RecordingAuth(BotocoreCredentials(*_KEYS), "s3", "us-east-1")
_SIGNATURE = re.compile(r"Signature=([0-9a-f]{64})")


def _signature(data: bytes, chance: Random) -> None:
    key, _, rest = data.decode("utf-8", "replace").partition("?")
    name, _, value = rest.partition("=")
    parameters: Mapping[str, str] = {name: value} if name else {}
    path, query = f"/{encode_path(key)}", canonical_query(parameters)
    request = AWSRequest("GET", f"https://{HOST}{path}?{query}")
    _AUTH.add_auth(request)
    when = request.context["timestamp"]
    fields = {"host": HOST, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": when}
    assert canonical_request("GET", path, query, fields, EMPTY_SHA256)[0] == _AUTH.canonical
    signer = Signer(fields, payload_sha256=EMPTY_SHA256, credentials=Credentials(*_KEYS), region="us-east-1", when=when)
    theirs = _SIGNATURE.search(request.headers["Authorization"])
    assert theirs is not None
    assert signer.signature("GET", path, query) == theirs[1]


# Stands in inputs for the zeros up to the next page, which would be nearly all of a small table.
_TO_PAGE = b"<page>"


def _padded(data: bytes) -> bytes:
    first, *others = data.split(_TO_PAGE)
    for part in others:
        first += bytes(-len(first) % 4096) + part
    return first


_TABLE_1, _TABLE_2 = struct.Struct("<18sIIQQQ"), struct.Struct("<18sIIQQ")


def _with_checksums_1(data: bytes) -> bytes:
    return data[:22] + zlib.crc32(data[_TABLE_1.size :]).to_bytes(4, "little") + data[26:]


def _with_checksums_2(data: bytes) -> bytes:
    """Return a table as somebody would write it who means harm: all checksums fit."""
    if len(data) < _TABLE_2.size:
        return data
    directory, start = _TABLE_2.unpack_from(data)[3:]
    begin = _TABLE_2.size + directory
    if begin < start <= len(data):
        body = data[start:]
        sums = [zlib.crc32(body[first : first + 65536]) for first in range(0, len(body), 65536)]
        room = max(0, start - begin) // 4
        data = data[:begin] + struct.pack(f"<{len(sums[:room])}I", *sums[:room]) + data[begin + 4 * len(sums[:room]) :]
    return data[:22] + zlib.crc32(data[26:start]).to_bytes(4, "little") + data[26:]


def _rows(make: Callable[[], ObjectTable]) -> list[S3BucketKeyData] | None:
    try:
        table = make()
        rows = list(table)
    except ObjectTableError:
        return None
    assert len(rows) == len(table)
    return rows


def _mapped(data: bytes) -> ObjectTable:
    with tempfile.TemporaryFile() as file:
        file.write(data or b"0")
        file.flush()
        held = of_mapping(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "fuzz")
    return ObjectTable() if held is None else ObjectTable._of(*held)


def _table(data: bytes, chance: Random) -> None:
    data = _padded(data)
    if chance.random() < 0.7:
        data = _with_checksums_2(data) if data[18:19] == b"\2" else _with_checksums_1(data)
    whole = _rows(lambda: ObjectTable._from_bytes(data, "fuzz"))
    mapped = _rows(lambda: _mapped(data))
    if data[18:19] == b"\2" and whole is not None:  # what is believed at once is the same where it is mapped
        assert mapped == whole


def _safetensors(data: bytes, chance: Random) -> None:
    if chance.random() < 0.7:  # a length that fits
        data = max(0, len(data) - 8 - _TENSORS_SIZE).to_bytes(8, "little") + data[8:]
    try:
        stop = 8 + parse_header_size(data, len(data), "fuzz")
        header = parse_header(data[8:stop], len(data), "fuzz")
    except CheckpointFormatError:
        return
    end = stop
    for info in header.tensors.values():
        assert info.start == end
        assert BITS[info.dtype] * prod(info.shape) == 8 * (info.stop - info.start)
        end = info.stop
    assert end == len(data)


def _safetensors_index(data: bytes, chance: Random) -> None:
    try:
        shards = parse_index(data, "fuzz")
    except CheckpointFormatError:
        return
    assert all(shards.values())
    assert all(".." not in file.split("/") and not file.startswith("/") for file in shards)


def _must_hide(secret: bytes, error: Exception) -> None:
    assert secret.decode() not in str(error)


def _proxy_answer(data: bytes, chance: Random) -> None:
    proxy = Proxy("proxy.test", 3128, "Basic secret")
    leads = False
    for stop in sorted({chance.randrange(len(data) + 1), len(data)}):  # it may come in two pieces
        try:
            leads = proxy.leads(data[:stop], "https://bucket.test", has_ended=False)
        except (ProxyError, ProxyRefusedError) as error:
            _must_hide(b"secret", error)
            return
    if leads:
        assert re.match(rb"HTTP/1\.[01] 2\d\d( |\r\n)", data)
        assert data.find(b"\r\n\r\n") == len(data) - 4


def _proxy_url(data: bytes, chance: Random) -> None:
    try:
        proxy = parse_proxy(data.decode("latin-1"), "HTTPS_PROXY")
    except ConfigError as error:
        _must_hide(b"s3cret", error)
        return
    assert proxy.host
    assert 0 < proxy.port < 65536
    request = proxy.tunnel_request("bucket.test", 443)
    assert request.count(b"\r\n") == request.count(b"\n") == request.count(b"\r") == 3 + bool(proxy.authorization)


_TENSORS_SIZE = 24
_TENSORS = {"a": ("F32", (2, 2), 16), "é": ("BF16", (), 2), "b": ("F4", (3, 4), 6), "empty": ("I64", (0, 3), 0)}


def _saved(version: int, *objects: tuple[str, str], etags: bool = False) -> bytes:
    infos = (S3BucketKeyData(bucket, key, ObjectInfo(key, '"e"', len(key), 0)) for bucket, key in objects)
    table = ObjectTable(infos, etags=etags)
    if version == 1:
        return b"".join(version_1(table._columns))
    head, *body = version_2(table._columns, table.digest)
    pages = [_TO_PAGE if part and not any(part) and place % 2 == 0 else bytes(part) for place, part in enumerate(body)]
    return b"".join([bytes(head).rstrip(b"\0"), _TO_PAGE, *pages])


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_OBJECT = (
    b"<Contents><Key>a+b%2F%C3%A9</Key><LastModified>2024-02-29T23:59:59.000Z</LastModified>"
    b"<ETag>&quot;e&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_PAGE = b"<ListBucketResult xmlns='u'><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
_PLAIN = b"<ListBucketResult>"

_FOUND = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nx-amz-request-id: R\r\n'
_RANGE = b"Content-Range: bytes 0-15/16\r\n"
_DOCUMENTS = (
    _PLAIN + b"<Contents><Key>k</Key><Size>1</Size></Contents></ListBucketResult>",
    b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
    b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>",
    b"<Error><Code>InternalError</Code></Error>",
    b"<!DOCTYPE html><html><body>Please log in.</body></html>",
)

TARGETS: dict[str, Target] = {
    "operation": Target(
        _operation,
        (
            _FOUND + _RANGE + b"Content-Length: 16\r\n\r\n0123456789abcdef",
            _FOUND + b"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 16\r\n\r\n0123456789abcdef",
            b'HTTP/1.1 206 OK\r\nETag: "e"\r\n' + _RANGE + b"Content-Length: 16\r\n\r\n0123456789abcdef",
            b"HTTP/1.1 206 OK\r\nETag: e\r\nContent-Range: bytes 0--1/0\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 416 No\r\nContent-Range: bytes */3\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            *(_FOUND + b"Content-Length: %d\r\n\r\n%b" % (len(document), document) for document in _DOCUMENTS),
            *(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + document for document in _DOCUMENTS),
        ),
        (
            b"\r\n",
            b"\r\n\r\n",
            b"HTTP/1.1 206 OK\r\n",
            b"200",
            b"206",
            b"416",
            b"Content-Length: 0\r\n",
            b"Content-Range: bytes 0-0/0\r\n",
            b"Content-Range: bytes 5-15/16\r\n",
            b"Content-Range: bytes 0-15/*\r\n",
            b"Content-Type: text/html\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b'ETag: W/"e"\r\n',
            b'ETag: ""\r\n',
            b"Last-Modified: x\r\n",
            b"Connection: close\r\n",
            b"<html>",
            b"<!-- -->",
            b"<?xml version='1.0'?>",
            b"<Error>",
            b"<Code>SlowDown</Code>",
            b"<UploadId></UploadId>",
            b"\x00",
            b"\xef\xbb\xbf",
        ),
        weight=8,
    ),
    "answer": Target(
        _answer,
        (
            b'HTTP/1.1 206 Partial Content\r\nContent-Length: 16\r\nETag: "e"\r\n\r\n0123456789abcdef',
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nConnection: close\r\n\r\n0123456789abcdef",
            _CHUNKED + b"5\r\n01234\r\nb;x=y\r\n56789abcdef\r\n0\r\nA: b\r\n\r\n",
            _CHUNKED + b"10\r\n0123456789abcdef\r\n0\r\n\r\n",
        ),
        (
            b"\r\n",
            b"\r",
            b"\n",
            b"\x00",
            b":",
            b": ",
            b" ",
            b"0",
            b"ffffffffffffff",
            b"HTTP/1.1 ",
            b"100",
            b"\r\n\r\n",
            b"Content-Length: 1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b";",
            b"-1",
            b"\xff",
            b"99999999999999999999",
        ),
        weight=10,
    ),
    "content range": Target(
        _content_range,
        (b"bytes 0-9/10", b"bytes */10", b"bytes 5-5/*", b"bytes 9223372036854775807-9223372036854775808/*"),
        (b"-", b"--1", b"/0", b"/", b"*", b"0", b"bytes ", b" ", b"9" * 20, b"\xb2", b"\n"),
        weight=4,
    ),
    "uploads": Target(
        _uploads,
        (
            (
                b"<ListMultipartUploadsResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
                b"<NextKeyMarker>k%20</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker><Upload><Key>k%20</Key>"
                b"<UploadId>u</UploadId><Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>"
                b"</ListMultipartUploadsResult>"
            ),
            (
                b'<ListPartsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>'
                b"<NextPartNumberMarker>1</NextPartNumberMarker><ChecksumAlgorithm>CRC32</ChecksumAlgorithm>"
                b"<Part><PartNumber>1</PartNumber><ETag>e</ETag><Size>5</Size></Part></ListPartsResult>"
            ),
            (
                b"<GetObjectAttributesResponse><ETag>e-2</ETag><Checksum><ChecksumCRC32>AAAAAA==</ChecksumCRC32>"
                b"<ChecksumType>COMPOSITE</ChecksumType></Checksum><ObjectParts><IsTruncated>true</IsTruncated>"
                b"<NextPartNumberMarker>1</NextPartNumberMarker><PartsCount>2</PartsCount><Part><PartNumber>1</PartNumber>"
                b"<Size>5</Size><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></ObjectParts><ObjectSize>9</ObjectSize>"
                b"</GetObjectAttributesResponse>"
            ),
        ),
        (
            b"<",
            b">",
            b"</",
            b"%",
            b"%ff",
            b"true",
            b"-1",
            b"9" * 5000,
            b"\xff",
            b"\x00",
            b"\xd9\xa3",
            b"T25:00",
            b"xmlns=",
        ),
    ),
    "listing": Target(
        _listing,
        (
            _PAGE + b"<NextContinuationToken>t</NextContinuationToken>" + _OBJECT * 2 + b"</ListBucketResult>",
            _PLAIN + b"<Contents><Key>k</Key><Size>1</Size></Contents></ListBucketResult>",
            _PLAIN + b"<Contents><Key>k</Key><Size>1</Size></Contents>" * 2 + b"</ListBucketResult>",
            _PLAIN + b"<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes></ListBucketResult>",
        ),
        (
            b"<Contents>",
            b"</Contents>",
            b"<Key>",
            b"</Key>",
            b"<Size>",
            b"</Size>",
            b"&amp;",
            b"&#0;",
            b"%FF",
            b"<!--",
            b"-->",
            b"<![CDATA[",
            b"]]>",
            b"<?p ?>",
            b"<!DOCTYPE",
            b"+",
            b" ",
            b"<Contents/>",
            b"</Contents><Contents><Key>",
            b"<x>",
            b"</x>",
            b"&lt;",
            b"<Key>z</Key>",
            b"<Size>3</Size>",
            b"xmlns=''",
            b"\x85",
            b"\x01",
            b"\r",
            b"&#1;",
            b"&#x1f;",
            b"\xef\xbf\xbf",
            b"\xee\x80\x81",
        ),
        weight=6,
    ),
    "error document": Target(
        _error,
        (b"<Error><Code>NoSuchKey</Code><Message>m &amp; n</Message><RequestId>R</RequestId></Error>",),
        (b"<Code>", b"</Code>", b"<Message>", b"&#99999999999;", b"&#xD800;", b"&", b"\xff", b"SlowDown", b"9"),
        weight=4,
    ),
    "proxy answer": Target(
        _proxy_answer,
        (
            b"HTTP/1.1 200 Connection established\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n",
            b"HTTP/1.1 407 Who?\r\n\r\n",
            b"HTTP/1.1 502\r\n\r\n",
        ),
        (b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"HTTP/1.1 ", b"200", b" ", b"407", b"\0", b"\xb2", b"HTTP/1.1 200"),
        weight=2,
    ),
    "proxy URL": Target(
        _proxy_url,
        (b"http://user:s3cret@proxy.test:3128", b"proxy:1", b"//proxy", b"http://[::1]:8080/", b"http://u%40:p%3A@p"),
        (
            b"http://",
            b":",
            b"@",
            b"/",
            b"[",
            b"]",
            b"%0d%0a",
            b"\r\n",
            b"\0",
            b" ",
            b"\xff",
            b"99999",
            b"https://",
            b"\t",
        ),
        weight=2,
    ),
    "uri": Target(
        _uri, (b"s3://bucket/a/b?c#d", b"s3://b", b"s3://b/"), (b"s3://", b"/", b"//", b"\0", b"\xff", b"%2F"), weight=4
    ),
    "date": Target(
        _date,
        (b"Thu, 01 Jan 2026 00:00:00 GMT", b"Thu, 29 Feb 2024 23:59:59 -0000"),
        (b" ", b":", b",", b"-", b"+", b"9" * 12, b"9", b"GMT", b"Jan", b"(", b".", b"\0"),
        weight=2,
    ),
    "encoding": Target(
        _encoding,
        (b"a/b c+d", "é/日/🦜".encode(), b"a?b=c&d"),
        (b"%", b"/", b"//", b"..", b"\r\n", b"\0", b"~", b"\xff"),
    ),
    "signature": Target(
        _signature, (b"a/b c?prefix=x y", "é?versionId=ü".encode(), b"a"), (b"%", b"/", b"+", b"\r\n", b"?", b"=", b"~")
    ),
    "safetensors": Target(
        _safetensors,
        (
            build_header(_TENSORS, {"format": "pt"})[0] + bytes(_TENSORS_SIZE),
            build_header({"x": ("U8", (24,), 24)}, None)[0] + bytes(_TENSORS_SIZE),
        ),
        (
            b'"',
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"0",
            b"-1",
            b"1e3",
            b"9" * 20,
            b"9" * 5000,
            b"true",
            b"null",
            b"NaN",
            b'"F32"',
            b'"F6_E2M3"',
            b'"a":',
            b'"__metadata__":',
            b"\\ud800",
            b"\xff",
            b"[" * 2000,
            b" ",
            b"\xef\xbb\xbf",
        ),
        weight=4,
    ),
    "safetensors index": Target(
        _safetensors_index,
        (b'{"metadata":{"total_size":3},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}',),
        (b'"', b"{", b"}", b"..", b"/", b"../", b"//", b"null", b'"weight_map":', b"\\ud800", b"\xff"),
        weight=2,
    ),
    "table": Target(
        _table,
        (
            _saved(1, ("bucket", "a"), ("bucket", "é/b"), ("other", "c")),
            _saved(1),
            _saved(1, ("b", "k" * 40)),
            _saved(2, ("bucket", "a"), ("bucket", "é/b"), ("other", "c")),
            _saved(2, ("bucket", "a"), ("other", "c"), etags=True),
            _saved(2),
        ),
        (b"\0", b"\xff", b"\1", b"\xff" * 8, b"[", b'["a"]', b"\0" * 8, b"\xed\xa0\x80", b"4096", b'"keys"', b"true"),
        weight=2,
    ),
}
