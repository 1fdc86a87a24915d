"""Every kind of answer to every operation: the outcome is the operation's, or an S3Error; never a hang, never a lie."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch import config as config_module
from s3torch._access import access as access_module
from s3torch._aws.express import PROCESS_SESSIONS
from s3torch._aws.session import AwsSession
from s3torch._aws.sigv4 import Credentials
from s3torch._objects import copying
from s3torch._objects.upload import note_of
from s3torch._transfer.retry import RetryPolicy
from s3torch.errors import S3Error
from s3torch.testing.express import ExpressObjects
from s3torch.testing.faulty.objects import Answer, Objects, error_answer, s3_error
from s3torch.testing.faulty.wire import encode_response
from tests.support.server import Request, ScriptedServer, Wire

PART_SIZE = 64 * 1024  # bytes; S3 wants 5 MiB, which would take most of the time
WATCHDOG = 120.0  # seconds; what is silent takes one
SILENCE = 0.5  # seconds
CONTENT = bytes(range(256)) * 8
NEW = bytes(reversed(range(256))) * 8
LARGE = os.urandom(PART_SIZE + 1000)  # two parts
KEYS = ("a", "b", "c")
PORTAL = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>"
USER = Credentials("USER", "secret")
REGION = "us-west-2"
DIRECTORY = "bucket--usw2-az1--x-s3"
OF_DIRECTORIES = {"CreateSession", "RenameObject", "AppendObject"}
ETAG = {"ETag": '"e"', "Last-Modified": "Mon, 05 Jan 2026 00:00:00 GMT", "x-amz-request-id": "R"}


@pytest.fixture(autouse=True, scope="module")
def no_pauses() -> Iterator[None]:
    """Attempts follow each other at once, and parts may be small."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setattr(config_module, "_MIN_PART_SIZE", PART_SIZE)
        patch.setenv("AWS_ACCESS_KEY_ID", USER.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", USER.secret_key)
        patch.setattr(copying, "_MOST_OF_ONE_REQUEST", 0)  # what CopyObject refuses is copied in two parts
        patch.setattr(copying, "_PART_SIZE", len(CONTENT) // 2)
        patch.setattr(access_module, "AwsSession", functools.cache(AwsSession))
        patch.setattr(access_module, "RetryPolicy", functools.partial(RetryPolicy, base=0.0, cap=0.0))
        yield
    PROCESS_SESSIONS.forget_all()


# --- The operations --------------------------------------------------------------------------------------------------


def name_of(request: Request) -> str:
    """Return which operation of S3's a request is."""
    query = request.target.partition("?")[2]
    if "uploadId=" in query and "x-amz-copy-source" in request.headers:
        return "UploadPartCopy"
    if "uploadId=" in query:
        return {"GET": "ListParts", "PUT": "UploadPart", "POST": "CompleteMultipartUpload"}.get(
            request.method, "AbortMultipartUpload"
        )
    if re.search(r"(^|&)uploads(=|&|$)", query):
        return "CreateMultipartUpload" if request.method == "POST" else "ListMultipartUploads"
    if "list-type" in query:
        return "ListObjectsV2"
    if "x-amz-copy-source" in request.headers:
        return "CopyObject"
    if "x-amz-write-offset-bytes" in request.headers:
        return "AppendObject"
    if re.search(r"(^|&)renameObject(=|&|$)", query):
        return "RenameObject"
    if re.search(r"(^|&)session(=|&|$)", query):
        return "CreateSession"
    if re.search(r"(^|&)attributes(=|&|$)", query):
        return "GetObjectAttributes"
    if "partNumber=" in query and request.method == "HEAD":
        return "HeadPart"
    return {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}[request.method]


class Server:
    """A bucket that answers one operation badly.

    Attributes:
        target: The operation.
        bad: What it does with such a request.
        left: How many of them are still answered badly.
        met: How many were.
        refused: Operations that are refused.
        refusal: How.
    """

    def __init__(self) -> None:
        self.target = ""
        self.bad: Bad = BADS["nothing"]
        self.left = self.met = 0
        self.refused: set[str] = set()
        self.refusal = 403, "AccessDenied"
        self.objects = Objects("bucket")
        self.upload_id = ""

    def prepare(self, target: str, bad: Bad, count: int) -> None:
        """Begin anew, with three objects, and for an operation on uploads with one of one part that was interrupted."""
        contents = dict.fromkeys(KEYS, CONTENT)
        if target in OF_DIRECTORIES:
            PROCESS_SESSIONS.forget_all()
            self.objects = ExpressObjects(DIRECTORY, contents, USER, REGION)
        else:
            self.objects = Objects("bucket", contents)
        self.target, self.bad, self.left, self.met = target, bad, count, 0
        self.refused, self.refusal = set(), (403, "AccessDenied")
        if target == "UploadPartCopy":
            self.refused, self.refusal = {"CopyObject"}, (400, "EntityTooLarge")
        if target not in {"ListParts", "ListMultipartUploads", "AbortMultipartUpload"}:
            return
        begun = self.objects.answer(self._request("POST", "/bucket/resumed?uploads"))
        self.upload_id = re.findall(rb"<UploadId>(.*?)</UploadId>", begun.body)[0].decode()
        part = f"/bucket/resumed?partNumber=1&uploadId={self.upload_id}"
        self.objects.answer(self._request("PUT", part, LARGE[:PART_SIZE]))
        note = note_of({"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"})
        self.objects.answer(self._request("PUT", part.replace("partNumber=1&", "partNumber=10000&"), note))

    def __call__(self, request: Request, wire: Wire) -> None:
        if name_of(request) == self.target and self.left:
            self.left -= 1
            self.met += 1
            self.bad(functools.partial(self.right, request), request, wire)
        else:
            answer = self.right(request)
            wire.respond(answer.status, answer.fields, answer.body)

    def right(self, request: Request) -> Answer:
        """Carry a request out."""
        if name_of(request) in self.refused:
            return error_answer(*self.refusal)
        return self.objects.answer(request)

    @staticmethod
    def _request(method: str, target: str, body: bytes = b"") -> Request:
        return Request(method=method, target=target, headers={}, body=body, connection=0, time=0.0)


@dataclass(frozen=True)
class Operation:
    """What a program does.

    Attributes:
        run: Does it; returns whether the result is right.
        is_whole: Whether the bucket is as it was, or as it is to be.
    """

    run: Callable[[S3Client, Server], bool]
    is_whole: Callable[[Server], bool] = lambda server: dict(server.objects) == dict.fromkeys(KEYS, CONTENT)


def write(client: S3Client, key: str, content: bytes, *, resume: bool = False) -> None:
    """Write an object."""
    with client.put_object("bucket", key, resume=resume) as writer:
        writer.write(content)


def stored(key: str, content: bytes) -> Callable[[Callable[[S3Client], object]], Operation]:
    """Return what makes an operation that stores an object, of what does it."""

    def made(act: Callable[[S3Client], object]) -> Operation:
        def run(client: S3Client, server: Server) -> bool:
            act(client)
            return server.objects.get(key) == content

        return Operation(run, lambda server: server.objects.get(key) in (None, content, CONTENT))

    return made


def delete(client: S3Client, server: Server) -> bool:
    """Delete an object."""
    client.delete_object("bucket", "a")
    return "a" not in server.objects


def abort(client: S3Client, server: Server) -> bool:
    """Abort an upload."""
    client.abort_multipart_upload("bucket", "resumed", server.upload_id)
    return server.objects.uploads == []


def listed(client: S3Client, server: Server) -> bool:
    """List the bucket."""
    found = [(info.key, info.size) for page in client.list_objects("bucket") for info in page.object_info]
    return found == [(key, len(CONTENT)) for key in KEYS]


def uploads(client: S3Client, server: Server) -> bool:
    """List the uploads."""
    return [upload.upload_id for upload in client.list_multipart_uploads("bucket")] == [server.upload_id]


def with_session(client: S3Client, server: Server) -> bool:
    """Read an object of a directory bucket."""
    return client.read_range(DIRECTORY, "a", 0) == CONTENT


def rename(client: S3Client, server: Server) -> bool:
    """Rename an object of a directory bucket."""
    client.rename_object(DIRECTORY, "a", "new")
    return dict(server.objects) == dict.fromkeys(("b", "c", "new"), CONTENT)


def append(client: S3Client, server: Server) -> bool:
    """Append to an object of a directory bucket."""
    client.append_object(DIRECTORY, "a", NEW, offset=len(CONTENT))
    return server.objects["a"] == CONTENT + NEW


def verified(client: S3Client, server: Server, *refused: str) -> bool:
    """Read an object whose checksum is one of parts that nobody guesses."""
    server.refused = set(refused)
    server.objects.store_in_parts("a", [CONTENT[:1], CONTENT[1:4], CONTENT[4:]])
    config = replace(client.s3client_config, checksums="strict")
    strict = S3Client("us-east-1", endpoint=client.endpoint, s3client_config=config)
    try:
        return strict.read_range("bucket", "a", 0) == CONTENT
    finally:
        strict.close()


PUT = stored("new", NEW)(lambda client: write(client, "new", NEW))
PARTS = stored("new", LARGE)(lambda client: write(client, "new", LARGE))
RESUMED = stored("resumed", LARGE)(lambda client: write(client, "resumed", LARGE, resume=True))
OPERATIONS = {
    "GetObject": Operation(lambda client, _: client.get_object("bucket", "a").read() == CONTENT),
    "HeadObject": Operation(lambda client, _: client.head_object("bucket", "a").size == len(CONTENT)),
    "GetObjectAttributes": Operation(verified),
    "HeadPart": Operation(lambda client, server: verified(client, server, "GetObjectAttributes")),
    "ListObjectsV2": Operation(listed),
    "ListMultipartUploads": Operation(uploads),
    "ListParts": RESUMED,
    "PutObject": PUT,
    "CreateMultipartUpload": PARTS,
    "UploadPart": PARTS,
    "CompleteMultipartUpload": PARTS,
    "CopyObject": stored("new", CONTENT)(lambda client: client.copy_object("bucket", "a", "bucket", "new")),
    "DeleteObject": Operation(
        delete, lambda server: dict(server.objects).items() >= dict.fromkeys("bc", CONTENT).items()
    ),
    "AbortMultipartUpload": Operation(abort),
    "UploadPartCopy": stored("new", CONTENT)(lambda client: client.copy_object("bucket", "a", "bucket", "new")),
    "CreateSession": Operation(with_session),
    "RenameObject": Operation(
        rename,
        lambda server: (
            dict(server.objects) in (dict.fromkeys(KEYS, CONTENT), dict.fromkeys(("b", "c", "new"), CONTENT))
        ),
    ),
    "AppendObject": Operation(
        append,
        lambda server: (
            server.objects["a"] in (CONTENT, CONTENT + NEW)
            and dict(server.objects).items() >= dict.fromkeys("bc", CONTENT).items()
        ),
    ),
}


# --- The answers -----------------------------------------------------------------------------------------------------

Bad = Callable[[Callable[[], Answer], Request, Wire], None]


def instead(status: int, fields: dict[str, str | None], body: bytes = b"") -> Bad:
    """Return what answers so, and carries nothing out."""
    return lambda _right, _request, wire: wire.respond(status, fields, body)


def raw(data: bytes, *, is_carried_out: bool = False) -> Bad:
    """Return what sends bytes, and closes the connection."""

    def act(right: Callable[[], Answer], request: Request, wire: Wire) -> None:
        if is_carried_out:
            right()
        wire.send(data)
        wire.close()

    return act


def changed(change: Callable[[Answer], Answer]) -> Bad:
    """Return what answers rightly but for a change."""

    def act(right: Callable[[], Answer], request: Request, wire: Wire) -> None:
        answer = change(right())
        wire.respond(answer.status, answer.fields, answer.body)

    return act


def cut(right: Callable[[], Answer], request: Request, wire: Wire) -> None:
    """Answer rightly, but for the last half of all bytes."""
    answer = right()
    sent = b"".join(encode_response(request.method, answer.status, answer.fields, answer.body))
    wire.send(sent[: len(sent) // 2])
    wire.close()


def bytewise(right: Callable[[], Answer], request: Request, wire: Wire) -> None:
    """Answer rightly, in small pieces."""
    answer = right()
    sent = b"".join(encode_response(request.method, answer.status, answer.fields, answer.body))
    for start in range(0, len(sent), 7):
        wire.send(sent[start : start + 7])


def with_fields(**fields: str | None) -> Bad:
    """Return what answers rightly but for some fields."""
    told = {name.replace("_", "-"): value for name, value in fields.items()}
    return changed(lambda answer: replace(answer, fields={**answer.fields, **told}))


def with_body(change: Callable[[bytes], bytes]) -> Bad:
    """Return what answers rightly but for the body."""
    return changed(lambda answer: replace(answer, body=change(answer.body)))


XML = {"Content-Type": "application/xml", "x-amz-request-id": "R"}
LISTING = b"<ListBucketResult><Contents><Key>x</Key><Size>1</Size></Contents></ListBucketResult>"
BADS: dict[str, Bad] = {
    "nothing": raw(b""),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.7\r\n\r\n"),
    "an old HTTP": raw(b"HTTP/0.9 200 OK\r\n\r\n"),
    "a head without an end": raw(b"HTTP/1.1 200 OK\r\nETag: "),
    "a field without a name": raw(b"HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 0\r\n\r\n"),
    "two lengths": raw(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx'),
    "length and chunks": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "another coding": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx"),
    "a bad chunk": raw(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'),
    "chunks without an end": raw(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n'),
    "interim answers alone": raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 20),
    "a huge head": raw(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: x\r\n" * 10_000 + b"\r\n"),
    "a negative length": raw(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: -1\r\n\r\n'),
    "a length that never comes": raw(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 99999999999\r\n\r\n'),
    "lost": raw(b"", is_carried_out=True),
    "cut": cut,
    "small pieces": bytewise,
    "until the end": lambda right, request, wire: (
        wire.respond(
            (answer := right()).status, {**answer.fields, "Content-Length": None, "Connection": "close"}, answer.body
        ),
        wire.close(),
    )[1],
    "a page": instead(200, {"Content-Type": "text/html"}, PORTAL),
    "a page with an ETag": instead(200, {"Content-Type": "text/html", "ETag": '"5f-1e"'}, PORTAL),
    "a page with the right range": instead(
        206,
        {"Content-Type": "text/html", "ETag": '"5f-1e"', "Content-Range": f"bytes 0-{len(PORTAL) - 1}/{len(PORTAL)}"},
        PORTAL,
    ),
    "a page in XML": instead(200, {"Content-Type": "application/xhtml+xml"}, b"<html><body/></html>"),
    "a page without a type": instead(200, {}, PORTAL),
    "plain text": instead(200, {"Content-Type": "text/plain"}, b"Please log in."),
    "JSON": instead(200, {"Content-Type": "application/json"}, b'{"ok": true}'),
    "a listing": instead(200, XML, LISTING),
    "other buckets": instead(200, XML, b"<ListAllMyBucketsResult/>"),
    "an error with 200": instead(200, XML, s3_error("InternalError")),
    "no XML": instead(200, XML, b"\x00\xff\xfe"),
    "half of a document": instead(200, XML, b"<ListBucketResult><Contents><Key>"),
    "an entity": instead(200, XML, b'<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult>&a;</ListBucketResult>'),
    "a status alone": instead(200, {}),
    "an empty part": instead(206, {"x-amz-request-id": "R"}),
    "a part of nothing": instead(206, {**ETAG, "Content-Range": "bytes 0-4/0"}, b"12345"),
    "another part": instead(206, {**ETAG, "Content-Range": "bytes 5-9/10"}, b"56789"),
    "a redirect": instead(302, {"Location": "http://127.0.0.1:9/login"}),
    "a permanent redirect": instead(308, {"Location": "http://127.0.0.1:9/login"}),
    "not modified": instead(304, {}),
    "a page that is missing": instead(403, {"Content-Type": "text/html"}, PORTAL),
    "a page of a wrong address": instead(404, {"Content-Type": "text/html"}, PORTAL),
    "a router without a backend": instead(404, {"Content-Type": "text/plain"}, b"404 page not found"),
    "no content": instead(204, {"x-amz-request-id": "R"}),
    "an empty part with an ETag": instead(206, {**ETAG, "Content-Length": "0"}),
    "a part without a range": instead(206, ETAG, b"12345"),
    "a gateway's page": instead(502, {"Content-Type": "text/html"}, PORTAL),
    "a status of its own": instead(299, {"Content-Type": "text/html"}, PORTAL),
    "no ETag": with_fields(ETag=None),
    "no version": with_fields(ETag=None, Last_Modified=None),
    "an ETag without quotes": changed(
        lambda answer: replace(answer, fields={**answer.fields, "ETag": (answer.fields.get("ETag") or "x").strip('"')})
    ),
    "a weak ETag": changed(
        lambda answer: replace(
            answer, fields={**answer.fields, "ETag": f"W/{answer.fields.get('ETag') or chr(34) * 2}"}
        )
    ),
    "another status": changed(lambda answer: replace(answer, status=200 if answer.status == 206 else answer.status)),
    "no range": with_fields(Content_Range=None),
    "nonsense for a range": with_fields(Content_Range="bytes */*"),
    "nonsense for a date": with_fields(Last_Modified="yesterday", Date="tomorrow"),
    "a document that is cut": with_body(lambda body: body[: len(body) // 2]),
    "a document that is doubled": with_body(lambda body: body * 2),
    "control characters": with_body(lambda body: body.replace(b">", b">\x01", 3)),
    "a byte too many": with_body(lambda body: body + b"x"),
    "more entries than there are": with_body(
        lambda body: re.sub(rb"<KeyCount>.*?</KeyCount>", b"<KeyCount>999</KeyCount>", body)
    ),
    "entries that are missing": with_body(lambda body: re.sub(rb"<Contents>.*?</Contents>", b"", body, count=1)),
    "the same page again": with_body(
        lambda body: re.sub(
            rb"<IsTruncated>.*?</IsTruncated>",
            b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken><NextKeyMarker>a</NextKeyMarker>"
            b"<NextPartNumberMarker>1</NextPartNumberMarker>",
            body,
        )
    ),
}
# What nothing in the answer shows: another length of an object than it has, another listing, and whose status it is.
LENGTHS = {
    "a byte too many",
    "a document that is cut",
    "a document that is doubled",
    "a length that never comes",
    "control characters",
}
UNNOTICED = {
    ("ListObjectsV2", "a listing"),
    ("DeleteObject", "a status alone"),
    ("AbortMultipartUpload", "a status alone"),
    ("DeleteObject", "no content"),
    ("AbortMultipartUpload", "no content"),
    *(("HeadObject", length) for length in LENGTHS),
}


def outcome(server: Server, endpoint: str, operation: Operation) -> str:
    """Return what comes of an operation: "right", "wrong", or the class of an S3Error."""
    config = S3ClientConfig(
        unsigned=server.target not in OF_DIRECTORIES,
        max_attempts=2,
        part_size=PART_SIZE,
        connect_timeout=2.0,
        first_byte_timeout=SILENCE,
        stall_timeout=SILENCE,
        hedging=False,
    )
    found: list[str] = []
    strange: list[BaseException] = []

    def work() -> None:
        client = S3Client(REGION, endpoint=endpoint, s3client_config=config)
        try:
            found.append("right" if operation.run(client, server) else "wrong")
        except S3Error as error:
            found.append(type(error).__name__)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            strange.append(error)
        finally:
            client.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(WATCHDOG)
    assert not thread.is_alive(), "it hangs"
    if strange:
        raise strange[0]
    return found[0]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Server, str]]:
    """The server, and its endpoint."""
    handler = Server()
    with ScriptedServer(handler) as scripted:
        yield handler, scripted.endpoint


@pytest.mark.parametrize("count", [1, 1_000_000], ids=["once", "always"])
@pytest.mark.parametrize("bad", BADS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_answer(server: tuple[Server, str], name: str, bad: str, count: int):
    """Whatever an operation is answered, its result is right, or an S3Error, and nothing else is touched."""
    handler, endpoint = server
    handler.prepare(name, BADS[bad], count)
    found = outcome(handler, endpoint, OPERATIONS[name])
    assert handler.met >= 1
    if (name, bad) not in UNNOTICED:
        assert found != "wrong"
    assert OPERATIONS[name].is_whole(handler)
