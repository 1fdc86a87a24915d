"""``s3torchconnector``, as s3torch has it."""

from s3torch.compat.config import S3ReaderConfig
from s3torch.config import ReaderType
from s3torch.errors import S3Error as S3Exception

from ._s3client import S3ClientConfig
from ._version import __version__
from .s3checkpoint import S3Checkpoint
from .s3iterable_dataset import S3IterableDataset
from .s3map_dataset import S3MapDataset
from .s3reader import S3Reader, S3ReaderConstructor
from .s3writer import S3Writer

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
