"""Clients with a bucket in memory, for the tests of programs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from s3torch import client
from s3torch._access import Access
from s3torch._transfer.connection import Network
from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.native import MountpointS3Client

if TYPE_CHECKING:
    from typing_extensions import Self

    from s3torch.config import S3ClientConfig as CoreConfig
    from s3torch.testing.memory import MemoryObjects

__all__ = ["MockMountpointS3Client", "MockS3Client"]

_DEFAULTS = S3ClientConfig()


# Nothing is sent there, and nothing answers there.
_ENDPOINT = "http://in-memory.invalid"


class _InMemoryAccess(Access):
    """Has all requests answered by a bucket in memory."""

    def __init__(
        self,
        objects: MemoryObjects,
        config: CoreConfig,
        region: str | None,
        endpoint: str | None,
        user_agent_comments: tuple[str, ...],
    ) -> None:
        super().__init__(config, region, endpoint, user_agent_comments)
        self._objects = objects

    def _new_network(self, state: object) -> Network:
        from s3torch.testing.memory import MemoryNetwork

        del state
        return cast("Network", MemoryNetwork(self._objects))  # which does all that an engine asks of one


class _InMemory(client.S3Client):
    """A client whose requests are answered by a bucket in memory.

    A forked process goes on with a copy of the bucket, and so does one that the client is pickled to.
    """

    _objects: MemoryObjects

    def add_object(self, key: str, data: bytes) -> None:
        """Put an object into the bucket."""
        self._objects[key] = data

    def remove_object(self, key: str) -> None:
        """Take an object out of the bucket."""
        self._objects.discard(key)

    def _begin_in_memory(self, bucket: str) -> None:
        from s3torch.testing.memory import MemoryObjects  # which a program does not need

        self._objects = MemoryObjects(bucket)

    def _new_access(self, user_agent_comments: tuple[str, ...]) -> Access:
        return _InMemoryAccess(
            self._objects, self.s3client_config, self.given_region, self.endpoint, user_agent_comments
        )


class MockS3Client(_InMemory, S3Client):
    """A client with a bucket in memory.

    Args:
        region: Of the bucket.
        bucket: Its name.
        user_agent: As for S3Client.
        s3client_config: As for S3Client; nothing is signed.
    """

    def __init__(
        self,
        region: str,
        bucket: str,
        user_agent: UserAgent | None = None,
        s3client_config: S3ClientConfig | None = None,
    ) -> None:
        config = replace(s3client_config or S3ClientConfig(), unsigned=True, force_path_style=True)
        self._begin_in_memory(bucket)
        super().__init__(region, endpoint=_ENDPOINT, user_agent=user_agent, s3client_config=config)


class MockMountpointS3Client(_InMemory, MountpointS3Client):
    """A native client with a bucket in memory; nothing is signed, and the endpoint is its own.

    Args:
        region: Of the bucket.
        bucket: Its name.

    The others are those of MountpointS3Client.
    """

    def __init__(
        self,
        region: str,
        bucket: str,
        endpoint: str = "",
        throughput_target_gbps: float | None = _DEFAULTS.throughput_target_gbps,
        part_size: int = _DEFAULTS.part_size,
        user_agent_prefix: str = "mock_client",
        unsigned: bool = False,  # noqa: FBT001, FBT002  # the place it has in s3torchconnector
        force_path_style: bool = False,  # noqa: FBT001, FBT002  # the place it has in s3torchconnector
        max_attempts: int = _DEFAULTS.max_attempts,
    ) -> None:
        del endpoint, unsigned, force_path_style
        self._begin_in_memory(bucket)
        super().__init__(
            region,
            user_agent_prefix,
            throughput_target_gbps,
            part_size,
            unsigned=True,
            endpoint=_ENDPOINT,
            force_path_style=True,
            max_attempts=max_attempts,
        )

    def create_mocked_client(self) -> Self:
        """Return a client of the bucket: this one."""
        return self
