"""``s3torchconnectorclient``, as s3torch has it."""

from s3torch.compat.version import __version__
from s3torch.errors import S3Error as S3Exception

from ._logger_patch import TRACE as LOG_TRACE

__all__ = ["LOG_TRACE", "S3Exception", "__version__"]
