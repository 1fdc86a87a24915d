"""Starts the servers that the cases need, each when it is first asked for, and stops them all in the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from benchmarks.servers import listing, nginx, real
from benchmarks.servers.certificate import write_certificate
from benchmarks.servers.files import BUCKET, SAMPLES_PREFIX, Scale, lay_out
from benchmarks.sharded import write_sharded
from benchmarks.site import Site
from benchmarks.state import write_files

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Servers"]

_REGION = "us-east-1"

# No client is to find anybody's real account, nor ask the network for one.
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_REGION": _REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "*",
}

Place = tuple[Site, Mapping[str, str]]  # what is read, and the variables of who reads it


class Servers:
    """All local servers.

    Args:
        scale: Of their objects.
        has_tls: Whether a certificate is to be made.
        keys: That the stub of listings has.
    """

    def __init__(self, scale: Scale, *, has_tls: bool, keys: int) -> None:
        self._scale = scale
        self._has_tls = has_tls
        self._keys = keys
        self._stack = ExitStack()
        self._static: dict[str, Place] = {}
        self._others: dict[str, Place] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def place(self, server: str) -> Place:
        """Return what is read and the variables of who reads it; starts the server if need be.

        Args:
            server: fast, tls, latency, listing, real, checkpoints, sink, sharded, real-checkpoints or none.

        Raises:
            RuntimeError: It is not installed, or did not start.
        """
        if server == "none":
            return Site(bucket=BUCKET), _environment()
        if server in {"fast", "tls", "latency"}:
            self._static = self._static or self._start_nginx()
            return self._static[server]
        if server not in self._others:
            self._others.update(self._start_other(server))
        return self._others[server]

    def _start_other(self, server: str) -> dict[str, Place]:
        if server in {"checkpoints", "sink"}:
            return self._start_checkpoints()
        if server == "sharded":
            return {server: self._start_sharded()}
        if server == "real-checkpoints":
            return {server: self._start_real(real.serve_checkpoint)}
        return {server: self._start_real(real.serve) if server == "real" else self._start_listing()}

    def _start_nginx(self) -> dict[str, Place]:
        home = self._home()
        lay_out(home / "www" / BUCKET, self._scale)
        authority = str(write_certificate(home)) if self._has_tls else None
        ports = self._stack.enter_context(nginx.serve(home, has_tls=self._has_tls))
        scale = self._scale

        def site(port: int, authority: str | None = None) -> Site:
            return Site(
                bucket=BUCKET,
                region=_REGION,
                endpoint=f"{'http' if authority is None else 'https'}://127.0.0.1:{port}",
                authority=authority,
                path_style=True,
                is_ours=True,
                access_log=str(home / "access.log"),
                prefix=SAMPLES_PREFIX,
                samples=scale.sample_objects,
                large=scale.large_object,
                wide=scale.wide_object,
                mixed=scale.mixed_objects,
            )

        plain = _environment()
        places: dict[str, Place] = {"fast": (site(ports.fast), plain), "latency": (site(ports.latency), plain)}
        if authority is not None:
            places["tls"] = (site(ports.tls, authority), {**plain, "SSL_CERT_FILE": authority})
        return places

    def _start_checkpoints(self) -> dict[str, Place]:
        tensors, size = self._scale.tensors, self._scale.tensor
        home = self._home()
        write_files(home / "www" / BUCKET, tensors, size)
        ports = self._stack.enter_context(nginx.serve(home, has_tls=False))
        return {
            "checkpoints": _state_place(home, ports.fast, tensors, size),
            "sink": _state_place(home, ports.sink, tensors, size),
        }

    def _start_sharded(self) -> Place:
        tensors, size = self._scale.sharded_tensors, self._scale.sharded_tensor
        home = self._home()
        write_sharded(home / "www" / BUCKET, tensors, size)
        ports = self._stack.enter_context(nginx.serve(home, has_tls=False))
        return _state_place(home, ports.latency, tensors, size)

    def _home(self) -> Path:
        home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="s3torch-bench-")))
        home.chmod(0o755)  # nginx reads as nobody where it was started by root
        return home

    def _start_real(self, serve: Callable[[Scale], AbstractContextManager[real.Real]]) -> Place:
        server = self._stack.enter_context(serve(self._scale))
        return server.site, {**_environment(), **server.environment}

    def _start_listing(self) -> Place:
        port = self._stack.enter_context(listing.serve(self._keys))
        site = Site(
            bucket=listing.BUCKET,
            region=_REGION,
            endpoint=f"http://127.0.0.1:{port}",
            path_style=True,
            prefix=listing.PREFIX,
            part_prefix=listing.tenth_of(self._keys),
        )
        return site, _environment()


def _state_place(home: Path, port: int, tensors: int, size: int) -> Place:
    site = Site(
        bucket=BUCKET,
        region=_REGION,
        endpoint=f"http://127.0.0.1:{port}",
        path_style=True,
        is_ours=True,
        access_log=str(home / "access.log"),
        tensors=tensors,
        tensor=size,
    )
    return site, _environment()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**kept, **_ENVIRONMENT}
