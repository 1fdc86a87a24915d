"""S3Client against a real server."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from s3torch import S3Client, S3ClientConfig, S3ReaderConfig, S3Writer
from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.errors import (
    AccessDeniedError,
    ArgumentError,
    ArgumentTypeError,
    BucketNotFoundError,
    ConfigError,
    ConnectionFailedError,
    CredentialsError,
    ObjectChangedError,
    ObjectNotFoundError,
)

MiB = 1024 * 1024
CONTENT = random.Random(0).randbytes(1000)

# All that SeaweedFS keeps as it is; a\b, /lead, trail/ and segments of dots it does not.
ODD_KEYS = [
    " ",
    " a ",
    "a b",
    "a+b",
    "a%20b",
    "a%2Fb",
    "%",
    "%zz",
    "a?versionId=b&c",
    "a#b",
    "a;b:c,d@e=f",
    "a'b\"c",
    "(a)!*~-_.",
    "[x]{y}|^`$(z)",
    "<Key>&amp;",
    "a\tb\nc\rd\x01e\x7f",
    "...",
    "..a/a..b",
    "é",
    "e\u0301",
    "日本/🦜",
    "a\u200bb",
    "k" * 255,
    "/".join(["k" * 200] * 4),
]


def _listed(client: S3Client, bucket: str, *arguments: object) -> list[str]:
    return [info.key for page in client.list_objects(bucket, *arguments) for info in page.object_info]


# --- Objects ---------------------------------------------------------------------------------------------------------


def test_what_is_put_is_got(client, bucket, key, put):
    """An object reads back as it was written, and a second one takes the first one's place."""
    for content in (CONTENT, b"other", b""):
        put(key, content)
        assert client.get_object(bucket, key).read() == content
        assert client.read_range(bucket, key, 0) == content


@pytest.mark.parametrize("odd", ODD_KEYS)
def test_odd_keys(client, bucket, prefix, odd):
    """A key is any text: it is written, read, looked at, listed, copied and deleted under the very same name."""
    key, copy = prefix + odd, f"{prefix}copy/{odd}"
    with client.put_object(bucket, key) as writer:
        writer.write(odd.encode())
    assert client.read_range(bucket, key, 0) == odd.encode()
    assert client.head_object(bucket, key).size == len(odd.encode())
    client.copy_object(bucket, key, bucket, copy)
    assert client.read_range(bucket, copy, 0) == odd.encode()
    assert set(_listed(client, bucket, prefix)) == {key, copy}
    assert _listed(client, bucket, key) == [key]
    client.delete_object(bucket, key)
    assert _listed(client, bucket, prefix) == [copy]


def test_head(client, bucket, key, put):
    """A HEAD tells size, ETag, age and storage class."""
    put(key, CONTENT)
    found = client.head_object(bucket, key)
    (listed,) = next(client.list_objects(bucket, key)).object_info
    assert found == HeadObjectResult(listed.etag, 1000, found.last_modified, None, None)
    assert found.etag.startswith('"')
    assert abs(found.last_modified - listed.last_modified) <= 1
    assert listed == ObjectInfo(key, found.etag, 1000, listed.last_modified, "STANDARD")


def test_facts_of_a_programs_own(client, bucket, key, put):
    """Any object with a size and an ETag says what is known of an object, and pins its version."""
    put(key, CONTENT)
    head = client.head_object(bucket, key)
    facts = SimpleNamespace(size=np.int64(head.size), etag=head.etag)
    assert client.get_object(bucket, key, object_info=facts).read() == CONTENT
    put(key, CONTENT[:-1] + b"x")
    with pytest.raises(ObjectChangedError):
        client.get_object(bucket, key, object_info=facts).read()
    assert client.get_object(bucket, key, object_info=SimpleNamespace(size=head.size, etag=None)).read(1) == CONTENT[:1]
    with pytest.raises(ArgumentError, match="size of object_info is negative: -1"):
        client.get_object(bucket, key, object_info=SimpleNamespace(size=-1, etag=head.etag))


@pytest.mark.parametrize("size", [10, 9 * MiB])
def test_storage_class(client, bucket, key, size):
    """An object gets the storage class that was asked for, whether it is put whole or in parts."""
    with client.put_object(bucket, key, "STANDARD_IA") as writer:
        writer.write(bytes(size))
    assert client.head_object(bucket, key).storage_class == "STANDARD_IA"


