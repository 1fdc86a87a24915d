"""FaultyServer: S3 in memory on loopback, which fails as it is told to."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from s3torch.config import S3ClientConfig
from s3torch.testing.faulty.authority import Authority, FaultyServerError, check_installed
from s3torch.testing.faulty.exchange import Exchange
from s3torch.testing.faulty.faults import ConnectionFault, Fault
from s3torch.testing.faulty.listener import ScriptedServer
from s3torch.testing.faulty.objects import Objects, operation_of
from s3torch.testing.faulty.rates import Draws, Rates
from s3torch.testing.faulty.wire import Request, Wire

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AnyFault", "FaultyServer"]

AnyFault = Fault | ConnectionFault
Made = AnyFault | Callable[[], AnyFault]

# Seconds that the client of a test waits for anything; more than a busy machine takes.
_PATIENCE = 2.0


class FaultyServer:
    """An S3 server in memory, on loopback, with one bucket and all the faults that it is asked for.

    ```python
    with FaultyServer({"key": b"content"}) as server:
        server.script(faults.truncate(3))
        client = S3Client(endpoint=server.endpoint, s3client_config=server.config)
        assert client.read_range("bucket", "key", 0) == b"content"
    ```

    Each connection has a thread of this process. On exit all of them are joined and all sockets are closed. Signatures
    are not checked.

    Args:
        objects: The bucket's first objects, by key.
        bucket: Its name.
        seed: Chooses what `rates` does, and positions that faults leave open.
        tls: Whether it speaks HTTPS, with an authority of its own.

    Attributes:
        objects: The bucket, as a mapping from keys to contents; `objects.uploads` are those left open.
        injected: How often each fault happened, by its name.

    Raises:
        FaultyServerError: If `tls` needs a package that is not installed.
    """

    def __init__(
        self, objects: Mapping[str, bytes] | None = None, *, bucket: str = "bucket", seed: int = 0, tls: bool = False
    ) -> None:
        if tls:
            check_installed()
        self.objects = Objects(bucket, objects)
        self.injected: Counter[str] = Counter()
        self._is_tls = tls
        self._scripts: dict[type[AnyFault], deque[AnyFault]] = {Fault: deque(), ConnectionFault: deque()}
        self._rates: dict[type[AnyFault], Rates[AnyFault]] = {}
        self._draws = Draws(seed)
        self._lock = threading.Lock()
        self._server: ScriptedServer | None = None
        self._authority: Authority | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._stack = contextlib.ExitStack()

    def __repr__(self) -> str:
        where = "not started" if self._server is None else repr(self._server.endpoint)
        return f"FaultyServer({where}, bucket={self.objects.bucket!r}, injected={sum(self.injected.values())})"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._is_tls:
                self._make_certificates(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            context = self._contexts.get("good")
            self._server = stack.enter_context(ScriptedServer(self._handle, context, welcome=self._welcome))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exc_type, exc, traceback)

    @property
    def endpoint(self) -> str:
        """The server's URL. Raises `FaultyServerError` before the `with` block."""
        return self._running.endpoint

    @property
    def unresolvable_endpoint(self) -> str:
        """The URL with a host that has no address: what a name server that fails, or a typing error, looks like.

        Names below ``invalid`` never exist (RFC 6761, section 6.4), but a resolver may ask the network about them.
        """
        scheme, _, rest = self.endpoint.partition("://")
        return f"{scheme}://s3.invalid:{rest.rpartition(':')[2]}"

    @property
    def authority(self) -> Path | None:
        """The PEM file of the authority that a client has to trust; None without TLS."""
        return None if self._authority is None else self._authority.path

    @property
    def config(self) -> S3ClientConfig:
        """For a client of a test: trusts the server, sends no credentials, and waits 2 s for whatever is awaited."""
        return S3ClientConfig(
            unsigned=True,
            verify=self.authority or True,
            connect_timeout=_PATIENCE,
            first_byte_timeout=_PATIENCE,
            stall_timeout=_PATIENCE,
        )

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order in which they arrived."""
        return self._running.requests

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._running.connections

    def script(self, *given: Made) -> None:
        """Lets the next requests meet these faults in order, one each; then all is well, but for `rates`.

        A fault that is limited to operations (`faults.on`) waits for such a request, and those behind it wait, too.
        Faults of connections have an order of their own; connections that are open are closed, so that the next request
        makes a new one. What an earlier script left over is forgotten.

        Args:
            given: Faults, or functions that make them.
        """
        made = [_made(fault) for fault in given]
        with self._lock:
            for kind in (Fault, ConnectionFault):
                self._scripts[kind] = deque(fault for fault in made if isinstance(fault, kind))
        if self._scripts[ConnectionFault] and self._server is not None:
            self.close_connections()

    def rates(self, shares: Mapping[Made, float]) -> None:
        """Lets requests meet faults by chance: the same requests for the same seed.

        Args:
            shares: The probability of each fault, or of a function that makes it. 1 is always; none ends it.

        Raises:
            ValueError: If a probability is negative, or they are more than 1 together.
        """
        made = {_made(fault): share for fault, share in shares.items()}
        rates = {
            kind: Rates({fault: share for fault, share in made.items() if isinstance(fault, kind)})
            for kind in (Fault, ConnectionFault)
        }
        with self._lock:
            self._rates = dict(rates)
        if any(isinstance(fault, ConnectionFault) for fault in made) and self._server is not None:
            self.close_connections()

    def close_connections(self) -> None:
        """Ends all connections and what is done on them, so that nothing is left over for the next test."""
        self._running.close_connections()

    @property
    def _running(self) -> ScriptedServer:
        if self._server is None:
            raise FaultyServerError("FaultyServer is not started: use it in a with block")
        return self._server

    def _make_certificates(self, directory: Path) -> None:
        authority = self._authority = Authority(directory)
        self._contexts = {
            "good": authority.context(),
            "wrong_host": authority.context("elsewhere.invalid"),
            "expired": authority.context(is_expired=True),
        }

    def _welcome(self, sock: socket.socket, number: int) -> socket.socket | None:
        with self._lock:
            script, rates = self._scripts[ConnectionFault], self._rates.get(ConnectionFault)
            fault = script.popleft() if script else None
        if fault is None and rates is not None:
            fault = rates.choose(self._draws.of(f"connection {number}"))
        certificate = "good"
        if isinstance(fault, ConnectionFault):
            self._count(fault)
            if fault.act is not None:
                with contextlib.suppress(OSError):
                    fault.act(sock)
                return None
            certificate = fault.certificate
        if not self._is_tls:
            return sock
        return self._contexts[certificate].wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def _handle(self, request: Request, wire: Wire) -> None:
        random = self._draws.of(f"{request.method} {request.target} {request.headers.get('range', '')}")
        operations = {operation_of(request), request.method}
        with self._lock:
            script, rates = self._scripts[Fault], self._rates.get(Fault)
            fault = script.popleft() if script and _is_for(script[0], operations) else None
        if fault is None and rates is not None:
            fault = rates.choose(random)
        server = self._running
        exchange = Exchange(
            request=request,
            wire=wire,
            objects=self.objects,
            random=random,
            pause=server.pause,
            refuse=server.refuse_for,
        )
        if isinstance(fault, Fault) and _is_for(fault, operations):
            self._count(fault)
            fault.act(exchange)
        else:
            exchange.send()

    def _count(self, fault: AnyFault) -> None:
        with self._lock:
            self.injected[fault.name] += 1


def _made(fault: Made) -> AnyFault:
    made = fault if isinstance(fault, (Fault, ConnectionFault)) else fault()
    if not isinstance(made, (Fault, ConnectionFault)):
        raise TypeError(f"a fault is made by a function of s3torch.testing.faults, got {made!r}")
    return made


def _is_for(fault: AnyFault, operations: set[str]) -> bool:
    return isinstance(fault, Fault) and (not fault.operations or bool(fault.operations & operations))
