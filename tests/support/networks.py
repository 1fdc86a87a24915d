"""Addresses that answer nothing and proxies of all kinds, for tests of what a client does about them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch._transfer.connection import Address

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ScriptedProxy", "black_hole", "lead", "real_proxy"]


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


class ScriptedProxy:
    """A proxy on loopback that leads wherever it is told to, or does something else to each connection.

    Args:
        act: What it does with a socket that was accepted, and the head that arrived there; None leads to the server.

    Attributes:
        heads: The first head of each connection.
        port: Where it listens.
    """

    def __init__(self, act: Callable[[socket.socket, bytes], None] | None = None) -> None:
        self.heads: list[bytes] = []
        self._act = act or lead
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._is_open = True
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._threads[0].join()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if not self._is_open:
                sock.close()
                return
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                arrived = sock.recv(65536)
                if not arrived:
                    return
                head += arrived
            self.heads.append(head)
            self._act(sock, head)


def lead(sock: socket.socket, head: bytes, *, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
    """Do what a proxy does with CONNECT."""
    method, target, _ = head.split(b" ", 2)
    assert method == b"CONNECT"
    host, _, port = target.decode().rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port))) as server:
        sock.sendall(answer)
        back = threading.Thread(target=_pump, args=(server, sock), daemon=True)
        back.start()
        _pump(sock, server)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def real_proxy(*arguments: str) -> Iterator[str]:
    """A real proxy, proxy.py, in a process of its own; gives host and port."""
    with tempfile.TemporaryDirectory() as directory:
        port = Path(directory, "port")
        command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0", "--port-file", str(port)]
        command += ["--num-workers", "1", "--num-acceptors", "1", "--log-level", "ERROR", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (port.exists() and port.read_text().strip()):
                assert process.poll() is None, "the proxy has ended"
                time.sleep(0.02)
            yield f"127.0.0.1:{port.read_text().split()[0]}"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
