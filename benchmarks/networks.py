"""``python -m benchmarks.networks``: what a dead address, a proxy and TLS handshakes cost, beside the same without.

Both sides take turns within one run, in one process, against one nginx on the loopback:

- ``dead-address``: batches of 128 samples of 100 kB from a server that takes 20 ms, whose host has one address, or
  another one beside it that swallows packets. A process that knows nothing reads one byte, then eleven batches.
- ``proxy``: CPU time of a sample of 100 kB over TLS, directly and through a tunnel of a proxy in another process.
- ``handshakes``: CPU time of 128 new TLS connections with a read of one byte each, from nothing and from a session.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from unittest.mock import patch

from benchmarks.servers.certificate import write_certificate
from benchmarks.servers.nginx import Ports, serve
from s3torch import S3Client, S3ClientConfig, S3MapDataset, S3Reader
from s3torch._transfer.addresses import PROCESS_ADDRESSES
from s3torch._transfer.facts import PROCESS_FACTS
from s3torch._transfer.tls_sessions import TlsSessions

__all__ = ["main"]

_SAMPLES = 128
_SIZE = 100_000
_HOST = "many.test"
_KEYS = [f"s3://bucket/{number:03}" for number in range(_SAMPLES)]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description="What networks cost.")
    parser.add_argument("case", nargs="*", choices=[*_CASES, []], help="all by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of both sides (default: 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "www" / "bucket").mkdir(parents=True)
        for uri in _KEYS:
            (home / "www" / "bucket" / uri.rpartition("/")[2]).write_bytes(bytes(_SIZE))
        authority = write_certificate(home)
        with serve(home, has_tls=True) as ports:
            for case in options.case or _CASES:
                _CASES[case](ports, authority, options.rounds)
    return 0


def _content(reader: S3Reader) -> bytes:
    return reader.read()


def _dataset(endpoint: str, config: S3ClientConfig) -> S3MapDataset[bytes]:
    return S3MapDataset.from_objects(
        _KEYS, region="us-east-1", endpoint=endpoint, s3client_config=config, transform=_content
    )


def _read(dataset: S3MapDataset[bytes]) -> None:
    if any(len(sample) != _SIZE for sample in dataset.__getitems__(list(range(_SAMPLES)))):
        raise RuntimeError("a sample is short")


def _dead_address(ports: Ports, _authority: Path, rounds: int) -> None:
    firsts: dict[str, list[float]] = {"without": [], "with": []}
    batches: dict[str, list[list[float]]] = {"without": [], "with": []}
    with _black_hole() as hole:
        addresses = {"without": [], "with": [hole]}
        for turn in range(rounds):
            for name in ("without", "with"):
                good = ("127.0.0.1", ports.latency)
                with _resolving([*addresses[name], good] if turn % 2 else [good, *addresses[name]]):
                    first, times = _times_of_batches(f"http://{_HOST}:{ports.latency}")
                firsts[name].append(first)
                batches[name].append(times)
    print(f"dead address, {rounds} rounds of {_SAMPLES} x {_SIZE} bytes, 20 ms:")
    print(f"  first byte of the first read: {_spread(firsts['without'])} s without, {_spread(firsts['with'])} s with")
    for index, label in ((0, "first batch"), (1, "second batch"), (slice(1, None), "second and later")):
        ratios = []
        for without, with_it in zip(batches["without"], batches["with"], strict=True):
            ratios.append(statistics.mean(_as_list(with_it[index])) / statistics.mean(_as_list(without[index])))
        print(f"  {label}: {_spread(ratios)} times that without")


def _as_list(found: float | list[float]) -> list[float]:
    return found if isinstance(found, list) else [found]


def _times_of_batches(endpoint: str) -> tuple[float, list[float]]:
    PROCESS_ADDRESSES.forget()
    PROCESS_ADDRESSES._turns = itertools.count()
    PROCESS_FACTS.forget()
    config = S3ClientConfig(unsigned=True, force_path_style=True)
    dataset = _dataset(endpoint, config)
    with _closing(dataset) as client:
        began = time.perf_counter()
        client.read_range("bucket", "000", 0, 1)
        first = time.perf_counter() - began
        times = []
        for _ in range(11):
            began = time.perf_counter()
            _read(dataset)
            times.append(time.perf_counter() - began)
    return first, times


def _proxy(ports: Ports, authority: Path, rounds: int) -> None:
    endpoint = f"https://127.0.0.1:{ports.tls}"
    with _tunnels() as proxy, ExitStack() as stack:
        sides = {}
        for name, proxies in (("direct", {}), ("proxy", {"https": proxy})):
            config = S3ClientConfig(unsigned=True, verify=authority, proxies=proxies, max_connections=32)
            sides[name] = dataset = _dataset(endpoint, config)
            stack.enter_context(_closing(dataset))
            _read(dataset)
        found = _interleaved({name: partial(_read, side) for name, side in sides.items()}, rounds * 10)
    print(f"proxy, {rounds * 10} rounds of {_SAMPLES} x {_SIZE} bytes over TLS, CPU us of a sample:")
    _print_ratio(found, "direct", "proxy", 1e6 / _SAMPLES)


def _handshakes(ports: Ports, authority: Path, rounds: int) -> None:
    config = S3ClientConfig(unsigned=True, verify=authority, max_connections=_SAMPLES, hedging=False)
    client = S3Client("us-east-1", endpoint=f"https://127.0.0.1:{ports.tls}", s3client_config=config)

    def connect() -> None:
        client.close()
        client.read_ranges("bucket", "000", [(2 * start, 2 * start + 1) for start in range(_SAMPLES)], max_gap=0)

    def whole() -> None:
        with patch.object(TlsSessions, "find", lambda *_: None):
            connect()

    connect()
    found = _interleaved({"whole": whole, "from a session": connect}, rounds * 4)
    client.close()
    print(f"handshakes, {rounds * 4} rounds of {_SAMPLES} connections, CPU ms:")
    _print_ratio(found, "whole", "from a session", 1e3)


_CASES: dict[str, Callable[[Ports, Path, int], None]] = {
    "dead-address": _dead_address,
    "proxy": _proxy,
    "handshakes": _handshakes,
}


def _interleaved(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Run both sides in turns, each first as often as the other; returns the CPU time of each turn."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides) if turn % 2 else reversed(sides):
            began = time.process_time()
            sides[name]()
            found[name].append(time.process_time() - began)
    return found


def _print_ratio(found: dict[str, list[float]], before: str, after: str, unit: float) -> None:
    for name, times in found.items():
        print(f"  {name}: {_spread([each * unit for each in times])}")
    ratios = [there / here for here, there in zip(found[before], found[after], strict=True)]
    print(f"  {after} / {before}: {_spread(ratios)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


@contextmanager
def _closing(dataset: S3MapDataset[bytes]) -> Iterator[S3Client]:
    client = dataset._client
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _resolving(addresses: list[tuple[str, int]]) -> Iterator[None]:
    """Let the name of the server have these addresses."""
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: int, **options: int) -> list[object]:
        if host != _HOST:
            return list(real(host, *arguments, **options))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    with patch("socket.getaddrinfo", look_up):
        yield


@contextmanager
def _black_hole() -> Iterator[tuple[str, int]]:
    """An address that swallows packets: a listener that takes no connection, and whose queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield address


@contextmanager
def _tunnels() -> Iterator[str]:
    """A proxy in a process of its own, which knows CONNECT alone; gives its URL."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve_tunnels, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve_tunnels(pipe: Pipe) -> None:
    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await source.read(1 << 18):
                target.write(content)
                await target.drain()
        target.close()

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    async def serve_all() -> None:
        server = await asyncio.start_server(lead, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve_all())


if __name__ == "__main__":
    sys.exit(main())
