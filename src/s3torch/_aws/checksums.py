"""The checksums that S3 stores with objects: which an answer carries, how they are computed and combined.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html.

A checksum of the type FULL_OBJECT is that of the object's bytes. One of the type COMPOSITE is a checksum of the parts'
checksums, and says nothing to whoever does not know where the parts of the upload began. It is written ``value-N`` in
the answer for the whole object, but without ``-N`` in the answer for a range of all of it: so an answer with a range is
only believed where it names its type (https://github.com/boto/botocore/issues/3346). Nor is one that names no type
believed of an object whose ETag is one of parts: some servers never write the ``-N``.

What the parts' checksums prove is in ``part_checksums.py``.

The standard library computes MD5 and the SHAs, and ``zlib_ng`` CRC32, in a seventh of the time that zlib takes. CRC32C,
CRC64NVME and the XXHASHes are in neither, and too slow in Python: they need ``awscrt``.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from zlib_ng.zlib_ng import crc32

from s3torch._forks import NO_FORK

__all__ = [
    "ALGORITHMS",
    "CRC32",
    "EXTRA",
    "MODE_FIELDS",
    "OF_OBJECT",
    "OF_PARTS",
    "TYPE_FIELD",
    "Algorithm",
    "Checksum",
    "UploadChecksums",
    "cheapest",
    "checksum_of_object",
    "combine",
    "combine_all",
    "compute",
    "crc32",
    "decoded",
    "is_available",
    "parts_in",
    "upload_fields",
]

# The types of a checksum.
OF_OBJECT = "FULL_OBJECT"
OF_PARTS = "COMPOSITE"

# What installs the package that computes what is in no other, and the package.
EXTRA = "pip install 's3torch[checksums]', which brings a new awscrt,"

# What a request for an object or its head carries so that the answer has its checksums.
MODE_FIELDS: Mapping[str, str] = {"x-amz-checksum-mode": "ENABLED"}
TYPE_FIELD = "x-amz-checksum-type"

_ETAG_OF_PARTS = re.compile(r'-([1-9][0-9]{0,4})"?$')

Crc = Callable[[memoryview, int], int]

# XXHash of awscrt takes bytes alone: so much is copied at a time. Larger pieces leave the caches, and take longer.
_COPIED = 256 * 1024


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A checksum algorithm of the S3 API.

    Args:
        name: The API's.
        size: Of a value, in bytes.
        polynomial: Of a CRC: reflected, without the highest term. 0 for a hash.
    """

    name: str
    size: int
    polynomial: int = 0

    @property
    def field(self) -> str:
        """The name of the header field that carries it."""
        return f"x-amz-checksum-{self.name.lower()}"


CRC32 = Algorithm("CRC32", 4, 0xEDB88320)
CRC32C = Algorithm("CRC32C", 4, 0x82F63B78)
CRC64NVME = Algorithm("CRC64NVME", 8, 0x9A6C9329AC4BC9B5)
SHA1 = Algorithm("SHA1", 20)
SHA256 = Algorithm("SHA256", 32)
SHA512 = Algorithm("SHA512", 64)
MD5 = Algorithm("MD5", 16)
XXHASH64 = Algorithm("XXHASH64", 8)
XXHASH3 = Algorithm("XXHASH3", 8)
XXHASH128 = Algorithm("XXHASH128", 16)

# The cheapest first, as measured in docs/design.md: an answer may carry several.
# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Checksum.html.
ALGORITHMS = (CRC64NVME, CRC32C, CRC32, XXHASH3, XXHASH128, XXHASH64, SHA1, SHA256, SHA512, MD5)
_IN_AWSCRT = frozenset({CRC32C, CRC64NVME, XXHASH64, XXHASH3, XXHASH128})
_FIELDS = tuple((algorithm.field, algorithm) for algorithm in ALGORITHMS)


class Checksum(NamedTuple):
    """A value and the algorithm that it is of; as text it is written as in a header field."""

    algorithm: Algorithm
    value: bytes

    def __str__(self) -> str:
        return base64.b64encode(self.value).decode()


