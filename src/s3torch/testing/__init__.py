"""Helpers for demos and tests: a real S3 server on the loopback interface."""

from .local import LocalS3, LocalS3Error

__all__ = ["LocalS3", "LocalS3Error"]
