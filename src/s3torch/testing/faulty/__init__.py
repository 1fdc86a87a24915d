"""A fault-injecting S3 server for tests; see `FaultyServer`."""

from . import faults
from .authority import FaultyServerError
from .server import FaultyServer

__all__ = ["FaultyServer", "FaultyServerError", "faults"]
