"""The User-Agent field."""

from s3torch.compat.client import UserAgent
from s3torch.compat.version import __version__

__all__ = ["UserAgent", "__version__"]
