"""Checkpoints."""

from s3torch.compat.checkpoint import S3Checkpoint
from s3torch.compat.client import S3Client, S3Writer
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.readers import S3Reader
from s3torch.uri import parse_s3_uri

__all__ = ["S3Checkpoint", "S3Client", "S3ClientConfig", "S3Reader", "S3Writer", "parse_s3_uri"]
