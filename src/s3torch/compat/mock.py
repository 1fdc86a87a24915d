"""MockS3Client: a client with a bucket in memory, for the tests of programs."""

from __future__ import annotations

from dataclasses import replace

from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.native import MockMountpointS3Client

__all__ = ["MockS3Client"]


class MockS3Client(S3Client):
    """A client of a server in this process, which has one bucket and ends with the client.

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
        self._mock_client = MockMountpointS3Client(region, bucket)
        config = replace(s3client_config or S3ClientConfig(), unsigned=True, force_path_style=True)
        endpoint = self._mock_client.server.endpoint
        super().__init__(region, endpoint=endpoint, user_agent=user_agent, s3client_config=config)

    def add_object(self, key: str, data: bytes) -> None:
        """Put an object into the bucket."""
        self._mock_client.add_object(key, data)

    def remove_object(self, key: str) -> None:
        """Take an object out of the bucket."""
        self._mock_client.remove_object(key)
