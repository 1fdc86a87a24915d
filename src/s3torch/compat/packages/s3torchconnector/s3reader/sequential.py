"""The sequential reader."""

from s3torch._aws.listing import ObjectInfo
from s3torch.client import HeadObjectResult
from s3torch.compat.readers import S3Reader, SequentialS3Reader
from s3torch.compat.streams import GetObjectStream

__all__ = ["GetObjectStream", "HeadObjectResult", "ObjectInfo", "S3Reader", "SequentialS3Reader"]
