"""What errors say of servers, gateways and ports that are none of S3's, and of what they refuse."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._transfer import connection
from s3torch.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    CertificateError,
    ConnectionFailedError,
    CredentialsError,
    ProtocolError,
    RequestError,
    S3Error,
    ServerError,
    ThrottledError,
)
from tests.support.environment import know_only
from tests.support.server import Handler, Request, ScriptedServer, Wire, fail, serve_object, tls_contexts

CONTENT = b"content " * 5000


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known credentials, and nothing else from this machine."""
    know_only(monkeypatch, tmp_path, ACCESS_KEY_ID="ACCESS", SECRET_ACCESS_KEY="SECRET")


def refusal(
    handler: Handler | None = None,
    act: Callable[[S3Client], object] = lambda client: client.read_range("bucket", "key", 0),
    *,
    endpoint: str | None = None,
    **options: object,
) -> S3Error:
    """Return the error of a call that is answered like this."""
    with contextlib.ExitStack() as stack:
        if endpoint is None:
            endpoint = stack.enter_context(ScriptedServer(handler)).endpoint
        config = S3ClientConfig(**{"max_attempts": 1, "hedging": False, **options})
        client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
        with pytest.raises(S3Error) as caught:
            act(client)
        client.close()
        return caught.value


def says(status: int, body: str, **fields: str) -> Handler:
    """Return a handler that answers all requests alike."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return lambda request, wire: wire.respond(status, headers, b"" if request.method == "HEAD" else body.encode())


def put(client: S3Client) -> None:
    """Store a small object."""
    with client.put_object("bucket", "key") as writer:
        writer.write(b"content")


PAGE = "<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"


@pytest.mark.parametrize(
    ("status", "body", "kind", "sentences"),
    [
        (403, "quota exceeded", AccessDeniedError, ["It says 'quota exceeded'."]),
        (400, "no such tenant\n", RequestError, ["refused", "It says 'no such tenant'."]),
        (500, "{'error': 'disk'}", ServerError, ["It says \"{'error': 'disk'}\"."]),
        (503, PAGE.format("Maintenance"), ThrottledError, ["It says 'Maintenance Maintenance'."]),
        (403, PAGE.format("Blocked by policy"), AccessDeniedError, ["Blocked by policy", "port of a console", "proxy"]),
        (405, PAGE.format("Method Not Allowed"), RequestError, ["port of a console", "proxy"]),
        (400, "Client sent an HTTP request to an HTTPS server.\n", RequestError, ["speaks TLS: write https://"]),
        (
            400,
            PAGE.format("400 The plain HTTP request was sent to HTTPS port"),
            RequestError,
            ["speaks TLS: write https://"],
        ),
        (403, "<Error><Code>AccessDenied</Code><Message>No.</Message></Error>", AccessDeniedError, ["(No.)"]),
    ],
)
def test_alien_bodies(status: int, body: str, kind: type[S3Error], sentences: list[str]):
    """What another server says than S3 is quoted, and what that suggests is said."""
    error = refusal(says(status, body))
    assert type(error) is kind
    for sentence in sentences:
        assert sentence in str(error)
    assert ("It says" in str(error)) is ("<Error>" not in body)


def test_no_secret_is_quoted(monkeypatch: pytest.MonkeyPatch):
    """A server that repeats what it was sent makes no error that shows the signature or the session token."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "TOKEN")
    seen: list[str] = []

    def echo(request: Request, wire: Wire) -> None:
        seen[:] = [request.headers["authorization"].rpartition("=")[2]]
        wire.respond(400, {}, "\n".join(f"{name}: {value}" for name, value in request.headers.items()).encode())

    message = str(refusal(echo))
    assert "It says" in message
    for secret in (*seen, "TOKEN", "SECRET"):
        assert secret not in message


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A port that speaks no HTTP."""
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        answer(peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_http_to_a_port_of_tls(tmp_path: Path):
    """HTTP to a port that speaks TLS is said in words, whether it answers by an alert or hangs up."""
    with listening(lambda peer: (peer.recv(65536), peer.sendall(b"\x15\x03\x01\x00\x02\x02\x46"))) as where:
        error = refusal(endpoint=f"http://{where}")
        assert isinstance(error, ProtocolError)
        assert "TLS" in str(error)
        assert "https://" in str(error)
    with listening(lambda peer: peer.recv(65536)) as where:
        error = refusal(endpoint=f"http://{where}")
        assert isinstance(error, ConnectionFailedError)
        assert "If that port speaks TLS, write https://" in str(error)
    context, _ = tls_contexts(tmp_path)
    with ScriptedServer(serve_object(CONTENT), context) as server:
        assert "https://" in str(refusal(endpoint=server.endpoint.replace("https", "http")))


def test_https_to_a_port_of_http():
    """HTTPS to a port that speaks HTTP is said in words."""
    with listening(lambda peer: (peer.recv(65536), peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))) as where:
        error = refusal(endpoint=f"https://{where}")
        assert isinstance(error, ConnectionFailedError)
        assert "does not speak TLS: write http://" in str(error)


def test_gateway_that_compresses():
    """An answer that a gateway has compressed on its way says so, whatever it breaks."""
    packed = gzip.compress(CONTENT)

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "GET":
            fields = {"ETag": '"e"', "Content-Encoding": "gzip", "Content-Length": str(len(packed))}
            fields["Content-Range"] = f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"
            wire.respond(206, fields, packed)
        else:
            serve_object(CONTENT)(request, wire)

    error = refusal(handle, lambda client: client.read_range("bucket", "key", 0, len(CONTENT)))
    assert isinstance(error, ProtocolError)
    assert "Content-Encoding 'gzip'" in str(error)
    assert "gateway" in str(error)


def test_object_that_is_stored_compressed():
    """An object that is stored compressed is read as it is stored."""
    packed = gzip.compress(CONTENT)
    with ScriptedServer(serve_object(packed, headers={"Content-Encoding": "gzip"})) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint)
        assert client.read_range("bucket", "key", 0) == packed
        assert server.requests[0].headers["accept-encoding"] == "identity"
        client.close()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32' received for this API call."),
        (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
        (400, "InvalidRequest", "Checksum Type mismatch occurred"),
        (501, "", ""),
    ],
)
def test_checksums_that_are_refused(status: int, code: str, message: str):
    """A server that refuses the header fields of checksums makes an error that says how to leave them out."""
    error = refusal(fail(status, code, message), put)
    assert isinstance(error, RequestError)
    assert 'S3ClientConfig(checksums="off")' in str(error)
    assert "checksums=" not in str(refusal(fail(status, code, message), put, checksums="off"))


def test_other_refusals_are_not_of_checksums():
    """What has nothing to do with checksums does not speak of them."""
    assert "checksums" not in str(refusal(fail(400, "EntityTooLarge", "Too large."), put))


@pytest.mark.parametrize("act", [put, lambda client: client.head_object("bucket", "key")])
@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"])
def test_unknown_access_key(act: Callable[[S3Client], object], code: str):
    """An access key that the server does not know is no object that is forbidden."""
    error = refusal(says(403, f"<Error><Code>{code}</Code><Message>Unknown.</Message></Error>"), act)
    assert isinstance(error, CredentialsError)
    assert not isinstance(error, PermissionError)
    assert "access key is unknown" in str(error)


# A server without a host name for each bucket


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Buckets stand in front of the host name, and all names lead here."""
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    found = socket.getaddrinfo

    def everywhere(host: str, *rest: object, **more: object) -> list[object]:
        return found("127.0.0.1" if host.endswith(".test") else host, *rest, **more)

    monkeypatch.setattr(connection.socket, "getaddrinfo", everywhere)


