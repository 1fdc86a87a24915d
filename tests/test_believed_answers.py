"""Answers are believed only for what they say: whole readers, writers and listings against scripted servers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from s3torch import S3Client, S3ClientConfig, S3IterableDataset, S3MapDataset, S3ReaderConfig
from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.errors import ObjectChangedError, ObjectNotFoundError, ProtocolError, RequestError, S3Error
from s3torch.testing.faulty.objects import Objects, parse_range
from tests.support.environment import know_only
from tests.support.server import Handler, Request, ScriptedServer, Wire, fail, first, s3_error, serve_object

MiB = 1024 * 1024
CONTENT = bytes(range(256)) * 1000
LARGE = os.urandom(12 * MiB)  # three parts
HINTS = r"(?s)Check the endpoint .*force_path_style=True.* proxy or a captive portal"
PORTAL = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>"
MONDAY, TUESDAY = "Mon, 05 Jan 2026 00:00:00 GMT", "Tue, 06 Jan 2026 00:00:00 GMT"
READERS = [S3ReaderConfig.sequential(), S3ReaderConfig.range_based(), S3ReaderConfig.adaptive()]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's configuration."""
    know_only(monkeypatch, tmp_path)


@contextlib.contextmanager
def serving(handler: Handler, **options: object) -> Iterator[tuple[ScriptedServer, S3Client]]:
    """A server and a client of it."""
    config = S3ClientConfig(**{"unsigned": True, "max_attempts": 3, "part_size": 5 * MiB, **options})
    with ScriptedServer(handler) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        try:
            yield server, client
        finally:
            client.close()


def altered(
    content: bytes, change: Callable[[dict[str, str | None], int], int] = lambda fields, status: status, **more: str
) -> Handler:
    """Return a handler that serves an object, and changes fields and status of what it answers."""

    def handle(request: Request, wire: Wire) -> None:
        extent = parse_range(request.headers.get("range", ""), len(content))
        fields: dict[str, str | None] = {"ETag": '"e"', "x-amz-request-id": "R", **more}
        status, body = 200, content
        if extent is not None and extent[0] < extent[1]:
            status, body = 206, content[extent[0] : extent[1]]
            fields["Content-Range"] = f"bytes {extent[0]}-{extent[1] - 1}/{len(content)}"
        wire.respond(change(fields, status), fields, body)

    return handle


# --- Ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_ranges_with_status_200(reader: S3ReaderConfig):
    """A server that answers every range with status 200 is read whole, by all readers."""
    with serving(altered(LARGE, lambda fields, status: 200)) as (_, client):
        assert client.get_object("bucket", "key", reader_config=reader).read() == LARGE
        assert client.read_range("bucket", "key", 5, 15) == LARGE[5:15]
        info = HeadObjectResult('"e"', len(LARGE), 0)
        assert client.get_object("bucket", "key", object_info=info, reader_config=reader).read() == LARGE


def test_another_range_with_status_200():
    """A range that was not asked for is refused, whatever the status."""

    def change(fields: dict[str, str | None], status: int) -> int:
        fields["Content-Range"] = f"bytes 1-{len(CONTENT)}/{len(CONTENT) + 1}"
        return 200

    with serving(altered(CONTENT, change)) as (_, client), pytest.raises(ProtocolError, match="were asked for and"):
        client.get_object("bucket", "key").read()


@pytest.mark.parametrize("told", ["bytes 0-0/0", "bytes 0--1/0", "bytes 0-41/0", "bytes */0", None])
@pytest.mark.parametrize("status", [206, 200])
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_empty_object(told: str | None, status: int, is_chunked: bool, reader: S3ReaderConfig):
    """An object of 0 bytes is empty, however a server answers a range of it; the connection is used again."""
    if is_chunked and (told is None or told == "bytes */0"):
        pytest.skip("nothing says that it is empty")

    def handle(request: Request, wire: Wire) -> None:
        fields: dict[str, str | None] = {"ETag": '"e"', "x-amz-request-id": "R", "Content-Range": told}
        if request.method == "HEAD":
            wire.respond(200, {"ETag": '"e"'}, b"")
        elif is_chunked:
            wire.respond(status, {**fields, "Content-Length": None, "Transfer-Encoding": "chunked"}, b"0\r\n\r\n")
        else:
            wire.respond(status, fields)

    with serving(handle) as (server, client):
        for _ in range(2):
            assert client.get_object("bucket", "key", reader_config=reader).read() == b""
            assert client.read_range("bucket", "key", 0, 10) == b""
        assert server.connections == 1


