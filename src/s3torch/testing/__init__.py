"""Helpers for demos and tests: a real S3 server on loopback, one that fails as it is told to, one of S3 Express."""

from .express import ExpressServer
from .faulty import FaultyServer, FaultyServerError, faults
from .local import LocalS3, LocalS3Error

__all__ = ["ExpressServer", "FaultyServer", "FaultyServerError", "LocalS3", "LocalS3Error", "faults"]
