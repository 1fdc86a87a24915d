"""What a process knows of AWS: nothing of this machine, but what a test says."""

from __future__ import annotations

import functools
import os
import weakref
from pathlib import Path

import pytest

from s3torch._access import access as access_module
from s3torch._transfer import pacing
from s3torch._transfer.retry import RetryPolicy

__all__ = ["forget_pauses", "know_only"]


def know_only(monkeypatch: pytest.MonkeyPatch, home: Path, **variables: str) -> None:
    """Leave nothing of AWS and of proxies in the environment.

    Args:
        monkeypatch: Of the test.
        home: The folder of the files `config` and `credentials`, which a test may write.
        variables: What is known, by the name behind `AWS_`.
    """
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    files = {"CONFIG_FILE": str(home / "config"), "SHARED_CREDENTIALS_FILE": str(home / "credentials")}
    for name, value in {"EC2_METADATA_DISABLED": "true", **files, **variables}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    # The clients that other tests have left would look for credentials here, too, before this test forks.
    monkeypatch.setattr(access_module, "_accesses", weakref.WeakSet())


def forget_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send requests again at once."""
    monkeypatch.setattr(access_module, "RetryPolicy", functools.partial(RetryPolicy, base=0.0, cap=0.0))
    monkeypatch.setattr(pacing, "_REST", 0.0)