@pytest.mark.parametrize("told", ["bytes 0-0/0", "bytes 0--1/0"])
def test_empty_object_with_a_body(told: str):
    """An answer that says that there is nothing, and has a body, is refused."""

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(206, {"ETag": '"e"', "Content-Range": told}, b"x")

    with serving(handle) as (_, client), pytest.raises(ProtocolError, match="its body has 1 bytes"):
        client.get_object("bucket", "key").read()


@pytest.mark.parametrize("size", [0, 1, len(CONTENT)])
@pytest.mark.parametrize("serves_ranges", [True, False])
def test_head_without_a_length(size: int, serves_ranges: bool):
    """Where HEAD tells no length, a GET of one byte does: for head_object and for the end of a reader."""
    serve = serve_object(CONTENT[:size])

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "HEAD":
            fields = {"ETag": '"e"', "Content-Length": None, "Last-Modified": MONDAY}
            wire.respond(200, fields)
        elif serves_ranges:
            serve(request, wire)
        else:
            serve(replace(request, headers={}), wire)

    with serving(handle) as (server, client):
        found = client.head_object("bucket", "key")
        assert (found.size, found.etag) == (size, '"e"' if size or not serves_ranges else "")
        assert [request.method for request in server.requests] == ["HEAD", "GET"]
        assert server.requests[1].headers["range"] == "bytes=0-0"
        with client.get_object("bucket", "key") as reader:
            assert reader.seek(0, 2) == size


def test_head_of_an_unknown_length():
    """Where nothing tells the length, that is an error after a bounded number of requests."""

    def handle(request: Request, wire: Wire) -> None:
        fields = {"ETag": '"e"', "Content-Length": None if request.method == "HEAD" else "1"}
        wire.respond(200 if request.method == "HEAD" else 206, fields, b"x")

    with serving(handle) as (server, client):
        with pytest.raises(ProtocolError, match="tells the object's size"):
            client.head_object("bucket", "key")
        assert len(server.requests) <= 6


@pytest.mark.parametrize("is_chunked", [False, True])
def test_head_without_a_length_of_a_large_object(is_chunked: bool):
    """Where a server ignores the range the length of the object is its size, and nobody receives it."""

    def handle(request: Request, wire: Wire) -> None:
        fields: dict[str, str | None] = {"ETag": '"e"', "Content-Length": None, "x-amz-request-id": "R"}
        if request.method == "HEAD":
            wire.respond(200, fields)
        elif is_chunked:
            wire.respond(200, {**fields, "Transfer-Encoding": "chunked"}, b"500000\r\n" + bytes(5 * MiB))
        else:
            wire.respond(200, {**fields, "Content-Length": str(1 << 40)}, bytes(100))

    with serving(handle) as (server, client):
        for number in range(2):
            if is_chunked:
                with pytest.raises(ProtocolError, match="The server does not serve ranges"):
                    client.head_object("bucket", "key")
            else:
                assert client.head_object("bucket", "key").size == 1 << 40
                assert len(server.requests) == 2 * number + 2


def test_head_whose_length_the_connection_ends():
    """A body that only the end of the connection ends tells no size: it may be cut off."""

    def handle(request: Request, wire: Wire) -> None:
        fields: dict[str, str | None] = {"ETag": '"e"', "Content-Length": None}
        wire.respond(200, fields, b"half of i" if request.method == "GET" else b"")
        wire.close()

    with serving(handle) as (_, client), pytest.raises(ProtocolError, match="only the end of the connection"):
        client.head_object("bucket", "key")


@pytest.mark.parametrize("status", [201, 204, 205, 299])
@pytest.mark.parametrize("call", ["read", "head"])
def test_statuses_that_no_object_has(status: int, call: str):
    """A success of another kind than 200 and 206 is no object, and no empty one."""

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(status, {"ETag": '"e"', "x-amz-request-id": "R"})

    with serving(handle) as (_, client), pytest.raises(ProtocolError, match=f"answered with status {status}"):
        CALLS[call](client)


