from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch._aws import checksums
from s3torch._aws.checksums import (
    ALGORITHMS,
    CRC32,
    Algorithm,
    Checksum,
    UploadChecksums,
    checksum_of_object,
    combine,
    compute,
    crc32,
    is_available,
    upload_fields,
)

BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS}
CRCS = [algorithm for algorithm in ALGORITHMS if algorithm.polynomial]
NOT_INSTALLED = [algorithm for algorithm in ALGORITHMS if not is_available(algorithm)]

# Of b"123456789": https://reveng.sourceforge.io/crc-catalogue/all.htm (CRC-32/ISO-HDLC, CRC-32/ISCSI, CRC-64/NVME) and
# hashlib; of 32 bytes of zeros and of ones: RFC 3720, B.4.
VECTORS = [
    ("CRC32", b"123456789", "cbf43926"),
    ("CRC32C", b"123456789", "e3069283"),
    ("CRC64NVME", b"123456789", "ae8b14860a799888"),
    ("SHA1", b"123456789", hashlib.sha1(b"123456789").hexdigest()),
    ("SHA256", b"123456789", hashlib.sha256(b"123456789").hexdigest()),
    ("CRC32C", bytes(32), "8a9136aa"),
    ("CRC32C", b"\xff" * 32, "62a8ab43"),
]
CRC_VECTORS = [vector for vector in VECTORS if vector[0].startswith("CRC")]


def slow_crc(algorithm: Algorithm, content: bytes) -> Checksum:
    """Return a CRC, bit by bit."""
    ones = (1 << 8 * algorithm.size) - 1
    number = ones
    for octet in content:
        number ^= octet
        for _ in range(8):
            number = number >> 1 ^ (algorithm.polynomial if number & 1 else 0)
    return Checksum(algorithm, (number ^ ones).to_bytes(algorithm.size, "big"))


@pytest.mark.parametrize(("name", "content", "value"), CRC_VECTORS)
def test_slow_crc(name: str, content: bytes, value: str):
    """What the tests below compare with gives the published values, so the polynomials are right."""
    assert slow_crc(BY_NAME[name], content).value.hex() == value


@pytest.mark.parametrize(("name", "content", "value"), VECTORS)
def test_compute(name: str, content: bytes, value: str):
    """Each algorithm that is installed gives the published values, in one piece and byte by byte."""
    algorithm = BY_NAME[name]
    if algorithm in NOT_INSTALLED:
        pytest.skip("awscrt is not installed")
    view = memoryview(bytearray(content))
    assert compute(algorithm, [view]).value.hex() == value
    assert compute(algorithm, [view[index : index + 1] for index in range(len(view))]).value.hex() == value


@given(content=st.binary(max_size=200), times=st.integers(1, 500), before=st.integers(0, 2**32 - 1))
def test_crc32(content: bytes, times: int, before: int):
    """It gives what zlib gives, for small and for larger buffers, and goes on from any value."""
    assert crc32(content * times, before) == zlib.crc32(content * times, before)


@pytest.mark.parametrize("algorithm", CRCS, ids=lambda algorithm: algorithm.name)
@given(first=st.binary(max_size=40), second=st.binary(max_size=40), zeros=st.integers(0, 300))
def test_combine(algorithm: Algorithm, first: bytes, second: bytes, zeros: int):
    """The CRC of two pieces follows from those of each, whatever their lengths."""
    second += bytes(zeros)
    combined = combine(slow_crc(algorithm, first), slow_crc(algorithm, second), len(second))
    assert combined == slow_crc(algorithm, first + second)


def test_combine_large_parts():
    """Parts as large as those of an upload are combined, too."""
    parts = [bytes([number]) * (5 * 1024 * 1024 + number) for number in range(3)]
    combined = compute(CRC32, [])
    for part in parts:
        combined = combine(combined, compute(CRC32, [memoryview(part)]), len(part))
    assert combined == compute(CRC32, [memoryview(b"".join(parts))])


@pytest.mark.parametrize("first", ["CRC32", "SHA1"])
def test_combine_what_cannot_be(first: str):
    """Only two CRCs of one algorithm can be combined."""
    values = [Checksum(BY_NAME[name], bytes(BY_NAME[name].size)) for name in (first, "SHA1")]
    with pytest.raises(AssertionError):
        combine(*values, 1)


