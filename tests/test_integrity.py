"""End-to-end integrity: what is read is compared with its checksum, and what is written carries one."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3torch import S3Client, S3ClientConfig, S3IterableDataset, S3MapDataset, S3ReaderConfig
from s3torch._aws import checksums
from s3torch._aws.checksums import ALGORITHMS, compute, is_available
from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.errors import ConfigError, IntegrityError, ObjectChangedError, RequestError, UnverifiedError
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.faults import Fault

MiB = 1024 * 1024
SMALL = random.Random(1).randbytes(100_000)
LARGE = random.Random(2).randbytes(11 * MiB)  # three parts
INFO = HeadObjectResult("", len(SMALL), 0)
READERS = [S3ReaderConfig.sequential(), S3ReaderConfig.range_based(), S3ReaderConfig.adaptive()]

pytestmark = pytest.mark.usefixtures("no_pauses")
each_reader = pytest.mark.parametrize("reader_config", READERS, ids=lambda each: each.get_reader_type_string())


@pytest.fixture
def faulty(faulty: FaultyServer) -> FaultyServer:
    """A server with a small and a large object, and no faults."""
    faulty.objects.update({"small": SMALL, "large": LARGE})
    return faulty


@pytest.fixture
def connect(faulty: FaultyServer) -> Iterator[Callable[..., S3Client]]:
    """Makes clients: ``connect(checksums="strict")``."""
    clients: list[S3Client] = []

    def connect(**options: object) -> S3Client:
        config = replace(faulty.config, part_size=5 * MiB, hedging=False, **options)
        clients.append(S3Client(endpoint=faulty.endpoint, s3client_config=config))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def store(
    server: FaultyServer, key: str, name: str, content: bytes | None = None, *, kind: str = "FULL_OBJECT"
) -> None:
    """Let an object be stored with the checksum of an algorithm alone, of its own or of other content."""
    algorithm = next(each for each in ALGORITHMS if each.name == name)
    value = compute(algorithm, [memoryview(server.objects[key] if content is None else content)])
    fields = server.objects.checksums_of(key)
    fields.clear()
    fields.update({algorithm.field: str(value), "x-amz-checksum-type": kind})


def methods(server: FaultyServer) -> list[str]:
    """Return the methods of all requests."""
    return [request.method for request in server.requests]


WAYS: dict[str, Callable[[S3Client], bytes]] = {
    "read_range": lambda client: client.read_range("bucket", "small", 0),
    "read_range into": lambda client: _into(client, len(SMALL)),
    "read_range into more": lambda client: _into(client, len(SMALL) + 1000),
    **{
        f"{config.get_reader_type_string()} reader, {how}": lambda client, config=config, info=info: client.get_object(
            "bucket", "small", reader_config=config, object_info=info
        ).read()
        for config in READERS
        for how, info in (("size unknown", None), ("size known", INFO))
    },
    "map dataset": lambda client: S3MapDataset.from_objects(
        ["s3://bucket/small"], endpoint=client.endpoint, s3client_config=client.s3client_config, transform=_content
    ).__getitems__([0])[0],
    "iterable dataset": lambda client: next(
        iter(
            S3IterableDataset.from_prefix(
                "s3://bucket/small",
                endpoint=client.endpoint,
                s3client_config=client.s3client_config,
                transform=_content,
            )
        )
    ),
}

each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def _content(reader) -> bytes:
    return reader.read()


def _into(client: S3Client, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: client.read_range("bucket", "small", 0, into=buffer)])


@each_way
@pytest.mark.parametrize("mode", ["on", "strict"])
def test_damaged_once(way: Callable[[S3Client], bytes], mode: str, faulty: FaultyServer, connect):
    """An object that arrives damaged is fetched again, however it is read."""
    faulty.script(faults.on("GetObject", fault=faults.corrupt()))
    assert way(connect(checksums=mode)) == SMALL
    assert faulty.injected == {"corrupt": 1}
    assert methods(faulty).count("GET") - sum("list-type" in request.target for request in faulty.requests) == 2


@each_way
def test_damaged_always(way: Callable[[S3Client], bytes], faulty: FaultyServer, connect):
    """An object that never arrives well is an error after three attempts, which names what was compared."""
    faulty.rates({faults.on("GetObject", fault=faults.corrupt(7)): 1})
    stored = str(compute(checksums.CRC32, [memoryview(SMALL)]))
    with pytest.raises(IntegrityError, match=r"s3://bucket/small arrived damaged: .* CRC32") as caught:
        way(connect())
    assert stored in str(caught.value)
    assert (caught.value.bucket, caught.value.key, caught.value.attempts) == ("bucket", "small", 3)


def test_off(faulty: FaultyServer, connect):
    """Without checksums nothing is asked for, sent or noticed."""
    client = connect(checksums="off")
    faulty.script(faults.corrupt(7))
    assert client.read_range("bucket", "small", 0) != SMALL
    store(faulty, "small", "CRC32", b"other")
    faulty.rates({Fault("tell", lambda exchange: exchange.send(_with_fields(exchange, "small"))): 1})
    assert client.read_range("bucket", "small", 0) == SMALL
    faulty.rates({})
    for key, content in (("a", b"content"), ("b", LARGE)):
        with client.put_object("bucket", key) as writer:
            writer.write(content)
        assert client.get_object("bucket", key, object_info=client.head_object("bucket", key)).read() == content
    assert not [name for request in faulty.requests for name in request.headers if "checksum" in name]
    assert all("range" in request.headers for request in faulty.requests if request.method == "GET")


@pytest.mark.parametrize("name", [each.name for each in ALGORITHMS])
def test_algorithms(name: str, faulty: FaultyServer, connect):
    """Each algorithm that is installed finds damage."""
    if not is_available(next(each for each in ALGORITHMS if each.name == name)):
        pytest.skip("awscrt is not installed")
    store(faulty, "small", name)
    faulty.script(faults.corrupt())
    assert connect().read_range("bucket", "small", 0) == SMALL
    store(faulty, "small", name, b"other")
    with pytest.raises(IntegrityError, match=name):
        connect().read_range("bucket", "small", 0)


def test_a_range_is_not_compared(faulty: FaultyServer, connect):
    """The checksum of the object is not that of a range, even where a server tells it with one."""
    tell = Fault("tell", lambda exchange: exchange.send(_with_fields(exchange, "small")))
    faulty.rates({tell: 1})
    client = connect(checksums="strict")
    assert client.read_range("bucket", "small", 0, 1000) == SMALL[:1000]
    assert client.read_range("bucket", "small", 1000) == SMALL[1000:]
    assert client.read_ranges("bucket", "small", [(0, 10), (5000, 5010)]) == [SMALL[:10], SMALL[5000:5010]]
    assert set(methods(faulty)) == {"GET"}


def _with_fields(exchange, key: str):
    fields = {**exchange.answer.fields, **exchange.objects.checksums_of(key)}
    return replace(exchange.answer, fields=fields)


def test_a_checksum_of_parts_is_not_compared(faulty: FaultyServer, connect):
    """A checksum of the parts' checksums is not that of the object; S3 may write it without its -N."""
    fields = faulty.objects.checksums_of("small")
    for changed in (
        {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": "AAAAAA==-2", "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": "AAAAAA==-2"},
    ):
        fields.clear()
        fields.update(changed)
        assert connect().read_range("bucket", "small", 0) == SMALL
        assert connect().get_object("bucket", "small", object_info=INFO).read() == SMALL
        with pytest.raises(UnverifiedError, match="COMPOSITE"):
            connect(checksums="strict").read_range("bucket", "small", 0)
    fields.clear()
    fields["x-amz-checksum-crc32"] = "AAAAAA=="
    assert connect().read_range("bucket", "small", 0) == SMALL


@pytest.mark.parametrize("info", [None, INFO], ids=["size unknown", "size known"])
def test_broken_and_damaged(info: HeadObjectResult | None, faulty: FaultyServer, connect):
    """A body that broke off and went on is compared as a whole, with the checksum that its first answer had."""
    faulty.script(faults.truncate(5000), faults.corrupt(7))
    assert connect().get_object("bucket", "small", object_info=info).read() == SMALL
    asked = [request.headers.get("range") for request in faulty.requests]
    assert len(asked) == 3
    assert asked[1] == "bytes=5000-99999" if info else asked[1].startswith("bytes=5000-")
    assert asked[2] == asked[0]


@pytest.mark.parametrize("fault", [faults.chunked(), faults.until_close()], ids=lambda fault: fault.name)
def test_whole_objects_of_unknown_length(fault: Fault, faulty: FaultyServer, connect):
    """An answer for a whole object that announces no length is read, and compared."""
    faulty.script(fault)
    assert connect().get_object("bucket", "small", object_info=INFO).read() == SMALL
    assert "range" not in faulty.requests[0].headers
    assert len(faulty.requests) == 1


@each_reader
@pytest.mark.parametrize("change", [-1, 1, 5 * MiB])
def test_of_another_size_than_listed(change: int, reader_config: S3ReaderConfig, faulty: FaultyServer, connect):
    """An object that has another size than was listed is an error, without reading what it has grown by."""
    info = INFO._replace(size=len(SMALL) - change)
    client = connect()
    if change > len(SMALL):
        faulty.objects["small"], info = LARGE, INFO
    with pytest.raises(ObjectChangedError):
        client.get_object("bucket", "small", object_info=info, reader_config=reader_config).read()
    assert client.stats.bytes_received < MiB


@each_reader
def test_every_request_of_a_reader_is_pinned(reader_config: S3ReaderConfig, faulty: FaultyServer, connect):
    """All requests of one reader carry the ETag of the first answer, and an object that is replaced is an error."""
    reader = connect().get_object("bucket", "large", reader_config=reader_config)
    assert reader.read(10) == LARGE[:10]
    assert reader.read(MiB) == LARGE[10 : MiB + 10]
    assert reader.read_ranges([(9 * MiB, 9 * MiB + 10), (10 * MiB, 11 * MiB)])[0] == LARGE[9 * MiB : 9 * MiB + 10]
    first, *others = faulty.requests
    assert "if-match" not in first.headers
    assert len(others) >= 2
    assert {request.headers["if-match"] for request in others} == {faulty.objects.answer(first).fields["ETag"]}
    faulty.objects["large"] = LARGE[::-1]
    with pytest.raises(ObjectChangedError):
        reader.read()


def test_parts_are_pinned(faulty: FaultyServer, connect):
    """The parts of one read, and what asks for its checksum, carry the ETag of the first answer."""
    assert connect(checksums="strict").read_range("bucket", "large", 0) == LARGE
    assert methods(faulty) == ["GET"] * 3 + ["HEAD"]
    etag = faulty.objects.answer(faulty.requests[0]).fields["ETag"]
    assert {request.headers.get("if-match") for request in faulty.requests[1:]} == {etag}


@pytest.mark.parametrize("is_known", [False, True], ids=["size unknown", "size known"])
def test_strict_reads_in_parts(is_known: bool, faulty: FaultyServer, connect):
    """An object that was read in parts is compared as a whole, and fetched again if a part of it was damaged."""
    client = connect(checksums="strict")
    info = HeadObjectResult("", len(LARGE), 0) if is_known else None
    faulty.script(faults.none(), faults.corrupt(), faults.none())
    assert client.get_object("bucket", "large", object_info=info).read() == LARGE
    assert faulty.injected["corrupt"] == 1
    assert methods(faulty).count("HEAD") == 1
    buffer = bytearray(len(LARGE))
    faulty.script(faults.corrupt())
    assert client.read_range("bucket", "large", 0, into=buffer) == len(LARGE)
    assert buffer == LARGE
    assert connect(checksums="on").read_range("bucket", "large", 0) == LARGE


def test_strict_reads_damaged_always(faulty: FaultyServer, connect):
    """A large object that never arrives well is fetched three times."""
    store(faulty, "large", "CRC32", b"other")
    client = connect(checksums="strict")
    with pytest.raises(IntegrityError, match="s3://bucket/large arrived damaged"):
        client.get_object("bucket", "large").read()
    assert methods(faulty).count("GET") == 3 * 3
    with pytest.raises(IntegrityError):
        client.read_ranges("bucket", "large", [(5, 10), (0, len(LARGE))])


@pytest.mark.parametrize("is_prefetched", [False, True])
@pytest.mark.parametrize("is_known", [False, True], ids=["size unknown", "size known"])
def test_strict_hands_out_no_byte_before(is_known: bool, is_prefetched: bool, faulty: FaultyServer, connect):
    """A sequential reader hands out nothing of an object before all of it is verified."""
    store(faulty, "large", "CRC32", b"other")
    info = HeadObjectResult("", len(LARGE), 0) if is_known else None
    reader = connect(checksums="strict", max_bytes_in_flight=6 * MiB).get_object("bucket", "large", object_info=info)
    if is_prefetched:
        reader.prefetch()
    for _ in range(2):
        with pytest.raises(IntegrityError):
            reader.read(10)
    store(faulty, "large", "CRC32")
    reader = connect(checksums="strict", max_bytes_in_flight=6 * MiB).get_object("bucket", "large", object_info=info)
    if is_prefetched:
        reader.prefetch()
    assert reader.read(10) == LARGE[:10]
    assert reader.read() == LARGE[10:]


def test_strict_reads_anew_what_was_damaged(faulty: FaultyServer, connect):
    """What several fetches of a reader brought is fetched anew by the same read if it was damaged."""
    info = HeadObjectResult("", len(LARGE), 0)
    reader = connect(checksums="strict", max_bytes_in_flight=6 * MiB).get_object("bucket", "large", object_info=info)
    reader.prefetch()
    faulty.script(faults.corrupt())
    assert reader.read(10) == LARGE[:10]
    assert faulty.injected == {"corrupt": 1}
    assert reader.read() == LARGE[10:]


def test_strict_without_a_checksum(faulty: FaultyServer, connect):
    """Where nothing proves what was read whole, strict is an error that says what to do; parts are read."""
    for key in ("small", "large"):
        faulty.objects.checksums_of(key).clear()
        assert connect().read_range("bucket", key, 0) == faulty.objects[key]
        client = connect(checksums="strict")
        with pytest.raises(UnverifiedError, match=f"s3://bucket/{key} .*Store it again.*checksums='on'") as caught:
            client.read_range("bucket", key, 0)
        assert (caught.value.bucket, caught.value.key) == ("bucket", key)
        with pytest.raises(UnverifiedError):
            client.get_object("bucket", key).read(1)
        assert client.read_range("bucket", key, 0, 10) == faulty.objects[key][:10]
    faulty.objects["empty"] = b""
    faulty.objects.checksums_of("empty").clear()
    assert connect(checksums="strict").read_range("bucket", "empty", 0) == b""


def test_strict_without_the_algorithm(faulty: FaultyServer, connect, monkeypatch):
    """A checksum that cannot be computed is no proof either, and the error names the extra; ``on`` reads."""
    monkeypatch.setattr(checksums, "_awscrt", dict)
    fields = faulty.objects.checksums_of("small")
    fields.clear()
    fields.update(
        {"x-amz-checksum-crc64nvme": base64.b64encode(bytes(8)).decode(), "x-amz-checksum-type": "FULL_OBJECT"}
    )
    assert connect().read_range("bucket", "small", 0) == SMALL
    with pytest.raises(
        UnverifiedError, match=r"CRC64NVME cannot be computed here\. pip install 's3torch\[checksums\]'"
    ):
        connect(checksums="strict").read_range("bucket", "small", 0)


def test_puts_carry_a_checksum(faulty: FaultyServer, connect, monkeypatch):
    """Every body that is sent carries its CRC32, which is signed for and stored."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ACCESS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    with connect(unsigned=False, checksums="on").put_object("bucket", "new", "STANDARD_IA") as writer:
        writer.write(SMALL)
    (request,) = faulty.requests
    assert request.headers["x-amz-checksum-crc32"] == str(compute(checksums.CRC32, [memoryview(SMALL)]))
    assert request.headers["x-amz-sdk-checksum-algorithm"] == "CRC32"
    assert request.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert "x-amz-checksum-crc32" in request.headers["authorization"]


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["put", "multipart"])
def test_uploads_damaged(content: bytes, faulty: FaultyServer, connect):
    """What arrives damaged at the server is sent again; if that goes on nothing is stored."""
    client = connect()
    faulty.script(faults.corrupt_upload(), faults.corrupt_upload(5))
    with client.put_object("bucket", "new") as writer:
        writer.write(content)
    assert faulty.injected == {"corrupt_upload": 2}
    assert faulty.objects["new"] == content
    faulty.rates({faults.corrupt_upload(): 1})
    with (
        pytest.raises(IntegrityError, match="s3://bucket/other") as caught,
        client.put_object("bucket", "other") as writer,
    ):
        writer.write(content)
    assert (caught.value.code, caught.value.attempts) == ("BadDigest", 3)
    assert "other" not in faulty.objects
    assert faulty.objects.uploads == []


def test_multipart_uploads_tell_the_objects_checksum(faulty: FaultyServer, connect, monkeypatch):
    """A multipart upload is completed with the checksum of the object, which the server compares with its parts."""
    with connect().put_object("bucket", "new") as writer:
        writer.write(LARGE)
    assert str(compute(checksums.CRC32, [memoryview(LARGE)])) in faulty.requests[-1].headers.values()
    combined = checksums.combine
    monkeypatch.setattr(checksums, "combine", lambda first, second, length: combined(first, second, length + 1))
    with pytest.raises(IntegrityError), connect().put_object("bucket", "other") as writer:
        writer.write(LARGE)
    assert "other" not in faulty.objects


def test_multipart_uploads_to_a_server_without_checksums(faulty: FaultyServer, connect):
    """A server that says nothing of checksums when the upload begins is told none when it ends."""

    def act(exchange) -> None:
        fields = {name: value for name, value in exchange.answer.fields.items() if "checksum" not in name}
        exchange.send(replace(exchange.answer, fields=fields))

    faulty.script(faults.on("CreateMultipartUpload", fault=Fault("knows nothing", act)))
    with pytest.raises(RequestError), connect().put_object("bucket", "new") as writer:  # as this one does know them
        writer.write(LARGE)
    assert b"Checksum" not in faulty.requests[-2].body
    assert not [name for name in faulty.requests[-2].headers if "checksum" in name]


@pytest.mark.parametrize("size", [0, 1000, 11 * MiB])
def test_stored_checksums_of_a_real_server(size: int, small_parts: S3Client, server, s3, boto, bucket: str, key: str):
    """A real server stores the CRC32 of the object that we write, and what it tells of one fits what we read."""
    content = LARGE[:size]
    with small_parts.put_object(bucket, key) as writer:
        writer.write(content)
    head = boto.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert head.get("ChecksumCRC32") == str(compute(checksums.CRC32, [memoryview(content)]))
    strict = S3Client(server.region, endpoint=server.endpoint, s3client_config=S3ClientConfig(checksums="strict"))
    assert strict.get_object(bucket, key).read() == content
    assert strict.get_object(bucket, key, object_info=strict.head_object(bucket, key)).read() == content
    strict.close()


@pytest.mark.parametrize("name", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])  # which this server knows
def test_checksums_that_others_stored(name: str, server, s3, boto, bucket: str, key: str):
    """What botocore stores with any algorithm is verified."""
    boto.put_object(Bucket=bucket, Key=key, Body=SMALL, ChecksumAlgorithm=name)
    strict = S3Client(server.region, endpoint=server.endpoint, s3client_config=S3ClientConfig(checksums="strict"))
    assert strict.read_range(bucket, key, 0) == SMALL
    assert strict.stats.requests == 2
    strict.close()


def test_a_real_server_refuses_damaged_bytes(small_parts: S3Client, s3, bucket: str, key: str, monkeypatch):
    """A real server compares what arrives with its checksum."""
    wrong = checksums.Checksum(checksums.CRC32, bytes(4))
    monkeypatch.setattr(checksums, "compute", lambda algorithm, pieces: wrong)
    with pytest.raises(IntegrityError), small_parts.put_object(bucket, key) as writer:
        writer.write(SMALL)


def test_a_whole_object_with_a_wrong_length():
    """A whole object that is said to be longer than listed is asked for as a range, which tells the size apart."""
    content = bytes(range(256)) * 4
    with FaultyServer({"key": content}) as server:
        client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
        info = ObjectInfo("key", "", len(content), 0)
        server.script(faults.wrong_length(1))
        assert client.get_object("bucket", "key", object_info=info).read() == content
        assert [request.headers.get("range") for request in server.requests] == [None, f"bytes=0-{len(content) - 1}"]
        assert client.stats.retries == 1
        server.objects["key"] = content + b"more"
        with pytest.raises(ObjectChangedError, match=r"its size was 1024 and is 1028 now"):
            client.get_object("bucket", "key", object_info=info).read()
        client.close()


@pytest.mark.parametrize("by_profile", [False, True])
@pytest.mark.parametrize(
    ("mode", "sent", "asked", "is_sent", "is_asked"),
    [
        ("on", None, None, True, True),
        ("on", "when_required", None, False, True),
        ("on", None, "when_required", True, False),
        ("on", "WHEN_REQUIRED", "WHEN_REQUIRED", False, False),
        ("on", "when_supported", "when_supported", True, True),
        ("off", "when_supported", "when_supported", False, False),
        ("strict", "when_required", "when_required", True, True),
    ],
)
def test_settings_of_the_environment(
    mode: str,
    sent: str | None,
    asked: str | None,
    faulty: FaultyServer,
    connect,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    is_sent: bool,
    is_asked: bool,
    by_profile: bool,
):
    """What botocore is told of checksums, by variables or by the profile, counts unless the configuration says more."""
    settings = {"request_checksum_calculation": sent, "response_checksum_validation": asked}
    lines = ["[default]"]
    for name, value in settings.items():
        if value is not None and by_profile:
            lines.append(f"{name} = {value}")
        elif value is not None:
            monkeypatch.setenv(f"AWS_{name.upper()}", value)
    (tmp_path / "config").write_text("\n".join(lines))
    client = connect(checksums=mode)
    store(faulty, "small", "CRC32", SMALL)
    assert client.get_object("bucket", "small", object_info=INFO).read() == SMALL
    for content in (SMALL, LARGE):
        with client.put_object("bucket", "new") as writer:
            writer.write(content)
        assert faulty.objects["new"] == content
    for request in faulty.requests:
        names = [name for name in request.headers if "checksum" in name]
        if request.method in ("GET", "HEAD"):
            assert names == (["x-amz-checksum-mode"] if is_asked else [])
        else:
            assert bool(names) is is_sent


def test_settings_that_are_none(connect, monkeypatch: pytest.MonkeyPatch):
    """A setting that botocore would refuse is refused."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "sometimes")
    with pytest.raises(ConfigError, match="sometimes"):
        connect().read_range("bucket", "small", 0)
