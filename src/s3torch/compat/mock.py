"""Clients with a bucket in memory, for the tests of programs."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.native import MountpointS3Client

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MockMountpointS3Client", "MockS3Client"]

_DEFAULTS = S3ClientConfig()


class _Bucket:
    """A client of a server in this process, which has one bucket and ends with the client."""

    def _start(self, bucket: str) -> str:
        """Start the server, and return its endpoint."""
        from s3torch.testing import FaultyServer  # a server, which a program does not need

        self._server = FaultyServer(bucket=bucket)
        self._server.__enter__()
        weakref.finalize(self, self._server.__exit__, None, None, None)
        return self._server.endpoint

    def add_object(self, key: str, data: bytes) -> None:
        """Put an object into the bucket."""
        self._server.objects[key] = data

    def remove_object(self, key: str) -> None:
        """Take an object out of the bucket."""
        self._server.objects.pop(key, None)


class MockS3Client(_Bucket, S3Client):
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
        super().__init__(region, endpoint=self._start(bucket), user_agent=user_agent, s3client_config=config)


class MockMountpointS3Client(_Bucket, MountpointS3Client):
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
        super().__init__(
            region,
            user_agent_prefix,
            throughput_target_gbps,
            part_size,
            unsigned=True,
            endpoint=self._start(bucket),
            force_path_style=True,
            max_attempts=max_attempts,
        )

    def create_mocked_client(self) -> Self:
        """Return a client of the bucket: this one."""
        return self
