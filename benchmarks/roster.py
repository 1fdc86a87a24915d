"""All clients, in the order of the tables' rows. Importing this imports none of their packages."""

from __future__ import annotations

# isort: off
from benchmarks.clients import floor  # noqa: F401
from benchmarks.clients import s3torch  # noqa: F401
from benchmarks.clients import compat  # noqa: F401
from benchmarks.clients import s3torchconnector  # noqa: F401
from benchmarks.clients import litdata  # noqa: F401
from benchmarks.clients import obstore  # noqa: F401
from benchmarks.clients import awscrt  # noqa: F401
from benchmarks.clients import boto3  # noqa: F401
from benchmarks.clients import minio  # noqa: F401
from benchmarks.clients import s3fs  # noqa: F401
from benchmarks.clients import runai  # noqa: F401

# isort: on
from benchmarks.registry import Contender, contenders

__all__ = ["CLIENTS", "contenders_of"]

CLIENTS = (
    "floor",
    "s3torch",
    "compat",
    "s3torchconnector",
    "litdata",
    "obstore",
    "awscrt",
    "boto3",
    "minio",
    "s3fs",
    "runai",
)


def contenders_of(task: str) -> dict[str, Contender]:
    """Return who does a task, by name."""
    return dict(contenders(task))
