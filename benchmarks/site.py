"""What is read and from where, and how much of it: what a measuring process is told. Pure; sizes are in bytes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

__all__ = ["KIB", "MIB", "PART", "Effort", "Site", "Stored"]

KIB = 1024
MIB = 1024 * KIB
PART = 64 * KIB  # of the ranges that are read
_SEED = 20


class Stored(NamedTuple):
    """An object."""

    key: str
    size: int


_NOTHING = Stored("", 0)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A server and the objects in it.

    Attributes:
        bucket: That holds all objects.
        region: None leaves it to each client.
        endpoint: URL; None is Amazon S3.
        authority: PEM file of the authority to trust; None is the system's.
        path_style: Whether to address ``host/bucket/key``.
        is_ours: Whether the content is that of ``content.py``, so that it can be checked.
        access_log: Where nginx writes the size of each answer; None where nobody counts.
        prefix: Of the samples, or of all that is listed.
        part_prefix: Of some of what is listed, for those who take long.
        samples: What loaders read.
        large: What is read whole, or as far as it may be.
        wide: What ranges are read of.
        mixed: Objects of very different sizes.
        tensors: Of the state dict that is saved and loaded.
        tensor: Bytes of one of them.
    """

    bucket: str
    region: str | None = None
    endpoint: str | None = None
    authority: str | None = None
    path_style: bool = False
    is_ours: bool = False
    access_log: str | None = None
    prefix: str = ""
    part_prefix: str = ""
    samples: tuple[Stored, ...] = ()
    large: Stored = _NOTHING
    wide: Stored = _NOTHING
    mixed: tuple[Stored, ...] = ()
    tensors: int = 0
    tensor: int = 0

    @property
    def uris(self) -> list[str]:
        """The samples as URIs."""
        return [f"s3://{self.bucket}/{sample.key}" for sample in self.samples]

    @property
    def state_bytes(self) -> int:
        """Of all tensors of the state dict."""
        return self.tensors * self.tensor

    @property
    def is_plain(self) -> bool:
        """Whether it speaks HTTP without TLS."""
        return self.endpoint is not None and self.endpoint.startswith("http://")

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """Return half-open ranges of ``wide`` at random places, the same in each process."""
        chance = random.Random(_SEED)
        size = min(PART, self.wide.size)
        starts = (chance.randrange(self.wide.size - size + 1) for _ in range(count))
        return [(start, start + size) for start in starts]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for ``of_json``."""
        return asdict(self)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Site:
        """Return what ``as_json`` described."""
        several = {name: tuple(Stored(*each) for each in values[name]) for name in ("samples", "mixed")}
        one = {name: Stored(*values[name]) for name in ("large", "wide")}
        return cls(**{**values, **several, **one})


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much one process does.

    Attributes:
        warm_up: Rounds of work before the clock starts.
        rounds: Rounds that are measured.
        seconds: After which work that can end early ends.
        items: Objects, ranges or samples of one round at most.
        max_bytes: Of one round at most, as far as the work can be divided; None sets no bound.
    """

    warm_up: int = 1
    rounds: int = 1
    seconds: float = 2.0
    items: int = 1000
    max_bytes: int | None = None