def checksum_of_object(fields: Mapping[str, str], *, is_range: bool) -> Checksum | None:
    """Return the checksum of all bytes of the object that an answer carries, of the cheapest algorithm that is there.

    Args:
        fields: Header fields of the answer, by lower-case name.
        is_range: Whether it answers a range; one that has all bytes, as that of any other has no such checksum.

    Returns:
        A checksum whose algorithm may not be available, if no other is there; None if there is none that can be
        compared with the object's bytes.
    """
    kind = fields.get(TYPE_FIELD)
    if kind != OF_OBJECT and (kind is not None or is_range or parts_in(fields.get("etag"))):
        return None
    found = {algorithm: decoded(fields[field], algorithm) for field, algorithm in _FIELDS if field in fields}
    return cheapest(found)


def parts_in(etag: str | None) -> int:
    """Return of how many parts an object was uploaded, by its ETag; 0 if that does not tell."""
    match = _ETAG_OF_PARTS.search(etag or "")
    return 0 if match is None else int(match[1])


def cheapest(found: Mapping[Algorithm, bytes | None]) -> Checksum | None:
    """Return the checksum to compare with, of several of the same bytes: the cheapest that can be computed here.

    Args:
        found: The values; None for what is none.

    Returns:
        A checksum whose algorithm may not be available, if no other is there; None if there is none.
    """
    known = [Checksum(each, value) for each in ALGORITHMS if (value := found.get(each)) is not None]
    return next((each for each in known if is_available(each.algorithm)), known[-1] if known else None)


def is_available(algorithm: Algorithm) -> bool:
    """Whether an algorithm can be computed here."""
    return algorithm not in _IN_AWSCRT or algorithm.name in _awscrt() or algorithm.name in _xxhashes()


