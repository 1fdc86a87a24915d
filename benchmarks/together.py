"""``python -m benchmarks.together``: what a model costs that a group of ranks loads by reading each byte once.

Both sides take turns within one run, in the same processes, against one nginx on the loopback whose connections have
the pace of S3, 90 MB/s each: every rank loads the whole model by itself, or all load it as a group (gloo). A side takes
as long as its slowest rank.
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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import INTERRUPTS
from benchmarks.ranks import join, started_ranks
from benchmarks.servers.nginx import serve

if TYPE_CHECKING:
    import torch

__all__ = ["main"]

_MIB = 1024 * 1024
_LARGE = 32 * _MIB  # bytes of a large tensor
_SMALL = 40_000  # bytes of a small one; ten for each large one
_SECONDS = 300.0


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.together", description="A model loaded by a group.")
    parser.add_argument("--ranks", type=int, default=4, help="processes (default: 4)")
    parser.add_argument("--size", type=int, default=256, help="MiB of the model (default: 256)")
    parser.add_argument("--connections", type=int, default=2, help="of each rank, 90 MB/s each (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both sides (default: 3)")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank_of is not None:
        _be_rank(options.rank_of, options.connections, options.rounds)
        return 0
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as directory:
        home = Path(directory)
        folder = home / "www" / "bucket"
        folder.mkdir(parents=True)
        size = _write(folder / "model.safetensors", options.size * _MIB)
        with serve(home, has_tls=False) as ports, tempfile.TemporaryDirectory(prefix="s3torch-bench-") as scratch:
            command: list[str | Path] = [sys.executable, "-m", "benchmarks.together", "--rounds", str(options.rounds)]
            command += ["--connections", str(options.connections), "--rank-of", f"http://127.0.0.1:{ports.latency}"]
            with started_ranks(command, options.ranks, scratch, env=os.environ) as ranks:
                said = [rank.communicate(timeout=_SECONDS) for rank in ranks]
            for rank, (_, errors) in zip(ranks, said, strict=True):
                if rank.returncode:
                    raise RuntimeError(errors[-2000:])
    _report([json.loads(output) for output, _ in said], size, options)
    return 0


def _write(path: Path, size: int) -> int:
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for number in range(size // _LARGE):
        tensors[f"layer{number}.weight"] = torch.arange(_LARGE // 4, dtype=torch.float32) + number
        for small in range(10):
            tensors[f"layer{number}.norm{small}"] = torch.full((_SMALL // 4,), float(small))
    save_file(tensors, path)
    return path.stat().st_size


def _be_rank(endpoint: str, connections: int, rounds: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    import torch
    import torch.distributed as dist

    from s3torch import S3Client, S3ClientConfig
    from s3torch.safetensors import load_file

    torch.set_num_threads(1)
    join()
    # One thread: each would have connections of its own.
    config = S3ClientConfig(
        unsigned=True, force_path_style=True, max_connections=connections, hedging=False, max_threads=1
    )
    client = S3Client("us-east-1", endpoint=endpoint, s3client_config=config)
    uri = "s3://bucket/model.safetensors"
    sides: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "alone": lambda: load_file(uri, client=client, progress=False),
        "group": lambda: load_file(uri, client=client, progress=False, group=dist.group.WORLD),
    }
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in sides}
    sums = set()
    for _ in range(rounds):
        for name, side in sides.items():
            dist.barrier()
            before, cpu, began = client.stats.bytes_received, _cpu(), time.perf_counter()
            loaded = side()
            row = time.perf_counter() - began, _cpu() - cpu, client.stats.bytes_received - before
            found[name].append(row)
            sums.add(sum(float(tensor[::4096].double().sum()) for tensor in loaded.values()))
            del loaded
    if len(sums) != 1:
        raise AssertionError("a group has loaded something else")
    print(json.dumps(found), flush=True)  # to the process that started this one
    os._exit(0)  # threads of the process group may abort while the interpreter ends


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _report(ranks: list[dict[str, list[tuple[float, float, int]]]], size: int, options: argparse.Namespace) -> None:
    print(f"{size / _MIB:.0f} MiB, {options.ranks} ranks, {options.connections} connections of 90 MB/s each:")
    walls: dict[str, list[float]] = {}
    for name in ("alone", "group"):
        turns = list(zip(*(rank[name] for rank in ranks), strict=True))
        walls[name] = [max(each[0] for each in turn) for turn in turns]
        cpu = statistics.median(sum(each[1] for each in turn) for turn in turns)
        received = statistics.median(sum(each[2] for each in turn) for turn in turns)
        print(f"  {name}: {_spread(walls[name])} s, CPU {cpu:.2f} s, received {received / size:.4f} times the file")
    ratios = [alone / group for alone, group in zip(walls["alone"], walls["group"], strict=True)]
    print(f"  the group is {_spread(ratios)} times as fast")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