GOOD = "y/Q5Jg=="  # the CRC32 of b"123456789"
FULL = {"x-amz-checksum-type": "FULL_OBJECT"}


@pytest.mark.parametrize(
    ("fields", "is_range", "expected"),
    [
        ({"x-amz-checksum-crc32": GOOD}, False, "CRC32"),
        ({"x-amz-checksum-crc32": GOOD, **FULL}, False, "CRC32"),
        ({"x-amz-checksum-crc32": GOOD, **FULL}, True, "CRC32"),
        ({}, False, None),
        (FULL, False, None),
        ({"x-amz-checksum-crc32": GOOD}, True, None),  # may be composite
        ({"x-amz-checksum-crc32": GOOD, "x-amz-checksum-type": "COMPOSITE"}, False, None),
        ({"x-amz-checksum-crc32": f"{GOOD}-2"}, False, None),
        ({"x-amz-checksum-crc32": f"{GOOD}-2", **FULL}, False, None),
        ({"x-amz-checksum-crc32": ""}, False, None),
        ({"x-amz-checksum-crc32": "y/Q5Jg"}, False, None),
        ({"x-amz-checksum-crc32": "ü"}, False, None),
        ({"x-amz-checksum-crc32": base64.b64encode(bytes(8)).decode()}, False, None),
        ({"x-amz-checksum-crc64": GOOD, "x-amz-checksum-xxhash3": GOOD}, False, None),
        ({"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()}, False, "SHA256"),
        ({"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode(), "x-amz-checksum-crc32": GOOD}, False, "CRC32"),
        ({"x-amz-checksum-crc32c": GOOD, "x-amz-checksum-crc32": GOOD}, False, "CRC32"),
        ({"x-amz-checksum-crc32c": GOOD}, False, "CRC32C"),
    ],
)
def test_checksum_of_object(fields: dict[str, str], is_range: bool, expected: str | None, monkeypatch):
    """Only a checksum of all bytes counts; one that can be computed comes first, then the cheapest."""
    monkeypatch.setattr(checksums, "_awscrt", dict)
    found = checksum_of_object(fields, is_range=is_range)
    assert (found and found.algorithm.name) == expected
    assert found is None or str(found) == fields[found.algorithm.field]


def test_cheapest_first(monkeypatch):
    """Of several that can be computed the cheapest is taken."""
    monkeypatch.setattr(checksums, "_awscrt", lambda: {"CRC32C": None, "CRC64NVME": None})
    fields = {algorithm.field: base64.b64encode(bytes(algorithm.size)).decode() for algorithm in ALGORITHMS}
    assert checksum_of_object(fields, is_range=False).algorithm.name == "CRC64NVME"


def test_upload_fields():
    """An upload names the algorithm and carries its value in base64, the highest byte first."""
    assert upload_fields(compute(CRC32, [memoryview(b"123456789")])) == {
        "x-amz-checksum-crc32": GOOD,
        "x-amz-sdk-checksum-algorithm": "CRC32",
    }


ASKED = {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"}


@pytest.mark.parametrize(
    ("is_wanted", "answer", "of_parts", "of_object"),
    [
        (True, ("CRC32", "FULL_OBJECT"), True, True),
        (True, ("CRC32", "COMPOSITE"), True, False),
        (True, ("CRC32", None), True, False),
        (True, ("SHA1", "FULL_OBJECT"), False, False),
        (True, (None, None), False, False),
        (False, ("CRC32", "FULL_OBJECT"), False, False),
    ],
)
def test_upload_checksums(is_wanted: bool, answer: tuple[str | None, str | None], of_parts: bool, of_object: bool):
    """A multipart upload is completed with those checksums that the server has said it knows."""
    upload = UploadChecksums(is_wanted=is_wanted)
    assert upload.fields_to_create() == (ASKED if is_wanted else {})
    upload.note_created(*answer)
    assert upload.are_verified == of_parts
    parts = [(compute(CRC32, [memoryview(part)]), len(part)) for part in (b"1234", b"56789")]
    found = upload.fields_to_complete(parts)
    assert found == ({"x-amz-checksum-crc32": GOOD, "x-amz-checksum-type": "FULL_OBJECT"} if of_object else {})
    assert upload.fields_to_complete([]) == {}