def test_delete(client, bucket, key, put):
    """A deleted object is gone; deleting what is not there is no error."""
    put(key, CONTENT)
    for _ in range(2):
        client.delete_object(bucket, key)
        with pytest.raises(ObjectNotFoundError):
            client.head_object(bucket, key)


def test_copy(client, bucket, prefix, put):
    """A copy has the content of its source and replaces what was there."""
    put(f"{prefix}from", CONTENT)
    put(f"{prefix}to", b"old")
    client.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to")
    assert client.read_range(bucket, f"{prefix}to", 0) == client.read_range(bucket, f"{prefix}from", 0) == CONTENT


def test_copy_of_what_is_not_there(client, bucket, prefix):
    """The error of a copy names the source that is missing."""
    with pytest.raises(ObjectNotFoundError, match=f"s3://{bucket}/{prefix}from"):
        client.copy_object(bucket, f"{prefix}from", bucket, f"{prefix}to")


def test_versions(boto, s3, client):
    """A version is read and looked at by its id; without one it is the newest."""
    s3.create_bucket("versions")
    boto.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    contents = {}
    for content in (b"first", b"second one", b"3"):
        with client.put_object("versions", "key") as writer:
            writer.write(content)
        contents[client.head_object("versions", "key").version_id] = content
    assert len(contents) == 3
    for version_id, content in contents.items():
        assert client.head_object("versions", "key", version_id=version_id).size == len(content)
        for config in (S3ReaderConfig.sequential(), S3ReaderConfig.range_based()):
            reader = client.get_object("versions", "key", version_id=version_id, reader_config=config)
            assert reader.size == len(content)
            assert reader.read() == content
    assert client.read_range("versions", "key", 0) == b"3"
    with pytest.raises(ObjectNotFoundError, match="s3://versions/key"):
        client.get_object("versions", "key", version_id="00000000000000000000000000000000").read()


# --- read_range ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        *[(0, None), (0, 1000), (0, 1), (999, 1000), (10, 10), (0, 0), (500, None), (999, 5000), (0, 2**62), (3, 997)],
        *[(1000, None), (1000, 1001), (5000, None), (5000, 6000), (2**62, 2**62 + 1), (np.int64(5), np.uint16(50))],
    ],
)
def test_read_range(client, bucket, key, put, start, stop):
    """A range is a slice: what lies beyond the end is left out, as bytes and in given memory."""
    put(key, CONTENT)
    expected = CONTENT[start:stop]
    assert client.read_range(bucket, key, start, stop) == expected
    memory = bytearray(b"x" * 1200)
    if stop is None or stop - start <= 1200:
        assert client.read_range(bucket, key, start, stop, memory) == len(expected)
        assert memory == expected + b"x" * (1200 - len(expected))


def test_read_range_of_an_empty_object(client, bucket, key, put):
    """An object of 0 bytes has no ranges but empty ones."""
    put(key, b"")
    for start, stop in ((0, None), (0, 0), (0, 10), (5, 10), (5, None)):
        assert client.read_range(bucket, key, start, stop) == b""
        assert client.read_range(bucket, key, start, stop, bytearray(10)) == 0


def test_read_range_into_as_much_as_there_is_room(client, bucket, key, put):
    """Without a stop, as much is read as the memory holds; with one, the memory may be larger."""
    put(key, CONTENT)
    memory = np.zeros((5, 10), np.int16)
    assert client.read_range(bucket, key, 7, None, memory) == 100
    assert memory.tobytes() == CONTENT[7:107]
    assert client.read_range(bucket, key, 0, 4, memory) == 4
    assert memory.tobytes() == CONTENT[:4] + CONTENT[11:107]
    assert client.read_range(bucket, key, 0, None, np.zeros((0, 4))) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.complex128, ">u2", [("a", "i1"), ("b", "f8")]])
def test_read_range_into_any_type(client, bucket, key, put, dtype):
    """Memory is filled whatever the type of its items."""
    put(key, CONTENT)
    memory = np.zeros(9, dtype)
    assert client.read_range(bucket, key, 100, 100 + memory.nbytes, memory) == memory.nbytes
    assert memory.tobytes() == CONTENT[100 : 100 + memory.nbytes]


