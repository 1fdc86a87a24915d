"""What a client costs before its first request is sent: ``python -m tests.soak.new_clients``.

Prints milliseconds of CPU of the first client of a process, and the median and the most of those after it, for kinds
of clients: on Amazon S3, on another server with and without TLS, and with a bucket in memory.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

__all__ = ["KINDS", "main", "measure"]

CLIENTS = 20


def _of(endpoint: str | None, *, is_tls: bool) -> None:
    from s3torch import S3Client

    client = S3Client("us-east-1", endpoint=endpoint)
    client.bucket("bucket").request_head("GET", "key", {}, {})
    if is_tls:
        client._session().tls()


def _in_memory() -> None:
    from s3torch.compat.mock import MockS3Client

    client = MockS3Client("us-east-1", "bucket")
    client.add_object("key", b"content")
    assert client.get_object("bucket", "key").read() == b"content"


KINDS: dict[str, Callable[[], None]] = {
    "amazon": lambda: _of(None, is_tls=True),
    "http": lambda: _of("http://127.0.0.1:9000", is_tls=False),
    "https": lambda: _of("https://s3.example.com", is_tls=True),
    "memory": _in_memory,
}


def measure(kind: str, clients: int = CLIENTS) -> str:
    """Return what the clients of this process cost; the import of s3torch is not part of it."""
    import s3torch.compat.mock  # noqa: F401

    spent = []
    for _ in range(clients):
        before = time.process_time()
        KINDS[kind]()
        spent.append(1000 * (time.process_time() - before))
    first, *later = spent
    return f"{kind:8} first {first:6.1f} ms, then {statistics.median(later):5.2f} ms ({max(later):.2f} ms at most)"


def main() -> None:
    """Print a line for each kind, each from a process of its own."""
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
        return
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for kind in KINDS:
        command = [sys.executable, "-m", "tests.soak.new_clients", kind]
        subprocess.run(command, env={**os.environ, **keys}, check=True)


if __name__ == "__main__":
    main()
