"""A client for tests."""

from s3torch.compat.client import S3Client, UserAgent
from s3torch.compat.config import S3ClientConfig
from s3torch.compat.mock import MockMountpointS3Client, MockS3Client
from s3torch.compat.native import MountpointS3Client

__all__ = ["MockMountpointS3Client", "MockS3Client", "MountpointS3Client", "S3Client", "S3ClientConfig", "UserAgent"]