def test_read_range_in_parts(client, small_parts, bucket, large, traffic):
    """A large range comes in parallel parts, straight into the given memory, wherever it begins and ends."""
    key, content = large
    memory = bytearray(20 * MiB)
    for start in (0, 12_345_678, 50 * MiB):
        traffic.restart()
        count = client.read_range(bucket, key, start, start + 20 * MiB, memory)
        assert count == min(20 * MiB, 64 * MiB - start)
        assert memory[:count] == content[start : start + count]
        assert traffic.requests == -(-count // (4 * MiB))
        assert small_parts.read_range(bucket, key, start, start + 20 * MiB) == content[start : start + 20 * MiB]


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (-5, -1), (0, -1), (5, 4)])
def test_a_range_is_not_negative(client, bucket, traffic, start, stop):
    """A negative or backward range is refused with both its numbers, before any request."""
    for into in (None, bytearray(10)):
        with pytest.raises(ArgumentError, match=rf"\[{start}, {stop}\)"):
            client.read_range(bucket, "key", start, stop, into)
    assert traffic.requests == 0


@pytest.mark.parametrize(
    ("into", "error", "why"),
    [
        (bytearray(9), ArgumentError, r"9 bytes, and the range \[0, 10\) 10"),
        (bytearray(), ArgumentError, "0 bytes"),
        (b"x" * 10, ArgumentTypeError, "bytes is read-only"),
        (np.zeros(20)[::2], ArgumentError, "C-contiguous"),
        ("x" * 10, ArgumentTypeError, "got str"),
        (10, ArgumentTypeError, "got int"),
    ],
    ids=["small", "empty", "read-only", "gaps", "str", "int"],
)
def test_memory_that_cannot_be_filled(client, bucket, traffic, into, error, why):
    """Memory that is too small, read-only, with gaps or none at all is refused before any request."""
    with pytest.raises(error, match=why):
        client.read_range(bucket, "key", 0, 10, into)
    assert traffic.requests == 0


# --- Listing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(small_parts, bucket) -> list[str]:
    """The keys of more objects than one page of a listing holds, in the order of a listing."""
    keys = [f"many/{number:04}" for number in range(1003)]
    for key in keys:
        with small_parts.put_object(bucket, key) as writer:
            writer.write(b"")
    return keys


def test_list_more_than_a_page(client, bucket, many, traffic):
    """A listing goes on from page to page until all keys came, each once and in their order."""
    pages = client.list_objects(bucket, "many/")
    assert repr(pages) == f"<ListObjectStream s3://{bucket}/many/ more to come>"
    first = next(pages)
    assert [info.key for info in first.object_info] == many[:1000]
    assert (pages.complete, pages.continuation_token) == (False, first.continuation_token)
    assert traffic.requests == 1
    second = next(pages)
    assert [info.key for info in second.object_info] == many[1000:]
    assert (pages.complete, pages.continuation_token, second.continuation_token) == (True, None, None)
    assert repr(pages) == f"<ListObjectStream s3://{bucket}/many/ complete>"
    assert list(pages) == []
    assert traffic.requests == 2


@pytest.mark.parametrize(("max_keys", "sizes"), [(1, [1] * 9), (4, [4, 4, 1]), (9, [9]), (1000, [9])])
def test_list_in_pages(client, bucket, prefix, put, max_keys, sizes):
    """A page has at most ``max_keys`` keys, and there are no more pages than it takes."""
    keys = [f"{prefix}{number}" for number in range(9)]
    for key in reversed(keys):
        put(key, key.encode())
    pages = list(client.list_objects(bucket, prefix, max_keys=max_keys))
    assert [len(page.object_info) for page in pages if page.object_info] == sizes
    assert [info.key for page in pages for info in page.object_info] == keys
    assert {info.size for page in pages for info in page.object_info} == {len(keys[0])}


