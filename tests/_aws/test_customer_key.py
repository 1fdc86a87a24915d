"""Keys of SSE-C: where they come from, where they are sent, and where not."""

from __future__ import annotations

import base64
import hashlib
import logging
import pickle
import traceback
from pathlib import Path

import pytest

from s3torch import S3Client, S3ClientConfig
from s3torch._aws.customer_key import check_may_carry_key, customer_key_fields, of_source
from s3torch._aws.sigv4 import Credentials
from s3torch._transfer.connection import Origin
from s3torch._transfer.proxy import Proxy
from s3torch.errors import ArgumentTypeError, ConfigError, S3Error
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.objects import operation_of

KEY = bytes(range(100, 132))
PREFIX = "x-amz-server-side-encryption-customer-"
FIELDS = {
    f"{PREFIX}algorithm": "AES256",
    f"{PREFIX}key": base64.b64encode(KEY).decode(),
    f"{PREFIX}key-md5": base64.b64encode(hashlib.md5(KEY).digest()).decode(),
}
SOURCE_FIELDS = {name.replace("x-amz-", "x-amz-copy-source-"): value for name, value in FIELDS.items()}
MiB = 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that holds the key."""
    path = tmp_path / "key"
    path.write_bytes(KEY)
    return path


@pytest.mark.parametrize("content", [KEY, base64.b64encode(KEY), base64.b64encode(KEY) + b"\n"])
def test_files(path: Path, content: bytes):
    """A file holds 32 bytes, or their base64."""
    path.write_bytes(content)
    assert customer_key_fields(path) == FIELDS
    assert of_source(FIELDS) == SOURCE_FIELDS


@pytest.mark.parametrize("content", [b"", b"hidden", b"h" * 31, b"h" * 33, base64.b64encode(b"h" * 31), b"\xff" * 44])
def test_files_that_hold_no_key(path: Path, content: bytes):
    """Any other content is refused, and is not shown."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="must name a file of 32 bytes") as caught:
        customer_key_fields(path)
    assert "hhh" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_no_file(tmp_path: Path):
    """A file that is not there is an error of the configuration, and no FileNotFoundError."""
    with pytest.raises(ConfigError, match="cannot be read: No such file") as caught:
        customer_key_fields(tmp_path / "none")
    assert not isinstance(caught.value, FileNotFoundError)


def test_the_key_itself_is_refused_and_not_shown():
    """Who gives the key instead of its file is told so, without it."""
    with pytest.raises(ArgumentTypeError, match="got bytes") as caught:
        S3ClientConfig(sse_customer_key_file=KEY)
    assert repr(KEY) not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "<Error><Code>InvalidArgument</Code><Message>bad key {key} of {token}</Message></Error>",
        "<Error><Code>{token}</Code><Message>{key}</Message></Error>",
        "<html><td>x-amz-security-token</td><td>{token}</td><td>{key}</td></html>",
        "token {token} and {key} are bad",
    ],
)
@pytest.mark.parametrize("status", [400, 200])
def test_what_a_server_repeats_is_not_shown(path: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: str):
    """Key and token that a server sends back are in no error, wherever they stand in its answer."""
    token = "short-token"
    for name, value in (("ACCESS_KEY_ID", "AK"), ("SECRET_ACCESS_KEY", "SK"), ("SESSION_TOKEN", token)):
        monkeypatch.setenv(f"AWS_{name}", value)
    key = base64.b64encode(KEY).decode()
    answer = body.format(key=key, token=token).encode()
    with ScriptedServer(lambda _, wire: wire.respond(status, {}, answer)) as server:
        config = S3ClientConfig(sse_customer_key_file=path, max_attempts=1)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        for call in (
            lambda: client.read_range("bucket", "key", 0),
            lambda: client.delete_object("bucket", "key"),
            lambda: client.copy_object("bucket", "key", "bucket", "copy"),
            lambda: list(client.list_objects("bucket")),
        ):
            with pytest.raises(S3Error) as caught:
                call()
            said = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            assert key not in said
            assert token not in said
        client.close()


def test_a_token_that_was_replaced_is_not_shown_either(monkeypatch: pytest.MonkeyPatch):
    """The answer to a request may come after the next one was signed with another token."""
    tokens = iter(["first-token", "second-token"])
    client = S3Client("us-east-1", endpoint="http://127.0.0.1:9")
    session = client._access._sessions()
    monkeypatch.setattr(session, "credentials", lambda: Credentials("AK", "SK", next(tokens)))
    bucket = client._access.bucket("bucket")
    for payload in ("a", "b"):
        bucket.request_head("GET", "key", {}, {}, payload_sha256=payload)
    assert bucket.secrets == ["first-token", "second-token"]


