"""``python -m benchmarks.new_memory``: large reads into memory that nobody used before, over threads.

One process, in turns, against one nginx on the loopback, which sends from the page cache:

* plain HTTP: the floor (eight threads with a bare socket each, which receive into a new tensor), then ``read_ranges``
  into new tensors, ``load_file`` of a safetensors file, ``S3Checkpoint.load``, and ``torch.load`` of a reader, which
  is what programs do that were written for files;
* TLS: ``read_ranges`` into new tensors by one thread and by two. What part of their time threads wait for the
  interpreter is measured where they receive: a receive blocks for nothing else, so what it takes beyond its own CPU
  time is that, or another process on the core. The same share of one thread, which has nobody to wait for, stands
  beside it.

Rates are those of the median turn. A server on the same cores takes from all alike.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.servers.certificate import write_certificate
from benchmarks.servers.nginx import serve
from benchmarks.site import MIB
from s3torch import S3Checkpoint, S3Client, S3ClientConfig
from s3torch._transfer.connection import Connection
from s3torch.safetensors import load_file

__all__ = ["main"]

_TENSORS = 4  # so that each is above the 32 MiB up to which the C library may use memory again
_THREADS = 8  # of the floor
_Side = Callable[[], object]


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.new_memory", description="Reads into new memory.")
    parser.add_argument("--size", type=int, default=256, help="MiB of what is read (default: 256)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of all (default: 9)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as directory:
        home = Path(directory)
        sizes = _lay_out(home / "www" / "bucket", options.size * MIB)
        authority = write_certificate(home)
        with serve(home, has_tls=True) as ports:
            print(f"{options.size} MiB into new memory, {options.rounds} turns")
            _plain(f"http://127.0.0.1:{ports.fast}", sizes["large"], options.rounds)
            _secure(f"https://127.0.0.1:{ports.tls}", str(authority), sizes["large"], options.rounds)
    return 0


def _lay_out(folder: Path, size: int) -> dict[str, int]:
    folder.mkdir(parents=True)
    state = {f"layer{number}": torch.randn(size // _TENSORS // 4) for number in range(_TENSORS)}
    torch.save(state, folder / "state.pt")
    (folder / "large").write_bytes(torch.randint(0, 256, (size,), dtype=torch.uint8).numpy().tobytes())
    save_file(state, folder / "model.safetensors")
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def _plain(endpoint: str, size: int, rounds: int) -> None:
    config = S3ClientConfig(unsigned=True, force_path_style=True, hedging=False)
    client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
    checkpoint = S3Checkpoint("us-east-1", endpoint=endpoint, s3client_config=config)
    port = int(endpoint.rpartition(":")[2])
    pool = ThreadPoolExecutor(_THREADS)

    def by_file() -> object:
        with checkpoint.reader("s3://bucket/state.pt") as reader:
            return torch.load(reader, weights_only=True)

    rows = _in_turns(
        {
            "floor, 8 threads": lambda: _floor(pool, port, size),
            "read_ranges": lambda: _read_ranges(client, size),
            "load_file": lambda: load_file("s3://bucket/model.safetensors", client=client, progress=False),
            "S3Checkpoint.load": lambda: checkpoint.load("s3://bucket/state.pt", progress=False),
            "torch.load(reader)": by_file,
        },
        rounds,
    )
    floor, load = rows["floor, 8 threads"], rows["S3Checkpoint.load"]
    print(f"{'plain HTTP':22}{'GB/s':>8}{'CPU s/GiB':>12}{'of the floor':>15}{'of load':>10}{'CPU of load':>14}")
    for name, (seconds, cpu) in rows.items():
        line = f"{name:22}{size / seconds / 1e9:8.2f}{cpu * 1024 * MIB / size:12.2f}{floor[0] / seconds:15.2f}"
        print(line + (f"{load[0] / seconds:10.2f}{cpu / load[1]:14.2f}" if name.startswith("torch") else ""))


def _secure(endpoint: str, authority: str, size: int, rounds: int) -> None:
    clients = {
        f"{threads} thread{'s' * (threads > 1)}": S3Client(
            "us-east-1",
            endpoint=endpoint,
            s3client_config=S3ClientConfig(
                unsigned=True, force_path_style=True, hedging=False, verify=authority, max_threads=threads
            ),
        )
        for threads in (1, 2)
    }
    waits: dict[str, list[float]] = {name: [] for name in clients}

    def side(name: str) -> _Side:
        def read() -> None:
            with _receives_watched() as share:
                _read_ranges(clients[name], size)
            waits[name].append(share())

        return read

    rows = _in_turns({name: side(name) for name in clients}, rounds)
    one = rows["1 thread"]
    print(f"{'TLS, read_ranges':22}{'GB/s':>8}{'CPU s/GiB':>12}{'CPU of one':>15}{'waits':>10}")
    for name, (seconds, cpu) in rows.items():
        line = f"{name:22}{size / seconds / 1e9:8.2f}{cpu * 1024 * MIB / size:12.2f}{cpu / one[1]:15.2f}"
        print(f"{line}{statistics.median(waits[name]):10.1%}")


def _in_turns(sides: dict[str, _Side], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds and CPU seconds of each."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            began, cpu = time.perf_counter(), time.process_time()
            side()
            if turn:  # the first one opens connections
                found[name].append((time.perf_counter() - began, time.process_time() - cpu))
    return {
        name: (statistics.median(w for w, _ in each), statistics.median(c for _, c in each))
        for name, each in found.items()
    }


def _read_ranges(client: S3Client, size: int) -> None:
    share = size // _TENSORS
    ranges = [(start, start + share) for start in range(0, share * _TENSORS, share)]
    tensors: list[Any] = [torch.empty(share, dtype=torch.uint8) for _ in ranges]
    client.read_ranges("bucket", "large", ranges, into=tensors)


def _floor(pool: ThreadPoolExecutor, port: int, size: int) -> None:
    tensor: Any = torch.empty(size, dtype=torch.uint8).numpy()
    memory = memoryview(tensor)
    share = size // _THREADS
    starts = range(0, share * _THREADS, share)
    list(pool.map(_receive, [memory[start : start + share] for start in starts], starts, [port] * _THREADS))


def _receive(view: memoryview, start: int, port: int) -> None:
    wanted = f"Range: bytes={start}-{start + len(view) - 1}"
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(f"GET /bucket/large HTTP/1.1\r\nHost: localhost\r\n{wanted}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += stream.recv(4096)
        rest = head.partition(b"\r\n\r\n")[2]
        view[: len(rest)] = rest
        view = view[len(rest) :]
        while view:
            view = view[stream.recv_into(view) :]


@contextmanager
def _receives_watched() -> Iterator[Callable[[], float]]:
    """Watch all receives of a block; what it yields tells what part of all threads' time they waited in them."""
    waited: list[float] = []
    threads: set[int] = set()
    receive = Connection.recv_into

    def watched(connection: Connection, room: memoryview) -> int | None:
        cpu, began = time.thread_time(), time.perf_counter()
        count = receive(connection, room)
        waited.append(time.perf_counter() - began - (time.thread_time() - cpu))
        threads.add(threading.get_ident())
        return count

    began = time.perf_counter()
    share = 0.0
    Connection.recv_into = watched  # type: ignore[assignment, method-assign]
    try:
        yield lambda: share
    finally:
        Connection.recv_into = receive  # type: ignore[method-assign]
        share = sum(waited) / (time.perf_counter() - began) / max(1, len(threads))


if __name__ == "__main__":
    sys.exit(main())
