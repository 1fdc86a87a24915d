"""``s3torchconnectorclient``, as s3torch has it."""

from s3torch.compat.version import __version__
from s3torch.errors import S3Error as S3Exception

LOG_TRACE = 5

__all__ = ["LOG_TRACE", "S3Exception", "__version__"]
