"""The checkpoints of s3torchconnector: s3torch's, with its arguments."""

from __future__ import annotations

from typing import Any

from s3torch import checkpoint
from s3torch.compat.client import S3Client
from s3torch.config import S3ClientConfig
from s3torch.readers import S3Reader
from s3torch.uri import parse_s3_uri

__all__ = ["S3Checkpoint"]


class S3Checkpoint(checkpoint.S3Checkpoint):
    """Readers and writers of checkpoints; see ``s3torch.S3Checkpoint``, which can save and load by itself.

    Args:
        region: Of the bucket.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.
    """

    def __init__(self, region: str, endpoint: str | None = None, s3client_config: S3ClientConfig | None = None) -> None:
        super().__init__(region, endpoint, s3client_config)
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)

    def reader(self, s3_uri: str) -> S3Reader:
        """Return a file to load from; no request is sent yet. The key is taken literally, as s3torchconnector does."""
        bucket, key = parse_s3_uri(s3_uri)
        return self._client.get_object(bucket, key, reader_config=self._reader_config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_staging" in state:
            self.__dict__.update(state)
        else:  # s3torchconnector has pickled it
            S3Checkpoint.__init__(self, state["region"], state["endpoint"], state["_client"].s3client_config)