def compute(algorithm: Algorithm, pieces: Iterable[memoryview]) -> Checksum:
    """Return the checksum of bytes that lie in pieces; the algorithm must be available."""
    if algorithm.polynomial:
        crc = crc32 if algorithm is CRC32 else _awscrt()[algorithm.name]
        number = 0
        for piece in pieces:
            number = crc(piece, number)
        return Checksum(algorithm, number.to_bytes(algorithm.size, "big"))
    if algorithm in _IN_AWSCRT:
        hashed = _xxhashes()[algorithm.name]()
        for piece in pieces:
            for start in range(0, len(piece), _COPIED):
                hashed.update(bytes(piece[start : start + _COPIED]))
        return Checksum(algorithm, hashed.finalize())
    digest = hashlib.new(algorithm.name, usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return Checksum(algorithm, digest.digest())


def combine(first: Checksum, second: Checksum, length: int) -> Checksum:
    """Return the CRC of bytes that follow one another, from those of both halves.

    As the CRC of bytes followed by n zeros is that of the bytes times x^8n, modulo the polynomial.

    Args:
        first: Of the bytes before.
        second: Of the bytes behind, by the same CRC.
        length: How many bytes are behind.
    """
    algorithm = first.algorithm
    if second.algorithm is not algorithm or not algorithm.polynomial:
        raise AssertionError(f"{algorithm.name} and {second.algorithm.name} cannot be combined")
    shifted = _product(int.from_bytes(first.value, "big"), _power(algorithm, 8 * length), algorithm)
    number = shifted ^ int.from_bytes(second.value, "big")
    return Checksum(algorithm, number.to_bytes(algorithm.size, "big"))


def combine_all(algorithm: Algorithm, known: Iterable[tuple[Checksum, int]]) -> Checksum:
    """Return the CRC of bytes that follow one another, from those of all pieces and their lengths, in order."""
    whole: Checksum | None = None
    for checksum, length in known:
        whole = checksum if whole is None else combine(whole, checksum, length)
    return whole or compute(algorithm, [])


def upload_fields(checksum: Checksum) -> dict[str, str]:
    """Return the header fields by which the server verifies the body of an upload, and stores its checksum."""
    return {checksum.algorithm.field: str(checksum), "x-amz-sdk-checksum-algorithm": checksum.algorithm.name}


class UploadChecksums:
    """The checksums of a multipart upload: what to tell the server so that it verifies, and stores, the object's.

    A server that knows nothing of them does not repeat, when the upload begins, what it was asked for; then nothing
    more is told to it.

    Args:
        is_wanted: Whether to ask for them.

    Attributes:
        are_verified: Whether the server has said that it verifies them.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        self.are_verified = False
        self._is_wanted = is_wanted
        self._is_of_object = False

    def fields_to_create(self) -> dict[str, str]:
        """Return header fields of CreateMultipartUpload."""
        if not self._is_wanted:
            return {}
        return {"x-amz-checksum-algorithm": CRC32.name, "x-amz-checksum-type": OF_OBJECT}

    def note_created(self, algorithm: str | None, kind: str | None) -> None:
        """Note which checksums an upload has, as the server tells."""
        self.are_verified = self._is_wanted and algorithm == CRC32.name
        self._is_of_object = self.are_verified and kind == OF_OBJECT

    def fields_to_complete(self, parts: Sequence[tuple[Checksum, int]]) -> dict[str, str]:
        """Return header fields of CompleteMultipartUpload.

        Args:
            parts: Checksum and length in bytes of each, in order.
        """
        if not self._is_of_object or not parts:
            return {}
        return {CRC32.field: str(combine_all(CRC32, parts)), "x-amz-checksum-type": OF_OBJECT}


def decoded(text: str, algorithm: Algorithm) -> bytes | None:
    """Return the value that a text stands for; None if it is of parts (``value-N``), or nonsense."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return value if len(value) == algorithm.size else None


@functools.cache
def _awscrt() -> Mapping[str, Crc]:
    """Return the CRCs of awscrt, by name; none if it is not installed."""
    try:
        with NO_FORK:
            from awscrt import checksums  # takes 70 ms
    except ImportError:
        return {}
    names = {"crc32c": CRC32C.name, "crc64nvme": CRC64NVME.name}
    return {name: getattr(checksums, each) for each, name in names.items() if hasattr(checksums, each)}


class _XXHash(Protocol):
    """A hash of awscrt."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""

    def finalize(self) -> bytes:
        """Return the value, its highest byte first."""


@functools.cache
def _xxhashes() -> Mapping[str, Callable[[], _XXHash]]:
    """Return what makes the hashes of awscrt, by name; none if it is not installed, or too old."""
    try:
        with NO_FORK:
            from awscrt.checksums import XXHash
    except ImportError:
        return {}
    return {
        XXHASH64.name: XXHash.new_xxhash64,
        XXHASH3.name: XXHash.new_xxhash3_64,
        XXHASH128.name: XXHash.new_xxhash3_128,
    }


def _product(left: int, right: int, algorithm: Algorithm) -> int:
    """Return the product of two polynomials modulo that of a CRC; the highest bit is the coefficient of x^0."""
    mask = 1 << (8 * algorithm.size - 1)
    product = 0
    while left:
        if left & mask:
            product ^= right
            left ^= mask
        mask >>= 1
        right = right >> 1 ^ (algorithm.polynomial if right & 1 else 0)
    return product


@functools.lru_cache(maxsize=64)  # the parts of an upload are of few sizes
def _power(algorithm: Algorithm, exponent: int) -> int:
    """Return x^exponent modulo the polynomial of a CRC."""
    power = 1 << (8 * algorithm.size - 1)
    for bit in range(exponent.bit_length()):
        if exponent >> bit & 1:
            power = _product(power, _square(algorithm, bit), algorithm)
    return power


@functools.lru_cache(maxsize=128)
def _square(algorithm: Algorithm, times: int) -> int:
    """Return x^(2^times) modulo the polynomial of a CRC, by repeated squaring."""
    if not times:
        return 1 << (8 * algorithm.size - 2)
    root = _square(algorithm, times - 1)
    return _product(root, root, algorithm)
