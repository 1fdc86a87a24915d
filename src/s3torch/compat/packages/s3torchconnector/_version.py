"""The version."""

from s3torch.compat.version import __version__

__all__ = ["__version__"]