def at(server: ScriptedServer) -> str:
    """Return the endpoint of a server that has a name."""
    return server.endpoint.replace("localhost", "s3.test").replace("127.0.0.1", "s3.test")


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize(
    "refuse",
    [
        fail(404, "NoSuchBucket", "The specified bucket does not exist"),
        fail(400, "InvalidBucketName", "The specified bucket is not valid."),
        fail(405, "MethodNotAllowed", "The specified method is not allowed against this resource."),
    ],
)
def test_server_without_names_of_buckets(refuse: Handler):
    """An answer that takes the key for a bucket says how to address it otherwise."""
    with ScriptedServer(refuse) as server:
        error = refusal(endpoint=at(server))
        assert server.requests[0].headers["host"].startswith("bucket.s3.test:")
        assert "S3ClientConfig(force_path_style=True)" in str(error)
        assert "'bucket.s3.test:" in str(error)
        assert "force_path_style" not in str(refusal(endpoint=at(server), force_path_style=True))


@pytest.mark.usefixtures("virtual")
def test_certificate_without_names_of_buckets(tmp_path: Path):
    """A certificate that is for the endpoint and not for the bucket in front of it says the same."""
    from s3torch.testing.faulty.authority import Authority

    authority = Authority(tmp_path)
    context: ssl.SSLContext = authority.context("s3.test")
    with ScriptedServer(serve_object(CONTENT), context) as server:
        error = refusal(endpoint=at(server), verify=authority.path)
        assert isinstance(error, CertificateError)
        assert "S3ClientConfig(force_path_style=True)" in str(error)


@pytest.mark.usefixtures("virtual")
def test_bucket_that_is_not_there_on_aws(monkeypatch: pytest.MonkeyPatch):
    """Of Amazon S3 itself, which has all these names, nothing of the kind is said."""
    error = refusal(endpoint="https://s3.invalid")
    assert "force_path_style=True" in str(error)  # the name cannot be found
    assert isinstance(error, ConnectionFailedError)
    assert not isinstance(error, BucketNotFoundError)
