"""Helpers for demos and tests: a real S3 server on the loopback interface, and one that fails as it is told to."""

from .faulty import FaultyServer, FaultyServerError, faults
from .local import LocalS3, LocalS3Error

__all__ = ["FaultyServer", "FaultyServerError", "LocalS3", "LocalS3Error", "faults"]
