"""The User-Agent field of all requests."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Sequence

from s3torch._forks import NO_FORK
from s3torch._version import __version__

__all__ = ["user_agent"]


def user_agent(comments: Sequence[str] = ()) -> str:
    """Return the User-Agent field.

    Args:
        comments: What uses the client, such as ``md/dataset#map md/reader_type#sequential``.
    """
    fields = [
        f"s3torch/{__version__}",
        "ua/2.1",
        f"os/{_token(platform.system().lower())}#{_token(platform.release())}",
        f"lang/python#{platform.python_version()}",
        f"md/arch#{_token(platform.machine().lower())}",
        f"md/pytorch#{_torch_version()}",
    ]
    used_by = "; ".join(comment for comment in comments if comment)
    return " ".join(fields) + (f" ({used_by})" if used_by else "")


@functools.cache  # each client asks, and reading the metadata takes 0.7 ms
def _torch_version() -> str:
    """Return torch's version without importing torch, which takes a second."""
    with NO_FORK:
        from importlib.metadata import PackageNotFoundError, version  # takes 13 ms

        try:
            return _token(version("torch"))  # imports, too, from Python 3.13 on
        except PackageNotFoundError:
            return "none"


def _token(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]", "-", text) or "unknown"
