"""What all readers are."""

from s3torch.compat.readers import S3Reader

__all__ = ["S3Reader"]
