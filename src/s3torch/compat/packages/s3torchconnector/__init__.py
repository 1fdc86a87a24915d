"""``s3torchconnector``, as s3torch has it."""

from s3torch.compat.checkpoint import S3Checkpoint
from s3torch.compat.config import S3ClientConfig, S3ReaderConfig
from s3torch.compat.datasets import S3IterableDataset, S3MapDataset
from s3torch.compat.readers import S3Reader, S3ReaderConstructor
from s3torch.compat.version import __version__
from s3torch.config import ReaderType
from s3torch.errors import S3Error as S3Exception
from s3torch.writer import S3Writer

__all__ = [
    "ReaderType",
    "S3Checkpoint",
    "S3ClientConfig",
    "S3Exception",
    "S3IterableDataset",
    "S3MapDataset",
    "S3Reader",
    "S3ReaderConfig",
    "S3ReaderConstructor",
    "S3Writer",
    "__version__",
]
