"""The configurations that s3torchconnector has or had, as those of s3torch."""

from __future__ import annotations

from dataclasses import dataclass

from s3torch import config
from s3torch.config import ReaderType

__all__ = ["S3ClientConfig", "S3ReaderConfig"]

_DEFAULT_GBPS = 10.0


@dataclass(frozen=True)
class S3ClientConfig(config.S3ClientConfig):
    """s3torch's configuration of a client with the other's default.

    Args:
        throughput_target_gbps: As in s3torch; but 10.0, which nobody has chosen, limits nothing.

    The others are those of ``s3torch.S3ClientConfig``.
    """

    throughput_target_gbps: float | None = _DEFAULT_GBPS

    def connections_of(self, most: int) -> int:
        """Return how many connections one thread may have open; see s3torch."""
        if self.throughput_target_gbps == _DEFAULT_GBPS:
            return most if self.max_connections is None else self.max_connections
        return super().connections_of(most)


class S3ReaderConfig(config.S3ReaderConfig):
    """s3torch's choice of a reader, with the enumeration inside, where it was before ``reader_constructor``."""

    ReaderType = ReaderType