def test_the_key_in_the_place_of_its_path():
    """Who gives the key's base64 instead of its file is told so, without it."""
    text = base64.b64encode(KEY).decode()
    assert text not in repr(S3ClientConfig(sse_customer_key_file=text))
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        customer_key_fields(text)
    assert text not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        (Origin("https", "s3.example.com", 443), True),
        (Origin("http", "127.0.0.1", 9000), True),
        (Origin("http", "::1", 9000), True),
        (Origin("http", "localhost", 9000), True),
        (Origin("http", "bucket.localhost", 9000), True),
        (Origin("http", "10.0.0.1", 9000), False),
        (Origin("http", "s3.example.com", 80), False),
        (Origin("http", "localhost.example.com", 80), False),
        (Origin("http", "127.0.0.1.example.com", 80), False),
    ],
)
def test_where_it_may_be_sent(origin: Origin, may: bool):
    """Over plain HTTP a key does not leave the machine."""
    if may:
        check_may_carry_key(origin)
    else:
        with pytest.raises(ConfigError, match="https endpoint"):
            check_may_carry_key(origin)


def test_not_through_a_proxy():
    """A proxy for plain HTTP reads what it passes on, also to this machine; through a tunnel it does not."""
    proxy = Proxy("192.0.2.1", 3128)
    check_may_carry_key(Origin("https", "s3.example.com", 443), proxy)
    with pytest.raises(ConfigError, match="over plain HTTP"):
        check_may_carry_key(Origin("http", "localhost", 9000), proxy)


def test_a_client_with_a_proxy(path: Path):
    """A client with a key sends nothing through a proxy that could read it."""
    config = S3ClientConfig(unsigned=True, sse_customer_key_file=path, proxies={"http": "http://192.0.2.1:3128"})
    client = S3Client("us-east-1", endpoint="http://127.0.0.1:9000", s3client_config=config)
    with pytest.raises(ConfigError, match="over plain HTTP"):
        client.read_range("bucket", "key", 0)


def test_plain_http_is_refused(path: Path):
    """A client with a key sends nothing over plain HTTP to another machine."""
    config = S3ClientConfig(unsigned=True, sse_customer_key_file=path)
    client = S3Client("us-east-1", endpoint="http://192.0.2.1:9000", s3client_config=config)
    with pytest.raises(ConfigError, match="over plain HTTP"):
        client.read_range("bucket", "key", 0)


def test_which_requests_carry_it(path: Path):
    """What is about an object's bytes carries the key, nothing else does; copies tell it for both objects."""
    with FaultyServer({"key": bytes(1000)}) as server:
        config = S3ClientConfig(unsigned=True, part_size=5 * MiB, sse_customer_key_file=path)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        client.read_range("bucket", "key", 0, 10)
        client.head_object("bucket", "key")
        for size in (1, 6 * MiB):
            with client.put_object("bucket", "new") as writer:
                writer.write(bytes(size))
        client.copy_object("bucket", "key", "bucket", "copy")
        list(client.list_objects("bucket"))
        client.list_multipart_uploads("bucket")
        client.delete_object("bucket", "key")
        client.close()
        seen = {operation_of(request): request.headers for request in server.requests}
    expected = {
        **dict.fromkeys(("GetObject", "HeadObject", "PutObject", "CreateMultipartUpload"), FIELDS),
        **dict.fromkeys(("UploadPart", "CompleteMultipartUpload"), FIELDS),
        **{name: {} for name in ("ListObjectsV2", "ListMultipartUploads", "DeleteObject")},
        "CopyObject": {**FIELDS, **SOURCE_FIELDS},
    }
    told = {
        operation: {name: value for name, value in headers.items() if "-customer-" in name}
        for operation, headers in seen.items()
    }
    assert told == expected


def test_it_is_shown_nowhere(path: Path, caplog: pytest.LogCaptureFixture):
    """Neither pickles, nor what is printed, nor the log, nor an error hold the key."""
    caplog.set_level(logging.DEBUG)
    encoded = FIELDS[f"{PREFIX}key"]
    with FaultyServer({"key": bytes(1000)}) as server:
        config = S3ClientConfig(unsigned=True, sse_customer_key_file=path, max_attempts=1)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        server.script(faults.status(403, "AccessDenied"))
        with pytest.raises(PermissionError) as caught:
            client.read_range("bucket", "key", 0, 10)
        reader = client.get_object("bucket", "key")
        assert reader.read(4) == bytes(4)
        shown = [repr(thing) for thing in (client, config, reader, client._access.bucket("bucket"), client.stats)]
        shown += traceback.format_exception(caught.value)
        shown += [caplog.text, repr(client._access.engine())]
        assert not [text for text in shown if encoded in text or repr(KEY) in text]
        pickled = pickle.dumps(client)
        assert KEY not in pickled
        assert encoded.encode() not in pickled
        other = pickle.loads(pickled)
        assert other.read_range("bucket", "key", 0, 4) == bytes(4)
        other.close()
        client.close()
