"""Addresses that answer nothing, for tests of what a client does about them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from s3torch._transfer.connection import Address

__all__ = ["black_hole"]


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[Address]:
    """An address that swallows packets: a listener that takes no connection, and whose queue is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind((host, port))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):  # the kernel takes one or two more than were asked for
            waiting = stack.enter_context(socket.socket(family))
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield family, address