def test_a_part_that_says_nothing():
    """An empty part that does not say of what is no empty object: what HEAD tells decides."""

    def handle(request: Request, wire: Wire) -> None:
        length = str(len(CONTENT)) if request.method == "HEAD" else "0"
        wire.respond(200 if request.method == "HEAD" else 206, {"ETag": '"e"', "Content-Length": length})

    with serving(handle) as (server, client):
        with pytest.raises(ProtocolError, match="answers that there are none, and not how large the object is"):
            client.get_object("bucket", "key").read()
        assert "HEAD" in [request.method for request in server.requests]


# --- Versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", ["e1", '"e1"', 'W/"e1"'])
@pytest.mark.parametrize("answered", ["e1", '"e1"', 'W/"e1"'])
@pytest.mark.parametrize("reader", READERS)
def test_etags_with_and_without_quotes(listed: str, answered: str, reader: S3ReaderConfig):
    """An object is the one that was listed, whether its ETag has quotes here and none there, or is weak."""

    def check(request: Request, wire: Wire) -> None:
        assert request.headers.get("if-match") in (None, '"e1"')
        headers = {name: value for name, value in request.headers.items() if name != "if-match"}
        serve_object(LARGE, etag=answered)(replace(request, headers=headers), wire)

    info, other = (ObjectInfo("key", etag, len(LARGE), 0) for etag in (listed, "e2"))
    with serving(check) as (_, client):
        assert client.get_object("bucket", "key", object_info=info, reader_config=reader).read() == LARGE
        with pytest.raises(ObjectChangedError, match=r"its ETag was e2,? and is"):
            client.get_object("bucket", "key", object_info=other, reader_config=reader).read()


def without_etags(content: bytes, modified: Callable[[], str]) -> Handler:
    """Return a handler that serves an object without an ETag."""

    def change(fields: dict[str, str | None], status: int) -> int:
        fields["ETag"] = None
        fields["Last-Modified"] = modified()
        return status

    return altered(content, change)


@pytest.mark.parametrize("reader", READERS)
def test_no_etags(reader: S3ReaderConfig):
    """A server without ETags is read, in parts, too."""
    with serving(without_etags(LARGE, lambda: MONDAY)) as (server, client):
        assert client.get_object("bucket", "key", reader_config=reader).read() == LARGE
        assert not [request for request in server.requests if "if-match" in request.headers]


@pytest.mark.parametrize("reader", READERS)
def test_replaced_without_etags(reader: S3ReaderConfig):
    """Where there are no ETags, another Last-Modified is another version, also of the same size."""
    days = iter([MONDAY])
    with serving(without_etags(LARGE, lambda: next(days, TUESDAY))) as (_, client):
        opened = client.get_object("bucket", "key", reader_config=reader)
        with pytest.raises(ObjectChangedError, match=r"its Last-Modified was .* and is .* now"):
            [opened.readinto(bytearray(10)) for _ in map(opened.seek, (0, 11 * MiB, 6 * MiB))]


@pytest.mark.parametrize(
    ("modified_at", "is_fine"), [(1767571200, True), (1767571201, True), (1767500000, False), (0, True)]
)
def test_listed_without_etags(modified_at: int, is_fine: bool):
    """So it is with the time that a listing told."""
    info = ObjectInfo("key", "", len(CONTENT), modified_at)
    with serving(without_etags(CONTENT, lambda: MONDAY)) as (_, client):
        reader = client.get_object("bucket", "key", object_info=info)
        if is_fine:
            assert reader.read() == CONTENT
        else:
            with pytest.raises(ObjectChangedError, match=r"its Last-Modified was \d+ s after 1970,? and is"):
                reader.read()


