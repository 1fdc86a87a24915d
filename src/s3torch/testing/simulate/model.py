"""What the bucket holds, what it held, and what a call may return because of that."""

from __future__ import annotations

import base64
import functools
import hashlib
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["PROBE", "BucketModel", "Stored", "bytes_of", "key_of"]

# An object that is always there, and that no program touches.
PROBE = "z"


def key_of(number: int) -> str:
    """Return the key of a program's object; they sort as their numbers do."""
    return f"k/{number:03}"


@functools.lru_cache(maxsize=256)
def bytes_of(key: str, version: int, size: int) -> bytes:
    """Return the bytes of one version of an object: random, so that any few of them tell where they belong."""
    return random.Random(f"{key}#{version}").randbytes(size)


@dataclass(frozen=True)
class Stored:
    """One version of an object.

    Args:
        content: Its bytes.
        etag: With the quotes.
        crc32: Of the content, as S3 writes it.
    """

    content: bytes
    etag: str
    crc32: str

    @classmethod
    @functools.lru_cache(maxsize=2048)
    def first(cls, key: str, size: int) -> Stored:
        """Return the first version of an object; programs have the same ones again and again."""
        return cls.of(bytes_of(key, 0, size))

    @classmethod
    def of(cls, content: bytes, etag: str | None = None) -> Stored:
        """Return what a server stores of some bytes."""
        etag = etag or f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        return cls(content, etag, base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode())


class BucketModel:
    """One bucket, with all that it ever held."""

    def __init__(self) -> None:
        self._history: dict[str, list[Stored | None]] = {}

    def put(self, key: str, stored: Stored) -> None:
        """Store a version, which is the newest from now on."""
        self._history.setdefault(key, [None]).append(stored)

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        if self.get(key) is not None:
            self._history[key].append(None)

    def get(self, key: str) -> Stored | None:
        """Return the newest version."""
        return self._history.get(key, [None])[-1]

    def begin(self) -> None:
        """Forget how the bucket came about: the program begins."""
        self._history = {key: versions[-1:] for key, versions in self._history.items()}

    @property
    def keys(self) -> list[str]:
        """The keys that are there, in order."""
        return sorted(key for key, versions in self._history.items() if versions[-1] is not None)

    def versions(self, key: str) -> list[bytes]:
        """Return the contents that an object had since the program began."""
        return [stored.content for stored in self._history.get(key, []) if stored is not None]

    def was_missing(self, key: str) -> bool:
        """Whether the object was not there for some of the time."""
        versions = self._history.get(key)
        return versions is None or any(stored is None for stored in versions)

    def was_replaced(self, keys: Iterable[str]) -> bool:
        """Whether one of the objects changed since the program began."""
        return any(len(self._history.get(key, ())) > 1 for key in keys)

    def is_slice(self, key: str, start: int, stop: int | None, found: bytes) -> bool:
        """Whether these bytes are what some version has in ``[start, stop)``."""
        return any(content[start:stop] == found for content in self.versions(key))

    def are_slices(self, key: str, ranges: Sequence[tuple[int, int]], found: Sequence[bytes]) -> bool:
        """Whether one version has all of these bytes in these ranges."""
        return len(found) == len(ranges) and any(
            all(content[start:stop] == piece for (start, stop), piece in zip(ranges, found, strict=True))
            for content in self.versions(key)
        )