def test_list_prefix_and_delimiter(client, bucket, prefix, put):
    """A prefix is a string, not a directory; a delimiter groups what comes behind it."""
    for name in ("a", "ab/1", "ab/2", "ab/c/3", "b"):
        put(prefix + name, b"x")
    assert _listed(client, bucket, f"{prefix}a") == [prefix + name for name in ("a", "ab/1", "ab/2", "ab/c/3")]
    assert _listed(client, bucket, f"{prefix}z") == []
    (page,) = client.list_objects(bucket, prefix, "/")
    assert [info.key for info in page.object_info] == [f"{prefix}a", f"{prefix}b"]
    assert page.common_prefixes == [f"{prefix}ab/"]
    (page,) = client.list_objects(bucket, f"{prefix}ab/", "/")
    assert page.common_prefixes == [f"{prefix}ab/c/"]


def test_list_everything(client, bucket, key, put):
    """Without a prefix all of the bucket is listed."""
    put(key, b"x")
    assert key in _listed(client, bucket)


@pytest.mark.parametrize("max_keys", [0, -1, 1001])
def test_a_page_has_1_to_1000_keys(client, bucket, max_keys):
    """A size of a page that S3 does not have is refused at once."""
    with pytest.raises(ArgumentError, match=f"max_keys={max_keys} is out of range"):
        client.list_objects(bucket, max_keys=max_keys)


# --- What is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["head_object", "read_range", "get_object"])
def test_missing_key(client, server, bucket, key, call):
    """A missing object is named with its bucket, its key, the server, and what to do."""
    with pytest.raises(ObjectNotFoundError) as caught:
        _call(client, call, bucket, key)
    error = caught.value
    assert str(error).startswith(f"s3://{bucket}/{key} does not exist at {server.endpoint}. Keys are case-sensitive;")
    assert (error.bucket, error.key, error.status, error.attempts) == (bucket, key, 404, 1)
    assert error.request_id


@pytest.mark.parametrize("call", ["read_range", "get_object", "delete_object"])
def test_missing_bucket(client, call):
    """A missing bucket is named as such, with what to do."""
    with pytest.raises(BucketNotFoundError, match="Check its name, the endpoint and the account") as caught:
        _call(client, call, "no-such-bucket", "key")
    assert str(caught.value).startswith("Bucket 'no-such-bucket' of s3://no-such-bucket/key does not exist at http")
    assert (caught.value.bucket, caught.value.key, caught.value.code) == ("no-such-bucket", "key", "NoSuchBucket")


def test_list_a_missing_bucket(client):
    """A listing of a bucket that does not exist fails at its first page."""
    pages = client.list_objects("no-such-bucket")
    for _ in range(2):
        with pytest.raises(BucketNotFoundError, match="Bucket 'no-such-bucket' of s3://no-such-bucket does not exist"):
            next(pages)


def _call(client: S3Client, name: str, bucket: str, key: str) -> None:
    if name == "read_range":
        client.read_range(bucket, key, 0)
    elif name == "get_object":
        client.get_object(bucket, key).read()
    elif name == "put_object":
        client.put_object(bucket, key).close()
    elif name == "copy from":
        client.copy_object(bucket, key, "tests", "key")
    elif name == "copy to":
        client.copy_object("tests", "key", bucket, key)
    else:
        getattr(client, name)(bucket, key)


# --- Who asks --------------------------------------------------------------------------------------------------------


def test_a_wrong_secret(s3, bucket, monkeypatch):
    """A secret that does not fit is a CredentialsError with the remedy, for HEAD too, whose answer gives no reason."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    client = S3Client()
    for call in ("get_object", "read_range", "put_object", "delete_object"):
        with pytest.raises(CredentialsError, match=rf"s3://{bucket}/key.*Check AWS_ACCESS_KEY_ID") as caught:
            _call(client, call, bucket, "key")
        assert (caught.value.status, caught.value.code) == (403, "SignatureDoesNotMatch")
        assert "wrong-secret" not in str(caught.value)
    with pytest.raises(CredentialsError, match=f"s3://{bucket}"):
        next(client.list_objects(bucket))
    with pytest.raises(CredentialsError, match="the secret key does not fit"):
        client.head_object(bucket, "key")


def test_an_unknown_access_key(s3, bucket, monkeypatch):
    """An access key that the server does not know is a CredentialsError that says so."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "UNKNOWN")
    with pytest.raises(CredentialsError, match="the access key is unknown there"):
        S3Client().read_range(bucket, "key", 0)


