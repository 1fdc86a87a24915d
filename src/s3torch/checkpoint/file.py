"""S3Checkpoint: files for torch.save and torch.load."""

from __future__ import annotations

from s3torch.client import S3Client
from s3torch.config import S3ClientConfig, S3ReaderConfig
from s3torch.readers import S3Reader, check_reader_config
from s3torch.uri import parse_s3_uri
from s3torch.writer import S3Writer

__all__ = ["S3Checkpoint"]


class S3Checkpoint:
    """Opens objects to save checkpoints to and to load them from.

    Example::

        checkpoint = S3Checkpoint(region="eu-west-1")
        with checkpoint.writer("s3://bucket/model.pt") as writer:
            torch.save(model.state_dict(), writer)
        with checkpoint.reader("s3://bucket/model.pt") as reader:
            model.load_state_dict(torch.load(reader, weights_only=True))

    Args:
        region: Of the bucket; None finds it.
        endpoint: URL of the server; None finds it.
        s3client_config: See S3ClientConfig.
        reader_config: Which reader ``reader`` returns; None is sequential.
    """

    def __init__(
        self,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_config: S3ReaderConfig | None = None,
    ) -> None:
        self.region = region
        self.endpoint = endpoint
        self._reader_config = check_reader_config(reader_config)
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)

    def __repr__(self) -> str:
        return f"S3Checkpoint(region={self.region!r}, endpoint={self.endpoint!r})"

    def reader(self, s3_uri: str) -> S3Reader:
        """Return a file to load from; no request is sent yet.

        Raises:
            InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/key``.
        """
        bucket, key = parse_s3_uri(s3_uri)
        return self._client.get_object(bucket, key, reader_config=self._reader_config)

    def writer(self, s3_uri: str) -> S3Writer:
        """Return a file to save to. The checkpoint appears when it is closed; an exception inside ``with`` leaves none.

        Raises:
            InvalidURIError: ``s3_uri`` is not of the form ``s3://bucket/key``.
        """
        bucket, key = parse_s3_uri(s3_uri)
        return self._client.put_object(bucket, key)
