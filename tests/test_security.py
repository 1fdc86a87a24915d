"""Tests of what a client must not do, whatever the server answers and the caller hands in.

Certificates and TLS, redirects, what reaches the wire, where secrets show, and how much an answer may cost.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import pickle
import re
import resource
import socket
import ssl
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from s3torch import S3Checkpoint, S3ClientConfig, S3IterableDataset, S3MapDataset, S3ReaderConfig
from s3torch._aws.listing import parse_keys, parse_page
from s3torch._aws.session import AwsSession
from s3torch.client import S3Client
from s3torch.datasets import ObjectTable
from s3torch.errors import (
    ArgumentError,
    CertificateError,
    ConfigError,
    ConnectionFailedError,
    CredentialsError,
    ProtocolError,
    S3Error,
)
from tests.support.environment import know_only
from tests.support.server import Handler, Request, ScriptedServer, Wire, fail, s3_error, serve_object, tls_contexts

if TYPE_CHECKING:
    from typing_extensions import Self

MiB = 1024 * 1024
CONTENT = bytes(range(256)) * 100
ACCESS = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMIsecretkey"
TOKEN = "IQoJb3JpZ2luX2VjEsessiontoken"
SIGNATURE = re.compile(r"\b[0-9a-f]{64}\b")
EVIL = ["x\r\nX-Evil: 1", "x\nX-Evil: 1", "x\r", "x\0y", "x\u2028é", "x\x7f", "x\x85"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known credentials, and nothing else from this machine."""
    know_only(monkeypatch, tmp_path, ACCESS_KEY_ID=ACCESS, SECRET_ACCESS_KEY=SECRET, SESSION_TOKEN=TOKEN)


@contextlib.contextmanager
def client_of(endpoint: str, **options: object) -> Iterator[S3Client]:
    """A client that makes one attempt."""
    config = S3ClientConfig(**{"max_attempts": 1, **options})
    client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
    yield client
    client.close()


# Both ways to the server: our own transfers, and the rare calls through botocore.
WAYS: dict[str, Callable[[S3Client], object]] = {
    "transfer": lambda client: client.read_range("bucket", "key", 0),
    "rare call": lambda client: client.delete_object("bucket", "key"),
}
each_way = pytest.mark.parametrize("act", WAYS.values(), ids=WAYS)


def serve(request: Request, wire: Wire) -> None:
    """Serve an object, and say that deleting was done."""
    if request.method == "DELETE":
        wire.respond(204)
    else:
        serve_object(CONTENT)(request, wire)


# --- Certificates and TLS --------------------------------------------------------------------------------------------


@each_way
def test_certificates_are_verified(tmp_path: Path, act: Callable[[S3Client], object]):
    """A server whose authority is unknown gets no request, unless the caller says that certificates do not matter."""
    context, _ = tls_contexts(tmp_path)
    with ScriptedServer(serve, context) as server:
        with client_of(server.endpoint) as client, pytest.raises((CertificateError, ConnectionFailedError)) as caught:
            act(client)
        assert "certificate" in str(caught.value).lower()
        assert server.requests == []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # urllib3's, for not verifying
            with client_of(server.endpoint, verify=False) as client:
                act(client)
        assert len(server.requests) == 1


@each_way
@pytest.mark.parametrize("told_by", ["environment", "profile", "config"])
def test_own_authority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_by: str, act: Callable[[S3Client], object]
):
    """An authority of one's own is named in AWS_CA_BUNDLE, the profile or the configuration."""
    context, authority = tls_contexts(tmp_path)
    if told_by == "environment":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    if told_by == "profile":
        Path(os.environ["AWS_CONFIG_FILE"]).write_text(f"[default]\nca_bundle = {authority}\n")
    options = {"verify": authority} if told_by == "config" else {}
    with ScriptedServer(serve, context) as server, client_of(server.endpoint, **options) as client:
        act(client)
        assert len(server.requests) == 1


