"""Datasets over a bucket in memory: no socket, no wait, and a forked worker has a copy of it."""

from __future__ import annotations

from typing import Any, TypeVar

from s3torch import S3Client, S3ClientConfig
from s3torch._access import Access
from s3torch.compat.mock import _InMemoryAccess
from s3torch.testing.memory import MemoryObjects

__all__ = ["MemoryClient", "over"]

D = TypeVar("D", bound=Any)


class MemoryClient(S3Client):
    """A client whose requests are answered by a bucket in memory.

    Attributes:
        objects: Contents by keys.
    """

    def __init__(self, bucket: str = "bucket") -> None:
        self.objects = MemoryObjects(bucket)
        config = S3ClientConfig(unsigned=True, force_path_style=True, hedging=False)
        super().__init__("us-east-1", endpoint="http://in-memory.invalid", s3client_config=config)

    def _new_access(self, user_agent_comments: tuple[str, ...]) -> Access:
        return _InMemoryAccess(
            self.objects, self.s3client_config, self.given_region, self.endpoint, user_agent_comments
        )


def over(client: S3Client, dataset: D) -> D:
    """Return a dataset that reads by this client."""
    dataset._client = client
    return dataset
