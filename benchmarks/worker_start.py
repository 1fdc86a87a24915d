"""``python -m benchmarks.worker_start``: what an epoch costs whose DataLoader workers are new, as they are by default.

64 objects of 1 kB, from nginx on the loopback, by 4 forked workers. Three datasets take turns, each in processes of its
own whose parent never sends a request: one that only counts, an S3IterableDataset and an S3MapDataset. The first epoch
of a process stands apart: its parent finds what its workers need. CPU time is that of parent and workers.

The credentials are printed by a process that notes each time it runs, so that the searches of a job are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.processes import INTERRUPTS, started
from benchmarks.servers.nginx import serve

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from s3torch import S3Reader

__all__ = ["main"]

_OBJECTS = 64
_SIZE = 1000  # bytes
_EPOCHS = 4  # of a process
_SECONDS = 300.0
_KINDS = ("local", "iterable", "map")


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_start", description="Workers that start anew.")
    parser.add_argument("--workers", type=int, default=4, help="of each epoch (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind, in turns (default: 5)")
    parser.add_argument("--method", default="fork", help="how workers start: fork, spawn or forkserver")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job is not None:
        _be_job(options)
        return 0
    found: dict[str, list[list[tuple[float, float]]]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as directory:
        home = Path(directory)
        folder = home / "www" / "bucket"
        folder.mkdir(parents=True)
        for number in range(_OBJECTS):
            (folder / str(number)).write_bytes(bytes(_SIZE))
        env = _environment(home)
        with serve(home, has_tls=False) as ports:
            for _ in range(options.rounds):
                for kind in _KINDS:
                    found[kind].append(_job(kind, f"http://127.0.0.1:{ports.fast}", options, env))
        searches = len((home / "searches").read_text())
    print(f"{_OBJECTS} objects of {_SIZE} bytes, {options.workers} new workers each epoch ({options.method})")
    print(f"{'':12}{'first epoch':>24}{'later epochs':>24}{'of local':>18}")
    print(f"{'':12}{'seconds':>12}{'CPU s':>12}{'seconds':>12}{'CPU s':>12}{'seconds':>9}{'CPU':>9}")
    local = _medians([epoch for job in found["local"] for epoch in job[1:]])
    for kind, jobs in found.items():
        first = _medians([job[0] for job in jobs])
        later = _medians([epoch for job in jobs for epoch in job[1:]])
        figures = "".join(f"{value:12.3f}" for value in (*first, *later))
        print(f"{kind:12}{figures}{later[0] / local[0]:9.2f}{later[1] / local[1]:9.2f}")
    jobs_of_s3 = 2 * options.rounds
    print(f"{searches} searches for credentials by {jobs_of_s3} jobs of {_EPOCHS} epochs")
    return 0


def _environment(home: Path) -> dict[str, str]:
    """Return the variables of a job, which name a process that gives out credentials."""
    script, searches = home / "credentials.py", home / "searches"
    searches.touch()
    keys = json.dumps({"Version": 1, "AccessKeyId": "ACCESS", "SecretAccessKey": "SECRET"})
    script.write_text(f"open({str(searches)!r}, 'a').write('.')\nprint({keys!r})\n")
    (home / "config").write_text(f"[default]\ncredential_process = {sys.executable} -S {script}\n")
    others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**others, "AWS_CONFIG_FILE": str(home / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(home / "none")}


def _medians(epochs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(wall for wall, _ in epochs), statistics.median(cpu for _, cpu in epochs)


def _job(kind: str, endpoint: str, options: argparse.Namespace, env: dict[str, str]) -> list[tuple[float, float]]:
    """Return the seconds and CPU seconds of each epoch of a process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker_start", "--job", f"{kind} {endpoint}"]
    command += ["--workers", str(options.workers), "--method", options.method]
    with started(command, env=env, stdout=PIPE, stderr=PIPE, text=True) as process:
        output, errors = process.communicate(timeout=_SECONDS)
        if process.returncode:
            raise RuntimeError(errors[-2000:])
    return [(wall, cpu) for wall, cpu in json.loads(output)]


def _be_job(options: argparse.Namespace) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    dataset = _dataset(*options.job.split())
    epochs = []
    for _ in range(_EPOCHS):
        began, cpu = time.perf_counter(), _cpu()
        loader = DataLoader(dataset, 8, num_workers=options.workers, multiprocessing_context=options.method)
        lengths = [int(length) for batch in loader for length in batch]
        epochs.append((time.perf_counter() - began, _cpu() - cpu))  # the workers have ended with their iterator
        if lengths != [_SIZE] * _OBJECTS:
            raise AssertionError("an epoch has other samples")
    print(json.dumps(epochs), flush=True)


def _cpu() -> float:
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _dataset(kind: str, endpoint: str) -> Dataset[int]:
    if kind == "local":
        return _Local()
    from s3torch import S3ClientConfig, S3IterableDataset, S3MapDataset

    uris = [f"s3://bucket/{number}" for number in range(_OBJECTS)]
    config = S3ClientConfig(force_path_style=True)
    if kind == "map":
        return S3MapDataset.from_objects(
            uris, region="us-east-1", endpoint=endpoint, transform=_length, s3client_config=config
        )
    return S3IterableDataset.from_objects(
        uris,
        region="us-east-1",
        endpoint=endpoint,
        transform=_length,
        s3client_config=config,
        enable_sharding=True,
    )


def _length(reader: S3Reader) -> int:
    return len(reader.read())


class _Local(IterableDataset[int]):
    """As many samples, which nobody reads."""

    def __iter__(self) -> Iterator[int]:
        """Yield those of this worker."""
        worker = get_worker_info()
        for _ in range(_OBJECTS if worker is None else len(range(worker.id, _OBJECTS, worker.num_workers))):
            yield _SIZE


if __name__ == "__main__":
    sys.exit(main())
