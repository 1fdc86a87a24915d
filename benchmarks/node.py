"""``python -m benchmarks.node``: what the processes of one node take together, and the least that a worker needs.

Against nginx on the loopback, whose first byte takes 20 ms:

* ranks with DataLoader workers that read objects of 100 kB, then of 8 MiB: the most connections that were open at the
  same time, and by how much the memory of all workers grew at its highest. Once as configured by default, and once with
  128 connections and 256 MiB for each worker, as if it were alone;
* one process that reads objects of 100 kB with a transform that takes a while, by numbers of connections: the samples a
  second of each, in turns, beside those of 128 connections. The transform sleeps, so that a busy machine matters less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from benchmarks.content import pieces
from benchmarks.processes import INTERRUPTS
from benchmarks.ranks import started_ranks
from benchmarks.servers.nginx import serve
from benchmarks.site import MIB

if TYPE_CHECKING:
    from s3torch import S3ClientConfig, S3Reader

__all__ = ["main"]

_SMALL = 100_000  # bytes
_LARGE = 8 * MIB
_SAMPLES = 4096  # names of each size; one file has them all
_CONNECTIONS = (4, 8, 12, 16, 24, 32, 128)
_TRANSFORMS = (0.0, 0.00125, 0.0025, 0.005)  # seconds
_SECONDS = 300.0
_ESTABLISHED = "01"  # in /proc/net/tcp


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.node", description="What a node's processes take.")
    parser.add_argument("--ranks", type=int, default=2, help="of the node (default: 2)")
    parser.add_argument("--workers", type=int, default=8, help="of each rank (default: 8)")
    parser.add_argument("--samples", type=int, default=1024, help="of 100 kB that each rank reads (default: 1024)")
    parser.add_argument("--large", type=int, default=256, help="samples of 8 MiB that each rank reads (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the second part; 0 leaves it out (default: 3)")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank_of is not None:
        _be_rank(options)
        return 0
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as directory:
        home = Path(directory)
        _lay_out(home / "www" / "bucket")
        with serve(home, has_tls=False) as ports:
            print(f"{options.ranks} ranks, {options.workers} workers each")
            print(f"{'':26}{'connections':>14}{'grew by MiB':>14}{'seconds':>10}")
            for alone in (False, True):
                for large in (False, True):
                    _count(ports.latency, options, alone=alone, large=large)
            if options.rounds:
                _floors(f"http://127.0.0.1:{ports.latency}", options.rounds)
    return 0


def _lay_out(folder: Path) -> None:
    for name, size, count in (("small", _SMALL, _SAMPLES), ("large", _LARGE, _SAMPLES)):
        (folder / name).mkdir(parents=True)
        first = folder / name / "0"
        with first.open("wb") as file:
            file.writelines(pieces(size))
        for number in range(1, count):
            os.link(first, folder / name / str(number))


# --- What a node's processes take together ----------------------------------------------------------------------------


def _count(port: int, options: argparse.Namespace, *, alone: bool, large: bool) -> None:
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.node", "--workers", str(options.workers)]
    command += ["--samples", "0"] if large else ["--large", "0", "--samples", str(options.samples)]
    command += ["--large", str(options.large)] if large else []
    command += ["--alone"] if alone else []
    command += ["--rank-of", f"http://127.0.0.1:{port}"]
    env = {**os.environ, "LOCAL_WORLD_SIZE": str(options.ranks)}
    with (
        tempfile.TemporaryDirectory(prefix="s3torch-bench-") as scratch,
        _Connections(port) as connections,
        started_ranks(command, options.ranks, scratch, env=env) as ranks,
    ):
        said = [_output_of(rank) for rank in ranks]
    grown = sum(each["grown"] for each in said)
    name = f"{'8 MiB' if large else '100 kB'}, {'each as if alone' if alone else 'by default'}"
    print(f"{name:26}{connections.most:14}{grown / MIB:14.0f}{max(each['seconds'] for each in said):10.1f}", flush=True)


def _output_of(rank: subprocess.Popen[str]) -> dict[str, float]:
    output, errors = rank.communicate(timeout=_SECONDS)
    if rank.returncode:
        raise RuntimeError(errors[-2000:])
    found: dict[str, float] = json.loads(output)
    return found


class _Connections:
    """Counts the connections to a port of this machine until the block ends.

    Attributes:
        most: That were open at the same time.
    """

    def __init__(self, port: int) -> None:
        self.most = 0
        self._end = f":{port:04X}"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.005):
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            open_ones = sum(row[2].endswith(self._end) and row[3] == _ESTABLISHED for row in rows)
            self.most = max(self.most, open_ones)


def _be_rank(options: argparse.Namespace) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    import torch

    from s3torch import S3MapDataset

    torch.set_num_threads(1)
    name, count = ("large", options.large) if options.large else ("small", options.samples)
    limits = {"max_connections": 128, "max_bytes_in_flight": 256 * MIB} if options.alone else {}
    dataset = S3MapDataset.from_objects(
        [f"s3://bucket/{name}/{number}" for number in range(count)],
        region="us-east-1",
        endpoint=options.rank_of,
        transform=_highest_memory,
        s3client_config=_config(**limits),
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=max(1, count // options.workers),  # one for each worker
        num_workers=options.workers,
        worker_init_fn=_note_memory,
        collate_fn=_grown,
    )
    began = time.perf_counter()
    grown = sum(loader)
    print(json.dumps({"grown": grown, "seconds": time.perf_counter() - began}), flush=True)
    os._exit(0)


_before = 0  # bytes of memory that this worker began with


def _note_memory(_: int) -> None:
    global _before  # noqa: PLW0603  # of this process
    _before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _highest_memory(reader: S3Reader) -> int:
    reader.read()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _grown(highest: list[int]) -> int:
    return max(0, max(highest) - _before)


def _config(**options: Any) -> S3ClientConfig:  # noqa: ANN401  # of the configuration
    from s3torch import S3ClientConfig

    return S3ClientConfig(unsigned=True, force_path_style=True, hedging=False, **options)


# --- The least that a worker needs ------------------------------------------------------------------------------------


def _floors(endpoint: str, rounds: int) -> None:
    from s3torch import S3IterableDataset

    print(f"\n{'connections':26}{''.join(f'{each:>9}' for each in _CONNECTIONS)}")
    uris = [f"s3://bucket/small/{number}" for number in range(_SAMPLES)]
    for seconds in _TRANSFORMS:
        count = _SAMPLES if seconds == 0.0 else min(_SAMPLES, int(1.5 / seconds))
        rates: dict[int, list[float]] = {connections: [] for connections in _CONNECTIONS}
        for _ in range(rounds):
            for connections in _CONNECTIONS:
                dataset = S3IterableDataset.from_objects(
                    uris[:count],
                    region="us-east-1",
                    endpoint=endpoint,
                    transform=_Slow(seconds),
                    s3client_config=_config(max_connections=connections),
                )
                began = time.perf_counter()
                read = sum(1 for _ in dataset)
                rates[connections].append(read / (time.perf_counter() - began))
        medians = {connections: statistics.median(each) for connections, each in rates.items()}
        of_all = medians[_CONNECTIONS[-1]]
        print(
            f"{f'transform of {seconds * 1000:g} ms':26}"
            + "".join(f"{medians[each] / of_all:9.2f}" for each in medians)
        )
    print("(samples a second, of those with the most connections)")


class _Slow:
    """A transform that takes a while.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, reader: S3Reader) -> int:
        length = len(reader.read())
        if self._seconds:
            time.sleep(self._seconds)
        return length


if __name__ == "__main__":
    sys.exit(main())