@each_way
def test_another_authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, act: Callable[[S3Client], object]):
    """Only the authorities that are named are trusted."""
    context, _ = tls_contexts(tmp_path)
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(other))
    with ScriptedServer(serve, context) as server, client_of(server.endpoint) as client:
        with pytest.raises((CertificateError, ConnectionFailedError)):
            act(client)
        assert server.requests == []


@each_way
def test_certificate_of_another_host(tmp_path: Path, act: Callable[[S3Client], object]):
    """A certificate of another host is refused, though its authority is trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.test").configure_cert(context)
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    with ScriptedServer(serve, context) as server, client_of(server.endpoint, verify=path) as client:
        with pytest.raises((CertificateError, ConnectionFailedError)):
            act(client)
        assert server.requests == []


@pytest.mark.parametrize("verify", [True, False])
def test_oldest_tls(verify: bool):
    """TLS is 1.2 or newer whether certificates are verified or not, and by default they are, with the host's name."""
    context = AwsSession(S3ClientConfig(verify=verify), "us-east-1", None).tls()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (
        (ssl.CERT_REQUIRED, True) if verify else (ssl.CERT_NONE, False)
    )
    assert context.options & ssl.OP_NO_COMPRESSION


@each_way
def test_old_tls_is_refused(tmp_path: Path, act: Callable[[S3Client], object]):
    """A server that speaks no newer TLS than 1.1 gets no request."""
    context, authority = tls_contexts(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        willing = ssl.create_default_context(cafile=str(authority))
        willing.minimum_version = ssl.TLSVersion.TLSv1
        willing.set_ciphers("ALL:@SECLEVEL=0")
    with ScriptedServer(serve, context) as server, client_of(server.endpoint, verify=authority) as client:
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            try:
                willing.wrap_socket(plain, server_hostname="localhost").close()
            except ssl.SSLError:
                pytest.skip("this OpenSSL does not speak TLS 1.1")
        with pytest.raises(ConnectionFailedError):
            act(client)
        assert server.requests == []


# --- Redirects -------------------------------------------------------------------------------------------------------


def _write(client: S3Client, size: int) -> None:
    with client.put_object("bucket", "key") as writer:
        writer.write(bytes(size))


REDIRECTED: dict[str, Callable[[S3Client], object]] = {
    "read": lambda client: client.get_object("bucket", "key").read(),
    "head": lambda client: client.head_object("bucket", "key"),
    "list": lambda client: list(client.list_objects("bucket")),
    "put": lambda client: _write(client, 1),
    "multipart": lambda client: _write(client, 6 * MiB),
    "delete": lambda client: client.delete_object("bucket", "key"),
    "copy": lambda client: client.copy_object("bucket", "key", "bucket", "other"),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # botocore leaves sockets to the collector
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("way", REDIRECTED)
def test_no_redirect_is_followed(status: int, way: str):
    """Where a redirect leads to nothing is sent, credentials least of all: it is an error."""
    with ScriptedServer(serve) as other:

        def redirect(request: Request, wire: Wire) -> None:
            where = {"Location": f"{other.endpoint}{request.target}"}
            fail(status, "TemporaryRedirect" if status == 307 else "PermanentRedirect", headers=where)(request, wire)

        with ScriptedServer(redirect) as server, client_of(server.endpoint, part_size=5 * MiB) as client:
            with pytest.raises(S3Error):
                REDIRECTED[way](client)
            assert server.requests
        assert (other.connections, other.requests) == (0, [])


@pytest.mark.parametrize("region", ["x.evil.test/", "evil.test#", "a@127.0.0.1", "..", "us-east-1\\"])
def test_no_region_leads_elsewhere(region: str):
    """A region that is told by the server can name no other host."""
    refuse = fail(400, "AuthorizationHeaderMalformed", headers={"x-amz-bucket-region": region})
    with ScriptedServer(refuse) as server, client_of(server.endpoint) as client:
        with pytest.raises(S3Error):
            client.read_range("bucket", "key", 0)
        assert client._access.bucket("bucket").region == "us-east-1"
        assert client._access.bucket("bucket").endpoint.origin.port == server.port


# --- What reaches the wire -------------------------------------------------------------------------------------------


class RawServer:
    """Keeps every byte that arrives, and answers each head with 404."""

    def __init__(self) -> None:
        self.received = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join(60)
        self._listener.close()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(10)
                head = b""
                while b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
                    head += piece
                if self._stopping.is_set():
                    return
                if not head:  # nothing could be sent
                    continue
                self.received += head
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _use(place: str, evil: str, endpoint: str) -> None:
    """Do what leads text of a caller's to the wire."""
    region = evil if place == "region" else "us-east-1"
    comments = [evil] if place == "user agent" else []
    config = S3ClientConfig(max_attempts=1, part_size=5 * MiB)
    client = S3Client(region, endpoint=endpoint, user_agent_comments=comments, s3client_config=config)
    key = evil if place == "key" else "key"
    prefix = evil if place == "prefix" else "prefix"
    version = evil if place == "version id" else None
    storage_class = evil if place == "storage class" else None

    def write(size: int) -> None:
        with client.put_object("bucket", key, storage_class) as writer:
            writer.write(b"x" * size)

    for act in (
        lambda: client.get_object("bucket", key, version_id=version).read(),
        lambda: client.head_object("bucket", key, version_id=version),
        lambda: next(client.list_objects("bucket", prefix, prefix[:3])),
        lambda: write(1),
        lambda: write(6 * MiB),
        lambda: client.delete_object("bucket", key),
        lambda: client.copy_object("bucket", key, "bucket", key),
        lambda: client.read_range(evil if place == "bucket" else "bucket", key, 0),
    ):
        with contextlib.suppress(S3Error):
            act()
    client.close()


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize(
    "place", ["key", "prefix", "version id", "user agent", "storage class", "region", "session token", "bucket"]
)
def test_nothing_is_smuggled(monkeypatch: pytest.MonkeyPatch, place: str, evil: str):
    """No CR, LF, NUL or non-ASCII of a caller's reaches the wire: it is encoded, or an S3Error before it is sent."""
    if place == "session token":
        if "\0" in evil:
            pytest.skip("the environment holds no NUL")
        monkeypatch.setenv("AWS_SESSION_TOKEN", evil)
    with RawServer() as server:
        _use(place, evil, server.endpoint)
        received = server.received
    assert not re.search(rb"^X-Evil", received, re.IGNORECASE | re.MULTILINE)
    for line in received.removesuffix(b"\r\n").split(b"\r\n"):
        assert not re.search(rb"[^\x20-\x7e]", line)
    heads = re.findall(rb"^([A-Z]+ .*) HTTP/1.1\r$", received, re.MULTILINE)
    assert all(head.count(b" ") == 1 for head in heads)


@pytest.mark.parametrize("evil", EVIL)
def test_storage_class_is_refused_at_once(evil: str):
    """A storage class that can stand in no header field is refused before anything is written."""
    with client_of("http://127.0.0.1:9") as client, pytest.raises(ArgumentError, match="cannot carry"):
        client.put_object("bucket", "key", evil)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX-Evil: 1", "/\u00e9", "/a\0", "/a\tb"])
def test_endpoint_that_cannot_be_sent(path: str):
    """An endpoint's path is printable ASCII without spaces, or the endpoint is refused."""
    with pytest.raises(ConfigError):
        S3Client(endpoint=f"http://127.0.0.1:9{path}")


# --- Where secrets show ----------------------------------------------------------------------------------------------


def _service(request: Request, wire: Wire) -> None:
    """A small S3: one object, listings, uploads, and what goes wrong by key."""
    key = request.path.rpartition("/")[2]
    if key == "refused":
        echo = f"<StringToSign>AWS4 {request.headers.get('x-amz-security-token')}</StringToSign></Error>"
        body = s3_error("SignatureDoesNotMatch", "does not match").replace(b"</Error>", echo.encode())
        return wire.respond(403, {"x-amz-request-id": "REQUEST"}, body)
    if key == "broken":
        return fail(500, "InternalError", "broken")(request, wire)
    if key == "nonsense":
        return wire.send(b"nonsense\r\n\r\n")
    if key == "gone":
        return wire.close()
    if "list-type=2" in request.target:
        return wire.respond(
            200,
            {},
            b"<ListBucketResult><IsTruncated>false</IsTruncated>"
            b"<Contents><Key>key</Key><Size>25600</Size></Contents></ListBucketResult>",
        )
    if request.method == "POST" and request.target.endswith("?uploads="):
        return wire.respond(
            200, {}, b"<InitiateMultipartUploadResult><UploadId>ID</UploadId></InitiateMultipartUploadResult>"
        )
    if request.method == "POST":
        return wire.respond(200, {}, b"<CompleteMultipartUploadResult/>")
    if request.method == "PUT":
        return wire.respond(
            200, {"ETag": '"e"'}, b"<CopyObjectResult/>" if "copy-source" in str(request.headers) else b""
        )
    if request.method == "DELETE":
        return wire.respond(204)
    return serve_object(CONTENT)(request, wire)


def _first_byte(reader: io.BufferedIOBase) -> bytes:
    return reader.read(1)


def _exercise(client: S3Client, directory: Path) -> tuple[list[object], list[BaseException]]:
    """Use everything; returns the public objects that came by, and the errors."""
    config = client.s3client_config
    readers = [
        client.get_object("bucket", "key", reader_config=kind)
        for kind in (S3ReaderConfig.sequential(), S3ReaderConfig.range_based(1000), S3ReaderConfig.adaptive())
    ]
    for reader in readers:
        reader.read(10)
    mapped = S3MapDataset.from_prefix(
        "s3://bucket/", region="us-east-1", endpoint=client.endpoint, transform=_first_byte, s3client_config=config
    )
    streamed = S3IterableDataset.from_prefix(
        "s3://bucket/", region="us-east-1", endpoint=client.endpoint, transform=_first_byte, s3client_config=config
    )
    assert (mapped[0], list(streamed)) == (CONTENT[:1], [CONTENT[:1]])
    mapped.objects.save(directory / "table")
    checkpoint = S3Checkpoint(region="us-east-1", endpoint=client.endpoint, s3client_config=config)
    with checkpoint.writer("s3://bucket/checkpoint") as small:
        small.write(b"x")
    with client.put_object("bucket", "large") as large:
        large.write(bytes(6 * MiB))
    client.delete_object("bucket", "key")
    with contextlib.suppress(S3Error):
        client.copy_object("bucket", "key", "bucket", "copy")
    page = next(iter(client.list_objects("bucket")))
    things = [client, config, *readers, mapped, streamed, mapped.objects, ObjectTable.load(directory / "table")]
    things += [checkpoint, small, large, client.stats, client.list_objects("bucket"), page]
    things += [client.head_object("bucket", "key"), client._access.engine(), client._access.bucket("bucket")]
    things += [client._access._sessions().credentials()]
    errors: list[BaseException] = []
    for key, act in itertools.product(
        ("refused", "broken", "nonsense", "gone"),
        (
            lambda key: client.get_object("bucket", key).read(),
            lambda key: client.head_object("bucket", key),
            lambda key: client.delete_object("bucket", key),
            lambda key: client.put_object("bucket", key).close(),
        ),
    ):
        with contextlib.suppress(S3Error):
            try:
                act(key)
            except S3Error as error:
                errors.append(error)
                raise
    return things, errors


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_secrets_show_nowhere(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Secret key, session token and signatures are in no log, repr, message, argument, traceback or pickle."""
    root = logging.getLogger()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    caplog.set_level(logging.DEBUG)
    try:
        with ScriptedServer(_service) as server, client_of(server.endpoint, part_size=5 * MiB) as client:
            things, errors = _exercise(client, tmp_path)
            sent = [request.headers.get("authorization", "") for request in server.requests]
            shown = {"log": stream.getvalue(), "output": "".join(capfd.readouterr())}
            shown["repr"] = "\n".join([f"{thing!r} {thing!s}" for thing in things])
            for thing in things:
                with contextlib.suppress(Exception):  # not all of them pickle
                    if type(thing).__name__ != "Credentials":
                        shown[f"pickle of {type(thing).__name__}"] = pickle.dumps(thing).decode("latin-1")
    finally:
        root.removeHandler(handler)
    assert "botocore" in shown["log"]
    assert len(errors) >= 12
    for error in errors:
        name = f"{type(error).__name__} {error.key}"
        shown[f"traceback of {name}"] = "".join(traceback.format_exception(error))
        shown[f"pickle of {name}"] = pickle.dumps(error).decode("latin-1")
        for cause in _chain(error):
            shown[f"{type(cause).__name__} of {name}"] = f"{cause} {cause!r} {cause.args}"
            if isinstance(cause, S3Error):
                shown[f"fields of {name}"] = str(vars(cause))
    signatures = {match[0] for field in sent if (match := SIGNATURE.search(field.partition("Signature=")[2]))}
    assert len(signatures) >= 10
    for where, text in shown.items():
        assert SECRET not in text, where
        assert TOKEN not in text, where
        assert not signatures & set(SIGNATURE.findall(text)), where


def test_others_may_log_what_they_like(caplog: pytest.LogCaptureFixture):
    """What another user of botocore logs in this process is left alone."""
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(serve) as server, client_of(server.endpoint) as client:
        client.delete_object("bucket", "key")
    names = {record.name for record in caplog.records}
    assert "botocore.auth" not in {name for name in names if TOKEN in caplog.text}
    logging.getLogger("botocore.auth").debug("theirs")
    assert "theirs" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is text there")
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"])
@each_way
def test_secret_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch, variable: str, act: Callable[[S3Client], object]):
    """Credentials that are no text are an error that does not show them, nor does anything in its chain."""
    monkeypatch.setenv(variable, os.fsdecode(b"hidden\xff\xfe"))
    with ScriptedServer(serve) as server, client_of(server.endpoint) as client:
        with pytest.raises(CredentialsError) as caught:
            act(client)
        assert server.requests == []
    for error in _chain(caught.value):
        assert "hidden" not in f"{error} {error!r} {error.args} {getattr(error, 'object', '')}"


def test_password_of_an_endpoint(monkeypatch: pytest.MonkeyPatch):
    """An endpoint's URL that holds a password is refused, and the error does not show it."""
    with pytest.raises(ConfigError, match="user name or a password") as caught:
        S3Client(endpoint="https://me:hidden@s3.example.com")
    assert "hidden" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:hidden@s3.example.com")
    with pytest.raises(ConfigError) as caught:
        S3Client("us-east-1")._access.bucket("bucket")
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


# --- What an answer may cost -----------------------------------------------------------------------------------------


def _flood(head: bytes, piece: bytes) -> Handler:
    """Send a head, and then the same bytes until the client has had enough."""

    def handle(request: Request, wire: Wire) -> None:
        wire.send(head)
        while True:
            wire.send(piece)

    return handle


FLOODS = {
    "head without an end": _flood(b"HTTP/1.1 200 OK\r\n", b"A: " + b"x" * 5000 + b"\r\n"),
    "one long field": _flood(b"HTTP/1.1 200 OK\r\nA: ", b"x" * 5000),
    "interim answers": _flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "error without an end": _flood(b"HTTP/1.1 403 Forbidden\r\n\r\n", b"<Error>" * 5000),
    "error in chunks": _flood(
        b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n%s\r\n" % (b"x" * 4096)
    ),
    "huge error": _flood(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 999999999999\r\n\r\n", b"x" * 65536),
    "huge chunk": _flood(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n", b"x" * 65536),
    "page without an end": _flood(b"HTTP/1.1 200 OK\r\n\r\n<ListBucketResult>", b"<a/>" * 20000),
    "trailers": _flood(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 500),
    "chunk extensions": _flood(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n1", b";x" * 5000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_floods(flood: Handler):
    """An answer that does not end is refused within bounds of memory and of computing."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with ScriptedServer(flood) as server, client_of(server.endpoint) as client, pytest.raises(S3Error):
        next(client.list_objects("bucket"))
    assert time.process_time() - began < 20  # of the processor, which others may keep busy, too
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


LAUGHS = '<!ENTITY l0 "lol">' + "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 12))
# Made where they are parsed: all workers collect this, and they are large.
BOMBS: dict[str, Callable[[], bytes]] = {
    "entities": f"<!DOCTYPE l [{LAUGHS}]><ListBucketResult>&l11;</ListBucketResult>".encode,
    "one entity many times": lambda: (
        b'<!DOCTYPE l [<!ENTITY a "' + b"x" * 100_000 + b'">]><l>' + b"&a;" * 100_000 + b"</l>"
    ),
    "depth": lambda: b"<ListBucketResult>" + b"<a>" * 4_000_000,
    "closed depth": lambda: b"<ListBucketResult>" + b"<a>" * 1_000_000 + b"</a>" * 1_000_000 + b"</ListBucketResult>",
    "small elements": lambda: b"<ListBucketResult>" + b"<a/>" * 3_900_000 + b"</ListBucketResult>",
    "objects": lambda: b"<ListBucketResult>" + b"<Contents><Key>k</Key><Size>1</Size></Contents>" * 300_000,
    "attributes": lambda: b"<ListBucketResult" + b"".join(b" a%d=''" % number for number in range(200_000)) + b"/>",
    "namespaces": lambda: b"<l" + b"".join(b" xmlns:a%d='u'" % number for number in range(100_000)) + b"/>",
    "long name": lambda: b"<" + b"a" * 8_000_000 + b"/>",
    "long text": lambda: b"<ListBucketResult>" + b"x" * 15_000_000 + b"</ListBucketResult>",
    "unclosed": lambda: b"<ListBucketResult><Contents><Key>" * 400_000,
}


@pytest.mark.parametrize("parse", [parse_page, parse_keys])
@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_bombs(make: Callable[[], bytes], parse: Callable[[bytes], object]):
    """A page that is made to cost memory and time is refused, or costs little."""
    document = make()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with contextlib.suppress(ProtocolError):
        parse(document)
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_pages_have_a_bound():
    """A page of a listing is refused from 16 MiB on, and the engine goes on with what else it does."""
    body = b"<ListBucketResult>" + b" " * (16 * MiB) + b"</ListBucketResult>"

    def handle(request: Request, wire: Wire) -> None:
        if "list-type" in request.target:
            wire.respond(200, {}, body)
        else:
            serve(request, wire)

    with ScriptedServer(handle) as server, client_of(server.endpoint) as client:
        with pytest.raises(ProtocolError, match="larger than it may be"):
            next(client.list_objects("bucket"))
        assert client.read_range("bucket", "key", 0) == CONTENT


@pytest.mark.parametrize(
    "date",
    [
        "Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Thu, 01 Jan 0001 00:00:00 -0000",
        "Thu, 01 Jan 2026 00:00 +" + "9" * 20,
    ],
)
def test_dates(date: str):
    """A date that cannot be is unknown, and no error of its own."""
    with (
        ScriptedServer(serve_object(CONTENT, headers={"Last-Modified": date})) as server,
        client_of(server.endpoint) as client,
    ):
        assert client.head_object("bucket", "key").size == len(CONTENT)
    skewed = fail(403, "RequestTimeTooSkewed", headers={"Date": date})
    with ScriptedServer(skewed) as server, client_of(server.endpoint) as client, pytest.raises(S3Error):
        client.read_range("bucket", "key", 0)
