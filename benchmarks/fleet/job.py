"""The job that is looked at, and the limits and prices of the service."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DNS_PER_SECOND",
    "DOLLARS_PER_GET",
    "DOLLARS_PER_LIST",
    "DOLLARS_PER_PUT",
    "GETS_PER_SECOND",
    "KEYS_OF_A_PAGE",
    "PUTS_PER_SECOND",
    "STS_PER_SECOND",
    "Job",
]

# At least so many a second for each partitioned prefix:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html. A LIST is counted as a GET here,
# as AWS gives no number for it.
GETS_PER_SECOND = 5500
PUTS_PER_SECOND = 3500
# Of an account in a region: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html.
STS_PER_SECOND = 600
# Packets of one network interface: https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html.
DNS_PER_SECOND = 1024
# S3 Standard, us-east-1, November 2026: https://aws.amazon.com/s3/pricing/.
DOLLARS_PER_GET = 0.0004 / 1000
DOLLARS_PER_LIST = DOLLARS_PER_PUT = 0.005 / 1000
KEYS_OF_A_PAGE = 1000  # of a listing, at most


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job.

    Attributes:
        objects: Samples of the dataset, one object each.
        object_size: Their mean size in bytes.
        world_size: Number of ranks.
        local_ranks: Ranks of a node.
        workers: DataLoader workers of a rank.
        batch_size: Samples of a batch of a rank.
        connections: Of a worker: with 128 workers a node has 2,048 of them.
    """

    objects: int = 100_000_000
    object_size: int = 100_000
    world_size: int = 1024
    local_ranks: int = 8
    workers: int = 16
    batch_size: int = 64
    connections: int = 16

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.world_size // self.local_ranks)

    @property
    def all_workers(self) -> int:
        """Workers of all ranks."""
        return self.world_size * self.workers

    @property
    def step(self) -> int:
        """Samples that all ranks receive with one batch each."""
        return self.world_size * self.batch_size