def test_no_credentials(s3, bucket, monkeypatch):
    """Where no credentials are to be found, that is the error, for hot and for rare calls, and nothing is sent."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    client = S3Client()
    for call in ("read_range", "delete_object"):
        with pytest.raises(CredentialsError, match=r"No credentials were found.*AWS_PROFILE"):
            _call(client, call, bucket, "key")
    assert client.stats.requests == 0


def test_unsigned(s3, bucket):
    """Without a signature a bucket that is not public refuses."""
    client = S3Client(s3client_config=S3ClientConfig(unsigned=True))
    for call in ("read_range", "head_object", "delete_object"):
        with pytest.raises(AccessDeniedError, match="forbidden") as caught:
            _call(client, call, bucket, "key")
        assert isinstance(caught.value, PermissionError)


# --- Where it is -----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(s3, monkeypatch):
    """The environment has credentials for the server, and says neither region nor endpoint."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name)
    return s3


def test_region(elsewhere, monkeypatch, tmp_path):
    """The region is the given one, or AWS_REGION, AWS_DEFAULT_REGION, the profile's, or one to begin with."""
    assert S3Client().region == "us-east-1"
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-north-1\n[profile other]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert S3Client().region == "eu-north-1"
    assert S3Client(s3client_config=S3ClientConfig(profile="other")).region == "eu-west-3"
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert S3Client().region == "eu-west-3"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert S3Client().region == "ap-south-1"
    monkeypatch.setenv("AWS_REGION", "sa-east-1")
    assert S3Client().region == "sa-east-1"
    assert S3Client("af-south-1").region == "af-south-1"


def test_endpoint(elsewhere, bucket, monkeypatch, tmp_path, key, put):
    """The endpoint is the given one, or AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or the profile's, in this order."""
    put(key, CONTENT)
    nowhere = "http://127.0.0.1:9"
    profile = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))

    def reads(**arguments: str) -> bool:
        client = S3Client(s3client_config=S3ClientConfig(max_attempts=1), **arguments)
        assert urlsplit(str(client._access.bucket(bucket).endpoint.origin)).port in (
            9,
            urlsplit(elsewhere.endpoint).port,
        )
        try:
            return client.read_range(bucket, key, 0) == CONTENT
        except ConnectionFailedError:
            return False

    profile.write_text(f"[default]\nendpoint_url = {elsewhere.endpoint}\n")
    assert reads()
    profile.write_text(f"[default]\nendpoint_url = {nowhere}\n")
    assert not reads()
    monkeypatch.setenv("AWS_ENDPOINT_URL", elsewhere.endpoint)
    assert reads()
    monkeypatch.setenv("AWS_ENDPOINT_URL", nowhere)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", elsewhere.endpoint)
    assert reads()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", nowhere)
    assert not reads()
    assert reads(endpoint=elsewhere.endpoint)
    assert reads(endpoint=f"{elsewhere.endpoint}/")


