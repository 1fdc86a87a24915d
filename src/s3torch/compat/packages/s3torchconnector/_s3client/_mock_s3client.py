"""A client for tests."""

from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.mock import MockS3Client
from s3torch.compat.native import MockMountpointS3Client, MountpointS3Client

__all__ = ["MockMountpointS3Client", "MockS3Client", "MountpointS3Client", "S3Client", "S3ClientConfig", "UserAgent"]