PROOFS: dict[str, dict[str, str | None]] = {
    "both": {"ETag": '"e"', "Last-Modified": MONDAY},
    "ETag": {"ETag": '"e"', "Last-Modified": None},
    "time": {"ETag": None, "Last-Modified": MONDAY},
    "none": {"ETag": None, "Last-Modified": None},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("first", PROOFS)
@pytest.mark.parametrize("later", PROOFS)
def test_answers_that_do_not_show_their_version(first: str, later: str, is_known: bool, reader: S3ReaderConfig):
    """What a server that ignores If-Match answers is believed if it can be compared, or if no answer could be."""
    proofs = iter([PROOFS[first]])

    def change(fields: dict[str, str | None], status: int) -> int:
        fields.update(next(proofs, PROOFS[later]))
        return status

    serve = altered(LARGE, change)
    has_common = {"both": {"ETag", "time"}, "none": set()}
    common = has_common.get(first, {first}) & has_common.get(later, {later})
    info = ObjectInfo("key", "", len(LARGE), 0)
    with serving(_unconditionally(serve), checksums="off") as (_, client):
        opened = client.get_object("bucket", "key", object_info=info if is_known else None, reader_config=reader)
        if common or first == later:
            assert opened.read() == LARGE
        else:
            with pytest.raises(ProtocolError, match="shows that the answer is of the version"):
                opened.read()


def _unconditionally(serve: Handler) -> Handler:
    """Return a handler that ignores If-Match."""

    def handle(request: Request, wire: Wire) -> None:
        headers = {name: value for name, value in request.headers.items() if name != "if-match"}
        serve(replace(request, headers=headers), wire)

    return handle


@pytest.mark.parametrize(
    ("etag", "modified_at", "found", "is_fine"),
    [
        ("e", 0, "time", False),
        ("e", 1767571200, "time", True),
        ("e", 1767571200, "none", False),
        ("", 1767571200, "ETag", False),
        ("", 0, "none", True),
        ("", 0, "ETag", True),
    ],
)
def test_listed_and_answered_otherwise(etag: str, modified_at: int, found: str, is_fine: bool):
    """What was listed counts as an answer: if it tells the version, so must those that bring the bytes."""

    def change(fields: dict[str, str | None], status: int) -> int:
        fields.update(PROOFS[found])
        return status

    serve = altered(CONTENT, change)
    info = ObjectInfo("key", etag, len(CONTENT), modified_at)
    with serving(_unconditionally(serve), checksums="off") as (_, client):
        opened = client.get_object("bucket", "key", object_info=info)
        if is_fine:
            assert opened.read() == CONTENT
        else:
            with pytest.raises(ProtocolError, match="shows that the answer is of the version"):
                opened.read()


# --- Something else than S3 ------------------------------------------------------------------------------------------


def portal(request: Request, wire: Wire) -> None:
    """Answer everything with a page for people."""
    wire.respond(200, {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}, PORTAL)


def static_portal(request: Request, wire: Wire) -> None:
    """Do so from a file, as a web server does."""
    fields = {"Content-Type": "text/html", "Last-Modified": MONDAY, "ETag": '"5f1e-62a1"', "Accept-Ranges": "bytes"}
    wire.respond(200, fields, PORTAL)


def static_portal_with_ranges(request: Request, wire: Wire) -> None:
    """Do so, and serve ranges."""
    fields = {"Content-Type": "text/html", "Last-Modified": MONDAY, "ETag": '"5f1e-62a1"'}
    serve = serve_object(PORTAL, etag=fields["ETag"])
    serve = altered(PORTAL, lambda told, status: told.update(fields) or (told.pop("x-amz-request-id") and status))
    serve(request, wire)


def plain_portal(request: Request, wire: Wire) -> None:
    """Say it in plain text."""
    wire.respond(200, {"Content-Type": "text/plain"}, b"Please log in.")


def silent(request: Request, wire: Wire) -> None:
    """Say nothing, and that it is fine."""
    wire.respond(200, {})


def page_in_xml(request: Request, wire: Wire) -> None:
    """Answer everything with a page that is well-formed."""
    page = b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body/></html>'
    wire.respond(200, {"Content-Type": "application/xhtml+xml"}, page)


@pytest.mark.parametrize("body", [PORTAL, b"404 page not found", b'{"detail": "Not Found"}', b"<Error>?</Error>"])
@pytest.mark.parametrize("call", ["read", "put", "list", "list uploads", "delete", "copy"])
def test_what_is_missing_elsewhere(call: str, body: bytes):
    """A 404 of something else than S3 is no object that is missing: who believes that begins anew, and overwrites."""

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(404, {"Content-Type": "text/html"}, body)

    with serving(handle) as (_, client):
        with pytest.raises(ProtocolError, match=HINTS) as caught:
            CALLS[call](client)
        assert not isinstance(caught.value, FileNotFoundError)
        assert caught.value.status == 404


@pytest.mark.parametrize(
    ("fields", "body"), [({}, b""), ({"x-amz-request-id": "R"}, PORTAL), ({}, s3_error("NoSuchKey"))]
)
def test_what_is_missing(fields: dict[str, str | None], body: bytes):
    """It is one where S3's error says so, a field of S3's stands beside it, or nothing speaks against it."""

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(404, fields, body)

    with serving(handle) as (_, client), pytest.raises(ObjectNotFoundError):
        client.get_object("bucket", "key").read()


def without_virtual_hosts(request: Request, wire: Wire) -> None:
    """Take the first segment of the path for a bucket, as a server does that is reached by a wildcard name."""
    name = {"PUT": "", "HEAD": "", "DELETE": ""}.get(request.method)
    if name is None:
        root = (
            "ListAllMyBucketsResult"
            if request.path.count("/") == 2 and request.path.endswith("/")
            else "ListBucketResult"
        )
        fields = {"Content-Type": "application/xml", "x-amz-request-id": "R"}
        wire.respond(200, fields, f"<{root}><IsTruncated>false</IsTruncated></{root}>".encode())
    else:
        wire.respond(200, {"Location": "/step-1", "x-amz-request-id": "R"})


def put(client: S3Client) -> None:
    """Store an object by one request."""
    with client.put_object("bucket", "step-1") as writer:
        writer.write(CONTENT)


def put_parts(client: S3Client) -> None:
    """Store an object in parts."""
    with client.put_object("bucket", "step-1") as writer:
        writer.write(LARGE)


CALLS: dict[str, Callable[[S3Client], object]] = {
    "read": lambda client: client.get_object("bucket", "key").read(),
    "read whole": lambda client: client.get_object(
        "bucket", "key", object_info=ObjectInfo("key", "", len(PORTAL), 0)
    ).read(),
    "ranges": lambda client: client.read_ranges("bucket", "key", [(0, 5), (7, 9)], max_gap=0),
    "head": lambda client: client.head_object("bucket", "key"),
    "put": put,
    "put in parts": put_parts,
    "copy": lambda client: client.copy_object("bucket", "a", "bucket", "b"),
    "list": lambda client: list(client.list_objects("bucket")),
    "list uploads": lambda client: client.list_multipart_uploads("bucket"),
    "delete": lambda client: client.delete_object("bucket", "key"),
    "abort": lambda client: client.abort_multipart_upload("bucket", "key", "id"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "handler",
    [portal, static_portal, static_portal_with_ranges, plain_portal, page_in_xml],
    ids=lambda each: each.__name__,
)
def test_pages_for_people(call: str, handler: Handler):
    """A page for people, with a status of success, passes for no answer of S3, and the error says what may answer."""
    with serving(handler) as (server, client):
        with pytest.raises(ProtocolError, match=HINTS) as caught:
            CALLS[call](client)
        assert caught.value.bucket == "bucket"
        assert len(server.requests) <= 6


@pytest.mark.parametrize("call", sorted(set(CALLS) - {"delete", "abort"}))
def test_nothing(call: str):
    """A success that says nothing is believed for what S3 answers so: the end of an object or of an upload."""
    with serving(silent) as (_, client), pytest.raises(ProtocolError, match=HINTS):
        CALLS[call](client)


@pytest.mark.parametrize("call", ["read", "read whole", "ranges", "head", "put", "put in parts", "list", "copy"])
def test_servers_without_virtual_hosts(call: str):
    """A server that takes a key for a bucket has not stored, read or listed anything, and the error says so."""
    with serving(without_virtual_hosts) as (_, client), pytest.raises(ProtocolError, match=HINTS):
        CALLS[call](client)


def test_a_bucket_that_was_made_before():
    """The second attempt at such a server is refused; the error is no riddle."""
    made = fail(409, "BucketAlreadyOwnedByYou")
    with serving(first(1, without_virtual_hosts, made)) as (_, client), pytest.raises(RequestError, match=HINTS):
        put(client)


HTML = b"<html>an object</html>"


@pytest.mark.parametrize(
    "more",
    [
        {"x-amz-request-id": "R"},
        {"x-amz-id-2": "R", "Last-Modified": MONDAY, "ETag": None},
        {"x-goog-hash": "crc32c=AAAAAA=="},
        {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'},
        {"ETag": '"d41d8cd98f00b204e9800998ecf8427e-3"'},
    ],
)
def test_stored_pages(more: dict[str, str | None]):
    """A page of HTML that is stored is read, where the answer shows S3."""

    def change(fields: dict[str, str | None], status: int) -> int:
        fields.pop("x-amz-request-id")
        fields.update({"Content-Type": "text/html", **more})
        return status

    with serving(altered(HTML, change)) as (_, client):
        assert client.get_object("bucket", "key").read() == HTML
        assert client.head_object("bucket", "key").size == len(HTML)


def test_stored_pages_of_a_plain_server():
    """Where nothing shows S3, the ETag that was listed does."""

    def change(fields: dict[str, str | None], status: int) -> int:
        fields.pop("x-amz-request-id")
        fields["Content-Type"] = "text/html"
        return status

    info = ObjectInfo("key", "e", len(HTML), 0)
    with serving(altered(HTML, change)) as (_, client):
        assert client.get_object("bucket", "key", object_info=info).read() == HTML
        with pytest.raises(ProtocolError, match="which nothing shows to be an object"):
            client.get_object("bucket", "key").read()


@pytest.mark.parametrize("call", ["put", "delete", "list", "put in parts", "abort"])
def test_errors_with_a_status_of_success(call: str):
    """S3 may find out that it fails when it has answered 200 already."""
    body = s3_error("InternalError", "Try again.")

    def handle(request: Request, wire: Wire) -> None:
        wire.respond(200, {"ETag": '"e"', "x-amz-request-id": "R"}, body)

    with serving(handle, max_attempts=1) as (_, client), pytest.raises(S3Error, match="InternalError"):
        CALLS[call](client)


# --- Listings --------------------------------------------------------------------------------------------------------


def listing(tokens: Iterator[str], keys: bytes = b"") -> Handler:
    """Return a handler whose every page names another."""

    def handle(request: Request, wire: Wire) -> None:
        token = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{next(tokens)}</NextContinuationToken>"
        wire.respond(200, {}, b"<ListBucketResult>" + token.encode() + keys + b"</ListBucketResult>")

    return handle


ONE = b"<Contents><Key>k</Key><Size>1</Size></Contents>"


def as_stream(endpoint: str, config: S3ClientConfig) -> object:
    """List page by page."""
    client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
    try:
        return list(client.list_objects("bucket"))
    finally:
        client.close()


def as_map(endpoint: str, config: S3ClientConfig) -> object:
    """List into a table, in ranges side by side."""
    dataset = S3MapDataset.from_prefix("s3://bucket/", endpoint=endpoint, region="us-east-1", s3client_config=config)
    return len(dataset)


def as_iterable(endpoint: str, config: S3ClientConfig) -> object:
    """List as samples are read."""
    dataset = S3IterableDataset.from_prefix(
        "s3://bucket/",
        endpoint=endpoint,
        region="us-east-1",
        s3client_config=config,
        transform=lambda reader: reader.key,
    )
    return list(dataset)


@pytest.mark.parametrize("listed", [as_stream, as_map, as_iterable])
@pytest.mark.parametrize(
    ("tokens", "keys", "match"),
    [
        (lambda: iter(lambda: "t", None), ONE, "as one before it"),
        (lambda: iter(lambda: "t", None), b"", "named before"),
        (lambda: (f"t{number}" for number in count()), ONE, "as one before it"),
        (lambda: (f"t{number % 7}" for number in count()), b"", "named before"),
        (lambda: (f"t{number}" for number in count()), b"", "1000 pages of a listing in a row are empty"),
    ],
    ids=["one token", "one token, empty", "fresh tokens", "seven tokens", "empty pages"],
)
def test_listings_without_end(
    listed: Callable[[str, S3ClientConfig], object], tokens: Callable[[], Iterator[str]], keys: bytes, match: str
):
    """A listing that goes round in a circle, or is empty for ever, is an error; the samples do not repeat."""
    config = S3ClientConfig(unsigned=True, max_attempts=2)
    handler = listing(tokens(), keys)
    objects = Objects("bucket", {"k": b"1"})

    def handle(request: Request, wire: Wire) -> None:
        if "list-type" in request.target:
            return handler(request, wire)
        answer = objects.answer(request)
        return wire.respond(answer.status, answer.fields, answer.body)

    with ScriptedServer(handle) as server:
        with pytest.raises(ProtocolError, match=match):
            listed(server.endpoint, config)
        assert len(server.requests) < 1100


def test_a_few_empty_pages():
    """Empty pages before others are no error."""
    pages = iter(range(10))

    def handle(request: Request, wire: Wire) -> None:
        number = next(pages)
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number}</NextContinuationToken>".encode()
        body = more if number < 9 else ONE
        wire.respond(200, {}, b"<ListBucketResult>" + body + b"</ListBucketResult>")

    with serving(handle) as (_, client):
        found = [info.key for page in client.list_objects("bucket") for info in page.object_info]
        assert found == ["k"]