def test_profile(elsewhere, bucket, monkeypatch, tmp_path, key, put):
    """A profile brings credentials, region and endpoint, whatever the environment says of another's."""
    put(key, CONTENT)
    config, credentials = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile local]\nregion = us-east-1\nendpoint_url = {elsewhere.endpoint}\n")
    credentials.write_text(
        f"[local]\naws_access_key_id = {elsewhere.access_key}\naws_secret_access_key = {elsewhere.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    client = S3Client(s3client_config=S3ClientConfig(profile="local"))
    assert client.read_range(bucket, key, 0) == CONTENT
    client.delete_object(bucket, key)
    with pytest.raises(ObjectNotFoundError):
        client.read_range(bucket, key, 0)


def test_an_unknown_profile(s3, bucket):
    """A profile that does not exist is named, by the first call that needs it."""
    client = S3Client(s3client_config=S3ClientConfig(profile="no-such-profile"))
    for call in ("read_range", "delete_object"):
        with pytest.raises(ConfigError, match=r"no profile 'no-such-profile'.*AWS_CONFIG_FILE"):
            _call(client, call, bucket, "key")


@pytest.mark.parametrize("call", ["read_range", "head_object", "put_object", "delete_object", "copy to"])
def test_nobody_listens(s3, bucket, call):
    """A server that is not there is a ConnectionFailedError that names the object and where it was sought."""
    client = S3Client(endpoint="http://127.0.0.1:9", s3client_config=S3ClientConfig(max_attempts=1))
    with pytest.raises(ConnectionFailedError, match=rf"s3://{bucket}/key.* http://127\.0\.0\.1:9") as caught:
        _call(client, call, bucket, "key")
    assert isinstance(caught.value, ConnectionError)
    assert (caught.value.bucket, caught.value.key) == (bucket, "key")


# --- Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"region": 5}, "region"),
        ({"endpoint": 5}, "endpoint"),
        ({"endpoint": b"http://127.0.0.1:9"}, "endpoint"),
        ({"s3client_config": {}}, "s3client_config"),
        ({"s3client_config": S3ReaderConfig()}, "s3client_config"),
        ({"user_agent_comments": "md/a"}, "user_agent_comments"),
        ({"user_agent_comments": [5]}, "user_agent_comments"),
    ],
)
def test_wrong_types_of_a_client(arguments, name):
    """An argument of a wrong type is refused at construction, by name and value."""
    with pytest.raises(ArgumentTypeError, match=rf"{name} .* got ") as caught:
        S3Client(**arguments)
    assert repr(arguments[name]) in str(caught.value)


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:9", "ftp://host", "http://", "http://host?a=b", "http://h:99999"])
def test_no_endpoint(endpoint):
    """An endpoint that is no http or https URL is refused at construction."""
    with pytest.raises(ConfigError, match="The endpoint"):
        S3Client(endpoint=endpoint)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda client: client.get_object(5, "key"), "bucket"),
        (lambda client: client.get_object("tests", None), "key"),
        (lambda client: client.get_object("tests", b"key"), "key"),
        (lambda client: client.get_object("tests", "key", object_info=5), "object_info"),
        (lambda client: client.get_object("tests", "key", object_info=SimpleNamespace(size=5)), "object_info"),
        (
            lambda client: client.get_object("tests", "key", object_info=SimpleNamespace(size="5", etag="")),
            "object_info",
        ),
        (
            lambda client: client.get_object("tests", "key", object_info=SimpleNamespace(size=5, etag=b"")),
            "object_info",
        ),
        (lambda client: client.get_object("tests", "key", reader_config="sequential"), "reader_config"),
        (lambda client: client.get_object("tests", "key", version_id=5), "version_id"),
        (lambda client: client.head_object("tests", 5), "key"),
        (lambda client: client.head_object("tests", "key", version_id=5), "version_id"),
        (lambda client: client.put_object("tests", 5), "key"),
        (lambda client: client.put_object("tests", "key", 5), "storage_class"),
        (lambda client: client.delete_object("tests", 5), "key"),
        (lambda client: client.copy_object("tests", "key", "tests", 5), "key"),
        (lambda client: client.copy_object("tests", 5, "tests", "key"), "key"),
        (lambda client: client.list_objects(5), "bucket"),
        (lambda client: client.list_objects("tests", None), "prefix"),
        (lambda client: client.list_objects("tests", "", 5), "delimiter"),
        (lambda client: client.list_objects("tests", max_keys="5"), "max_keys"),
        (lambda client: client.list_objects("tests", max_keys=1.5), "max_keys"),
        (lambda client: client.read_range("tests", "key", "5"), "start"),
        (lambda client: client.read_range("tests", "key", 0, 1.5), "stop"),
    ],
)
def test_wrong_types(client, traffic, call, name):
    """An argument of a wrong type is refused by name and value, before any request."""
    with pytest.raises(ArgumentTypeError, match=rf"{name} must be .* got "):
        call(client)
    assert traffic.requests == 0


_CALLS = ["get_object", "read_range", "head_object", "put_object", "delete_object", "copy from", "copy to"]


@pytest.mark.parametrize("call", _CALLS)
def test_an_empty_key(client, bucket, traffic, call):
    """No object has an empty key; the same request would be about the bucket, so it is refused."""
    with pytest.raises(ArgumentError, match=r"[Kk]ey"):
        _call(client, call, bucket, "")
    assert traffic.requests == 0


