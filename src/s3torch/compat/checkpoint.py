"""The checkpoints of s3torchconnector: s3torch's, with its arguments."""

from __future__ import annotations

from typing import Any

from s3torch import checkpoint
from s3torch.compat.client import S3Client
from s3torch.config import S3ClientConfig

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_staging" in state:
            self.__dict__.update(state)
        else:  # s3torchconnector has pickled it
            S3Checkpoint.__init__(self, state["region"], state["endpoint"], state["_client"].s3client_config)
