"""The objects of our own servers, as files for nginx."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.content import pieces
from benchmarks.site import KIB, MIB, Stored

__all__ = ["BUCKET", "SAMPLES_PREFIX", "Scale", "lay_out"]

BUCKET = "bucket"
SAMPLES_PREFIX = "samples/"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the objects are, and how many.

    Attributes:
        large: Bytes of the object that is read whole.
        wide: Bytes of the object that ranges are read of.
        samples: Objects of ``sample`` bytes.
        sample: Bytes of one of them.
        mixed: Bytes of the objects of different sizes.
        tensors: Of the state dict.
        tensor: Bytes of one of them.
        sharded_tensors: Of the state dict that ranks share.
        sharded_tensor: Bytes of one of them, as of a layer's weights.
    """

    large: int = 256 * MIB
    wide: int = 1024 * MIB
    samples: int = 4096
    sample: int = 100_000
    mixed: tuple[int, ...] = (100_000, 100_000, 1 * MIB, 3 * MIB, 100_000, 8 * MIB, 16 * MIB, 100_000, 32 * MIB) * 4
    tensors: int = 200
    tensor: int = 4 * 1_342_177  # 200 of them are 1 GiB but for 224 bytes
    sharded_tensors: int = 64
    sharded_tensor: int = 16 * MIB

    @classmethod
    def quick(cls) -> Scale:
        """Return what is made in a second."""
        return cls(
            large=32 * MIB,
            wide=128 * MIB,
            samples=256,
            mixed=(100_000, 1 * MIB, 100 * KIB, 32 * MIB) * 3,
            tensors=20,
            tensor=1 * MIB,
            sharded_tensors=10,
            sharded_tensor=2 * MIB,
        )

    @property
    def sample_objects(self) -> tuple[Stored, ...]:
        """The samples, in the order of their keys."""
        return tuple(Stored(f"{SAMPLES_PREFIX}{number:05}", self.sample) for number in range(self.samples))

    @property
    def mixed_objects(self) -> tuple[Stored, ...]:
        """The objects of different sizes, in the order of their keys."""
        return tuple(Stored(f"mixed/{number:03}", size) for number, size in enumerate(self.mixed))

    @property
    def large_object(self) -> Stored:
        """The object that is read whole."""
        return Stored("large", self.large)

    @property
    def wide_object(self) -> Stored:
        """The object that ranges are read of."""
        return Stored("wide", self.wide)


def lay_out(bucket: Path, scale: Scale) -> None:
    """Write all objects. Those of one size are one file by many names: their content is the same."""
    written: dict[int, Path] = {}
    for key, size in (scale.large_object, scale.wide_object, *scale.sample_objects, *scale.mixed_objects):
        path = bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if size in written:
            os.link(written[size], path)
            continue
        with path.open("wb") as file:
            file.writelines(pieces(size))
        written[size] = path