@pytest.mark.parametrize("call", _CALLS)
def test_an_empty_bucket(client, traffic, call):
    """An empty name of a bucket is refused."""
    with pytest.raises(ArgumentError, match="Bucket should be specified"):
        _call(client, call, "", "key")
    assert traffic.requests == 0


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize("bucket", ["a b", "a/b", "../a", "ü", "a?b", "\n"])
def test_a_name_that_no_bucket_has(client, traffic, bucket, call):
    """A name that cannot be addressed is refused with its value."""
    with pytest.raises(ArgumentError) as caught:
        _call(client, call, bucket, "key")
    assert repr(bucket) in str(caught.value)
    assert traffic.requests == 0


@pytest.mark.parametrize("call", _CALLS)
def test_a_key_that_is_no_text(client, bucket, traffic, call):
    """A key with half a character cannot be encoded, and is refused."""
    with pytest.raises(ArgumentError, match="cannot be sent"):
        _call(client, call, bucket, "a\ud800b")
    assert traffic.requests == 0


# --- Life ------------------------------------------------------------------------------------------------------------


def test_making_a_client_sends_nothing(s3, bucket):
    """A client, its readers and its writers send nothing before something has to be known."""
    client = S3Client()
    client.get_object(bucket, "key").close()
    writer = client.put_object(bucket, "key")
    assert isinstance(writer, S3Writer)
    writer.abort()
    client.list_objects(bucket)
    client.close()
    assert client.stats.requests == client.stats.connections_opened == 0


def test_close(s3, bucket, key, put):
    """A closed client has no connections, and makes new ones when it is used again."""
    put(key, CONTENT)
    client = S3Client()
    for connections in (1, 2):
        assert client.read_range(bucket, key, 0) == client.read_range(bucket, key, 0) == CONTENT
        assert client.stats.connections_opened == connections
        client.close()
        client.close()


def test_a_connection_serves_many_requests(s3, bucket, key, put):
    """One request after the other goes over one connection, whatever their kind and their answer."""
    client = S3Client()
    for _ in range(3):
        with client.put_object(bucket, key) as writer:
            writer.write(CONTENT)
        client.read_range(bucket, key, 0)
        client.head_object(bucket, key)
        next(client.list_objects(bucket, key))
        with pytest.raises(ObjectNotFoundError):
            client.read_range(bucket, f"{key}-not", 0)
        with pytest.raises(ObjectNotFoundError):
            client.head_object(bucket, f"{key}-not")
    assert (client.stats.requests, client.stats.connections_opened, client.stats.retries) == (18, 1, 0)


def test_threads(client, bucket, prefix, put):
    """A client serves several threads at once."""
    keys = [f"{prefix}{number}" for number in range(20)]
    for key in keys:
        put(key, key.encode() * 1000)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda key: client.get_object(bucket, key).read(), keys * 3))
    assert found == [key.encode() * 1000 for key in keys] * 3


def test_pickle(s3, bucket, key, put):
    """A client pickles as its configuration, used or not, without secrets, and works where it arrives."""
    put(key, CONTENT)
    config = S3ClientConfig(max_attempts=3)
    client = S3Client("us-east-1", endpoint=s3.endpoint, user_agent_comments=["md/a"], s3client_config=config)
    client.read_range(bucket, key, 0)
    pickled = pickle.dumps(client)
    assert s3.secret_key.encode() not in pickled
    assert s3.access_key.encode() not in pickled
    restored = pickle.loads(pickled)
    assert repr(restored) == repr(client)
    assert restored.user_agent == client.user_agent
    assert restored.stats.requests == 0
    assert restored.read_range(bucket, key, 0) == CONTENT


def test_repr(server):
    """The repr shows region, endpoint and configuration."""
    client = S3Client("eu-west-1", endpoint="https://host:9", s3client_config=S3ClientConfig(max_attempts=3))
    assert repr(client).startswith(
        "S3Client(region='eu-west-1', endpoint='https://host:9', s3client_config=S3ClientConfig("
    )
    assert "max_attempts=3" in repr(client)


def test_user_agent():
    """The user agent says what uses the client, in parentheses at its end."""
    assert "(" not in S3Client().user_agent
    assert S3Client(user_agent_comments=["md/a#b", "", "md/c"]).user_agent.endswith(" (md/a#b; md/c)")
