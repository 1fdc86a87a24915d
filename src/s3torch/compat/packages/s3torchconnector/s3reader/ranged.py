"""The range-based reader."""

from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.compat.readers import RangedS3Reader, S3Reader
from s3torch.compat.streams import GetObjectStream

DEFAULT_BUFFER_SIZE = 8 * 1024 * 1024

__all__ = ["DEFAULT_BUFFER_SIZE", "GetObjectStream", "HeadObjectResult", "ObjectInfo", "RangedS3Reader", "S3Reader"]
