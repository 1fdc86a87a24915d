"""What others uploaded in parts, with a checksum of the parts alone (COMPOSITE), is verified part by part."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from s3torch import S3Client, S3ClientConfig, S3ReaderConfig
from s3torch._aws import checksums
from s3torch._aws.checksums import ALGORITHMS, compute, is_available
from s3torch.client import HeadObjectResult
from s3torch.errors import IntegrityError, ObjectChangedError, UnverifiedError
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.faults import Fault
from s3torch.testing.faulty.objects import error_answer, operation_of

MiB = 1024 * 1024
EVEN = [5 * MiB, 5 * MiB, MiB]
UNEVEN = [6 * MiB, 5 * MiB, 7 * MiB + 1, 1]
READERS = [S3ReaderConfig.sequential(), S3ReaderConfig.range_based(), S3ReaderConfig.adaptive()]

pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def connect(faulty: FaultyServer) -> Iterator[Callable[..., S3Client]]:
    """Makes clients that verify."""
    clients: list[S3Client] = []

    def connect(**options: object) -> S3Client:
        config = replace(faulty.config, **{"part_size": 5 * MiB, "hedging": False, "checksums": "strict", **options})
        clients.append(S3Client(endpoint=faulty.endpoint, s3client_config=config))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@functools.cache
def content_of(size: int) -> bytes:
    """Return so many bytes, the same ones each time."""
    return random.Random(size).randbytes(size)


def store(server: FaultyServer, sizes: Sequence[int], name: str = "CRC32", key: str = "key") -> bytes:
    """Store an object in parts of these sizes, and return its bytes."""
    content, parts, begin = content_of(sum(sizes)), [], 0
    for size in sizes:
        parts.append(content[begin : begin + size])
        begin += size
    algorithm = next(each for each in ALGORITHMS if each.name == name)
    server.objects.store_in_parts(key, parts, name.lower(), lambda part: compute(algorithm, [memoryview(part)]).value)
    return content


def asked(server: FaultyServer) -> list[str]:
    """Return the operations of all requests, and forget them; those that read bytes are ``GetObject``."""
    names = [operation_of(request) for request in server.requests]
    server.requests.clear()
    return names


def always(server: FaultyServer, *of: Fault) -> None:
    """Let each request meet the first of these that is for its operation."""

    def act(exchange) -> None:
        name = operation_of(exchange.request)
        first = next((each for each in of if not each.operations or name in each.operations), faults.none())
        first.act(exchange)

    server.rates({Fault("always", act): 1} if of else {})


def refuse(operation: str, status: int = 403, code: str = "AccessDenied") -> Fault:
    """Return what refuses an operation."""
    refusal = Fault("refuse", lambda exchange: exchange.send(error_answer(status, code)))
    return faults.on(operation, fault=refusal)


def flip(position: int, times: int = 1) -> Fault:
    """Flip a bit of one byte of the object in the first answers that have it."""
    left = [times]

    def act(exchange) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.request.headers.get("range", ""))
        body = exchange.answer.body
        start = int(match[1]) if match else 0
        if left[0] and start <= position < start + len(body):
            left[0] -= 1
            at = position - start
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        exchange.send(replace(exchange.answer, body=body))

    return Fault("flip", act, frozenset({"GetObject"}))


@pytest.mark.parametrize("name", [each.name for each in ALGORITHMS])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN, [7 * MiB], [100]], ids=["even", "uneven", "one", "small"])
def test_algorithms(name: str, sizes: list[int], faulty: FaultyServer, connect):
    """Each algorithm passes what is right, and finds a byte that is not where it is stored."""
    if not is_available(next(each for each in ALGORITHMS if each.name == name)):
        pytest.skip("awscrt is not installed")
    content = store(faulty, sizes, name)
    assert connect().read_range("bucket", "key", 0) == content
    faulty.objects.damage("key", len(content) // 2)
    with pytest.raises(IntegrityError, match=name):
        connect().read_range("bucket", "key", 0)


@pytest.mark.parametrize("config", READERS, ids=lambda each: each.get_reader_type_string())
@pytest.mark.parametrize("is_known", [False, True], ids=["size unknown", "size known"])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN, [100]], ids=["even", "uneven", "small"])
def test_readers(sizes: list[int], is_known: bool, config: S3ReaderConfig, faulty: FaultyServer, connect):
    """Each reader verifies what it reads whole, and the sequential one hands out no damaged byte."""
    content = store(faulty, sizes)
    info = HeadObjectResult("", len(content), 0) if is_known else None
    assert connect().get_object("bucket", "key", reader_config=config, object_info=info).read() == content
    faulty.objects.damage("key", len(content) - 1)
    with pytest.raises(IntegrityError):
        connect().get_object("bucket", "key", reader_config=config, object_info=info).read()


def test_parts_of_one_size_cost_nothing(faulty: FaultyServer, connect):
    """Where the parts are of one size no more is asked for than of an object with a checksum of all its bytes."""
    content = store(faulty, [8 * MiB, 8 * MiB, 8 * MiB, 5])
    assert connect().read_range("bucket", "key", 0) == content
    in_parts = sorted(asked(faulty))
    faulty.objects["key"] = content
    assert connect().read_range("bucket", "key", 0) == content
    assert sorted(asked(faulty)) == in_parts
    assert in_parts.count("HeadObject") == 1


def test_an_answer_for_the_whole_object_tells_the_checksum(faulty: FaultyServer, connect):
    """What one request reads without a range needs no other request."""
    content = store(faulty, [1000, 24])
    info = HeadObjectResult("", len(content), 0)
    assert connect().get_object("bucket", "key", object_info=info).read() == content
    assert asked(faulty) == ["GetObject", "GetObjectAttributes"]  # parts of 1,000 bytes are none that anyone guesses
    content = store(faulty, [512, 512])
    assert connect().get_object("bucket", "key", object_info=info).read() == content
    assert asked(faulty) == ["GetObject"]


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN, [7 * MiB]], ids=["even", "uneven", "one"])
def test_a_flipped_byte_in_each_part(sizes: list[int], faulty: FaultyServer, connect):
    """The first, a middle and the last byte of each part: only that part is fetched again, and an error names it."""
    content, begin = store(faulty, sizes), 0
    for number, size in enumerate(sizes, 1):
        for position in {begin, begin + size // 2, begin + size - 1}:
            always(faulty, flip(position))
            asked(faulty)
            client = connect()
            assert client.read_range("bucket", "key", 0) == content
            assert client.stats.bytes_received < len(content) + size + 100_000
            always(faulty, flip(position, times=100))
            with pytest.raises(IntegrityError) as caught:
                connect().read_range("bucket", "key", 0)
            said = str(caught.value)
            assert caught.value.attempts == 3
            if len(sizes) > 1:
                assert f"Part {number} of {len(sizes)} of s3://bucket/key, bytes {begin}-{begin + size - 1}," in said
        begin += size


def test_ranges(faulty: FaultyServer, connect):
    """A range is verified where it has whole parts, whatever its alignment, and elsewhere nothing is said of it."""
    content = store(faulty, UNEVEN)
    bounds = [0, 6 * MiB, 11 * MiB, 18 * MiB + 1, 18 * MiB + 2]
    client = connect()
    for left in (0, 1, 3):
        for start in (bounds[left] - 1, bounds[left], bounds[left] + 1):
            for right in (2, 3, 4):
                for stop in (bounds[right] - 1, bounds[right], bounds[right] + 1):
                    if not 0 <= start < stop <= len(content):
                        continue
                    assert client.read_range("bucket", "key", start, stop) == content[start:stop]
                    whole = [n for n in range(4) if start <= bounds[n] and bounds[n + 1] <= stop]
                    if stop - start < 5 * MiB:
                        continue  # too short for a whole part, but the last
                    for number in range(4):
                        at = (max(start, bounds[number]) + min(stop, bounds[number + 1])) // 2
                        if not start <= at < stop or not bounds[number] <= at < bounds[number + 1]:
                            continue
                        always(faulty, flip(at, times=100))
                        if number in whole:
                            with pytest.raises(IntegrityError, match=f"Part {number + 1} of 4"):
                                connect().read_range("bucket", "key", start, stop)
                        else:
                            assert connect().read_range("bucket", "key", start, stop) != content[start:stop]
                        always(faulty)


def test_ranges_of_a_reader(faulty: FaultyServer, connect):
    """The list of parts is asked for once a reader, and not at all for short ranges."""
    content = store(faulty, UNEVEN)
    reader = connect().get_object("bucket", "key", reader_config=S3ReaderConfig.range_based())
    for start in range(0, 4 * MiB, MiB):
        reader.seek(start)
        assert reader.read(MiB) == content[start : start + MiB]
    assert set(asked(faulty)) == {"GetObject"}
    for start in (0, MiB, 2 * MiB):
        reader.seek(start)
        assert reader.read(12 * MiB) == content[start : start + 12 * MiB]
    assert asked(faulty).count("GetObjectAttributes") == 1
    reader.seek(len(content) - 1)
    always(faulty, flip(len(content) - 1))
    assert reader.read() == content[-1:]  # all of the last part


def test_what_is_prefetched_is_verified_once(faulty: FaultyServer, connect):
    """A sequential reader that has read in several steps asks for no list of parts before it is complete."""
    content = store(faulty, [8 * MiB, 8 * MiB, 5])
    reader = connect(part_size=6 * MiB).get_object("bucket", "key")
    reader.prefetch()
    assert reader.read() == content
    assert "GetObjectAttributes" not in asked(faulty)


def test_of_one_version(faulty: FaultyServer, connect):
    """All that is asked about a version names it."""
    content = store(faulty, UNEVEN)
    always(faulty, refuse("GetObjectAttributes"))
    assert connect().get_object("bucket", "key", version_id="v").read() == content
    assert all("versionId=v" in request.target for request in faulty.requests)
    assert len(asked(faulty)) > len(UNEVEN) + 2


def test_vectors(faulty: FaultyServer, connect):
    """Ranges that follow one another are verified together."""
    content = store(faulty, UNEVEN)
    cuts = [0, 3 * MiB, 3 * MiB, 8 * MiB, 17 * MiB]
    ranges = list(itertools.pairwise(cuts))[::-1]
    expected = [content[start:stop] for start, stop in ranges]
    assert connect().read_ranges("bucket", "key", ranges) == expected
    always(faulty, flip(7 * MiB))  # in the second part, which lies in two ranges
    client = connect()
    assert client.read_ranges("bucket", "key", ranges) == expected
    always(faulty, flip(7 * MiB, times=100))
    with pytest.raises(IntegrityError, match="Part 2 of 4"):
        connect().read_ranges("bucket", "key", ranges)
    assert connect(checksums="on").read_ranges("bucket", "key", ranges) != expected


def test_an_object_of_one_part_needs_no_list(faulty: FaultyServer, connect):
    """That it was put at once, an ETag tells: then its ranges are not verified, and nothing is asked for."""
    faulty.objects["key"] = content = content_of(11 * MiB)
    assert connect().read_range("bucket", "key", 0, 10 * MiB) == content[: 10 * MiB]
    assert set(asked(faulty)) == {"GetObject"}


def test_a_thousand_parts_and_more(faulty: FaultyServer, connect):
    """The list comes in pages."""
    sizes = [random.Random(number).randrange(1, 200) for number in range(2345)]
    content = store(faulty, sizes)
    assert connect().read_range("bucket", "key", 0) == content
    assert asked(faulty).count("GetObjectAttributes") == 3
    at = sum(sizes[:2000])
    always(faulty, flip(at, times=100))
    with pytest.raises(IntegrityError, match=f"Part 2001 of 2345 of s3://bucket/key, bytes {at}-"):
        connect().read_range("bucket", "key", 0)


@pytest.mark.parametrize("name", ["CRC32", "CRC64NVME", "SHA256"])
def test_checksums_of_parts_prove_those_of_the_object(name: str, faulty: FaultyServer, connect):
    """Where an upload has the checksum of all bytes, and the server lists those of parts, ranges are verified by these.

    A CRC follows from those of the parts; a hash does not, so there nothing is concluded.
    """
    if not is_available(next(each for each in ALGORITHMS if each.name == name)):
        pytest.skip("awscrt is not installed")
    content = store(faulty, EVEN, name)
    algorithm = next(each for each in ALGORITHMS if each.name == name)
    fields = faulty.objects.checksums_of("key")
    fields.update(
        {algorithm.field: str(compute(algorithm, [memoryview(content)])), "x-amz-checksum-type": "FULL_OBJECT"}
    )
    assert connect().read_range("bucket", "key", 0) == content
    assert connect().read_range("bucket", "key", 1) == content[1:]
    always(faulty, flip(6 * MiB, times=100))
    if algorithm.polynomial:
        with pytest.raises(IntegrityError, match="Part 2 of 3"):
            connect().read_range("bucket", "key", 1)
    else:
        assert connect().read_range("bucket", "key", 1) != content[1:]
    with pytest.raises(IntegrityError):
        connect().read_range("bucket", "key", 0)


WITHOUT_LIST = [(403, "AccessDenied"), (501, "NotImplemented"), (405, "MethodNotAllowed"), (400, "InvalidRequest")]


@pytest.mark.parametrize(("status", "code"), WITHOUT_LIST)
@pytest.mark.parametrize("sizes", [[9 * MiB, 9 * MiB, 5], UNEVEN], ids=["even", "uneven"])
def test_without_a_list(sizes: list[int], status: int, code: str, faulty: FaultyServer, connect):
    """Where GetObjectAttributes is refused, a HEAD of one part, or of each, tells sizes and checksums."""
    content = store(faulty, sizes)
    always(faulty, refuse("GetObjectAttributes", status, code))
    client = connect()
    assert client.read_range("bucket", "key", 0) == content
    names = asked(faulty)
    assert names.count("HeadObject") == (1 + len(sizes) if sizes == UNEVEN else 2)
    assert names.count("GetObjectAttributes") == 1
    assert client.read_range("bucket", "key", 0) == content
    assert "GetObjectAttributes" not in asked(faulty)  # it is not asked for again
    always(faulty, refuse("GetObjectAttributes", status, code), flip(10 * MiB, times=100))
    with pytest.raises(IntegrityError, match=f"Part 2 of {len(sizes)} of"):
        connect().read_range("bucket", "key", 0)
    assert client.read_range("bucket", "key", 1, 10 * MiB) == content[1 : 10 * MiB]


def test_a_server_that_knows_no_attributes(faulty: FaultyServer, connect):
    """One that answers with the object instead is not asked again, and its object is not received."""
    content = store(faulty, UNEVEN)

    def act(exchange) -> None:
        target = exchange.request.target.partition("?")[0]
        exchange.send(exchange.objects.answer(replace(exchange.request, target=target)))

    always(faulty, faults.on("GetObjectAttributes", fault=Fault("ignores it", act)))
    client = connect()
    assert client.read_range("bucket", "key", 0) == content
    assert client.read_range("bucket", "key", 0) == content
    assert asked(faulty).count("GetObjectAttributes") == 1


def _with_values(exchange, value: str) -> None:
    body = re.sub(rb"(<Part>.*?<ChecksumCRC32>)[^<]*", rb"\g<1>" + value.encode(), exchange.answer.body)
    exchange.send(replace(exchange.answer, body=body))


def test_an_echo_of_the_objects_checksum_is_not_believed(faulty: FaultyServer, connect):
    """Servers that tell the checksum of the object for each part, or for a range, make no good object a bad one."""
    content = store(faulty, UNEVEN)
    echo = faulty.objects.checksums_of("key")["x-amz-checksum-crc32"].partition("-")[0]
    fields = {"x-amz-checksum-crc32": echo, "x-amz-checksum-type": "COMPOSITE"}

    def tell(exchange) -> None:
        is_of_object = exchange.request.method == "HEAD" and "partNumber" not in exchange.request.target
        more = {} if is_of_object else fields
        exchange.send(replace(exchange.answer, fields={**exchange.answer.fields, **more}))

    always(
        faulty,
        faults.on("GetObjectAttributes", fault=Fault("echo", lambda exchange: _with_values(exchange, echo))),
        Fault("tell", tell, frozenset({"GetObject", "HeadObject"})),
    )
    for start, stop in ((0, None), (0, 12 * MiB), (6 * MiB, 11 * MiB)):
        assert connect().read_range("bucket", "key", start, stop) == content[start:stop]
    faulty.objects.damage("key", 7 * MiB)
    with pytest.raises(IntegrityError, match="of its 4 parts"):
        connect().read_range("bucket", "key", 0)


def test_sizes_alone_are_enough(faulty: FaultyServer, connect):
    """A server that lists the sizes of the parts, and not their checksums, is enough; damage is of the whole object."""
    content = store(faulty, UNEVEN)

    def without(exchange) -> None:
        exchange.send(
            replace(exchange.answer, body=re.sub(rb"(?<=</Size>)<Checksum.*?(?=</Part>)", b"", exchange.answer.body))
        )

    def bare(exchange) -> None:
        fields = exchange.answer.fields
        if "partNumber" in exchange.request.target:
            fields = {name: value for name, value in fields.items() if "checksum" not in name}
        exchange.send(replace(exchange.answer, fields=fields))

    sizes = (
        faults.on("GetObjectAttributes", fault=Fault("sizes", without)),
        faults.on("HeadObject", fault=Fault("bare", bare)),
    )
    always(faulty, *sizes)
    assert connect().read_range("bucket", "key", 0) == content
    assert asked(faulty).count("HeadObject") == 1
    always(faulty, *sizes, flip(5))
    assert connect().read_range("bucket", "key", 0) == content
    assert asked(faulty).count("HeadObject") == 2
    faulty.objects.damage("key", 7 * MiB)
    always(faulty, *sizes)
    with pytest.raises(IntegrityError, match=r"s3://bucket/key arrived damaged: .* CRC32 of its 4 parts"):
        connect().read_range("bucket", "key", 0)


def test_a_checksum_without_a_type(faulty: FaultyServer, connect):
    """Some servers tell neither type nor number of parts: the bytes prove which of the two it is."""
    content = store(faulty, EVEN)
    fields = faulty.objects.checksums_of("key")
    of_parts = fields["x-amz-checksum-crc32"].partition("-")[0]
    for value in (of_parts, str(compute(checksums.CRC32, [memoryview(content)]))):
        fields.clear()
        fields["x-amz-checksum-crc32"] = value
        assert connect().read_range("bucket", "key", 0) == content
        info = HeadObjectResult("", len(content), 0)
        config = {"part_size": 16 * MiB, "checksums": "on", "max_connections": 1}
        assert connect(**config).get_object("bucket", "key", object_info=info).read() == content
    faulty.objects.damage("key", 3)
    with pytest.raises(IntegrityError):
        connect().read_range("bucket", "key", 0)


def test_a_checksum_of_the_bytes_that_is_called_one_of_parts(faulty: FaultyServer, connect):
    """It proves the bytes all the same."""
    content = store(faulty, UNEVEN)
    value = str(compute(checksums.CRC32, [memoryview(content)]))
    faulty.objects.checksums_of("key")["x-amz-checksum-crc32"] = value
    assert connect().read_range("bucket", "key", 0) == content


def test_nothing_tells_where_the_parts_are(faulty: FaultyServer, connect):
    """Then nothing proves what was read, and nothing says that it is damaged."""
    content = store(faulty, UNEVEN)
    ignore = Fault(
        "ignores part numbers",
        lambda exchange: exchange.send(
            exchange.objects.answer(replace(exchange.request, target=exchange.request.target.partition("?")[0]))
        ),
    )
    always(faulty, refuse("GetObjectAttributes"), faults.on("HeadObject", fault=ignore))
    with pytest.raises(UnverifiedError, match=r"COMPOSITE.*does not tell where these begin.*checksums='on'"):
        connect().read_range("bucket", "key", 0)
    assert connect(checksums="on").read_range("bucket", "key", 0) == content
    assert connect().read_range("bucket", "key", 1) == content[1:]


@pytest.mark.parametrize("name", ["CRC32C", "CRC64NVME", "XXHASH64", "XXHASH3", "XXHASH128"])
def test_without_the_package(name: str, faulty: FaultyServer, connect, monkeypatch):
    """An algorithm whose package is missing is an error that names the package, and a range is read."""
    if not is_available(next(each for each in ALGORITHMS if each.name == name)):
        pytest.skip("awscrt is not installed")
    content = store(faulty, UNEVEN, name)
    monkeypatch.setattr(checksums, "_awscrt", dict)
    monkeypatch.setattr(checksums, "_xxhashes", dict)
    with pytest.raises(UnverifiedError, match=rf"{name} cannot be computed here.*s3torch\[checksums\].*awscrt"):
        connect().read_range("bucket", "key", 0)
    assert connect().read_range("bucket", "key", 1) == content[1:]
    assert connect(checksums="on").read_range("bucket", "key", 0) == content


@pytest.mark.parametrize("operation", ["HeadObject", "GetObjectAttributes"])
def test_an_object_that_is_replaced(operation: str, faulty: FaultyServer, connect):
    """What was read of the old version is not compared with the new one."""
    store(faulty, UNEVEN)

    def replaced(exchange) -> None:
        store(faulty, [6 * MiB, 12 * MiB + 2])
        exchange.send()

    faulty.script(faults.on(operation, fault=Fault("replace", replaced)))
    with pytest.raises(ObjectChangedError):
        connect().read_range("bucket", "key", 0)


def test_a_list_that_leads_in_circles(faulty: FaultyServer, connect):
    """It is none: the parts are asked for one by one."""
    content = store(faulty, [5, 3, 9, 4])

    def act(exchange) -> None:
        body = exchange.answer.body.replace(b"<IsTruncated>false", b"<IsTruncated>true")
        exchange.send(replace(exchange.answer, body=body))

    always(faulty, faults.on("GetObjectAttributes", fault=Fault("circle", act)))
    assert connect().read_range("bucket", "key", 0) == content
    assert asked(faulty).count("GetObjectAttributes") <= 3


@pytest.mark.parametrize("name", ["CRC32", "CRC32C", "SHA1", "SHA256"])
@pytest.mark.parametrize("sizes", [[8 * MiB, 8 * MiB, 5], UNEVEN[:3], [5 * MiB]], ids=["even", "uneven", "one"])
def test_uploads_of_botocore(name: str, sizes: list[int], server, s3, boto, bucket: str, key: str):
    """What botocore uploads in parts to a real server, with its defaults, is verified."""
    content, begin, parts = content_of(sum(sizes)), 0, []
    upload = boto.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm=name)["UploadId"]
    for number, size in enumerate(sizes, 1):
        body = content[begin : begin + size]
        part = boto.upload_part(
            Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body, ChecksumAlgorithm=name
        )
        parts.append({"PartNumber": number, "ETag": part["ETag"], f"Checksum{name}": part[f"Checksum{name}"]})
        begin += size
    boto.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    told = boto.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert told["ChecksumType"] == "COMPOSITE"
    strict = S3Client(server.region, endpoint=server.endpoint, s3client_config=S3ClientConfig(checksums="strict"))
    assert strict.read_range(bucket, key, 0) == content
    for config in READERS:
        assert strict.get_object(bucket, key, reader_config=config).read() == content
    assert strict.read_range(bucket, key, 1) == content[1:]
    strict.close()
