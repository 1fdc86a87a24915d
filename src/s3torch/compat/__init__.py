"""Programs that import s3torchconnector, run on s3torch without a change.

Either call ``install()`` before the first import of s3torchconnector, or run the program by
``python -m s3torch.compat script.py args...``. What differs, and how to move for good: docs/migrate.md.
"""

from s3torch.compat.installing import CompatError, MigrationWarning, Status, install, status

__all__ = ["CompatError", "MigrationWarning", "Status", "install", "status"]
