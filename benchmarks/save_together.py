"""``python -m benchmarks.save_together``: what it costs that all ranks write one Hugging Face model.

The sides take turns within one run, in the same processes, against one nginx on the loopback that drops what is
uploaded: all ranks write the parts of one file, by ``S3HuggingFaceStorageWriter`` (together) and by ``save_sharded``;
torch's own way, where each rank writes a file to a folder and the first consolidates them, and then uploads the result;
the first rank alone writes all of the model with ``save_file``, which has nothing to gather; and each rank writes what
it has with ``save_file``, a file of its own (apart): the floor of what ranks cost that send it at the same time. A side
takes as long as its slowest rank. Counted is the time of the call, in processes that have loaded torch and met before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
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
from benchmarks.sharded import make_shards

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    Row = tuple[float, float, int]

__all__ = ["main"]

_MIB = 1024 * 1024
_SECONDS = 580.0


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.save_together", description="A model saved by ranks.")
    parser.add_argument("--ranks", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--size", type=int, default=256, help="MiB of the model (default: 256)")
    parser.add_argument("--tensor", type=int, default=32, help="MiB of a tensor (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of all sides (default: 3)")
    parser.add_argument("--without-torch", action="store_true", help="leave torch's own way out, which takes long")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rank_of is not None:
        _be_rank(options)
        return 0
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as directory:
        home = Path(directory)
        (home / "www").mkdir()
        with serve(home, has_tls=False) as ports, tempfile.TemporaryDirectory(prefix="s3torch-bench-") as scratch:
            command: list[str | Path] = [sys.executable, "-m", "benchmarks.save_together"]
            for name in ("size", "tensor", "rounds"):
                command += [f"--{name}", str(getattr(options, name))]
            command += ["--without-torch"] if options.without_torch else []
            command += ["--rank-of", f"http://127.0.0.1:{ports.sink}"]
            with started_ranks(command, options.ranks, scratch, env=os.environ) as ranks:
                said = [rank.communicate(timeout=_SECONDS) for rank in ranks]
            for rank, (_, errors) in zip(ranks, said, strict=True):
                if rank.returncode:
                    raise RuntimeError(errors[-2000:])
    _report([json.loads(output) for output, _ in said], options)
    return 0


def _be_rank(options: argparse.Namespace) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    from s3torch import S3Client, S3ClientConfig
    from s3torch.dcp import S3HuggingFaceStorageWriter
    from s3torch.safetensors import save_file, save_sharded

    torch.set_num_threads(1)
    join()
    is_first = dist.get_rank() == 0
    config = S3ClientConfig(unsigned=True, force_path_style=True)
    layers = range(options.size // options.tensor)
    state: dict[str, DTensor] = make_shards(layers, options.tensor * _MIB)
    own = {name: each.to_local() for name, each in state.items()}
    whole = {name: torch.ones(each.shape) for name, each in state.items()} if is_first else {}
    writer = S3HuggingFaceStorageWriter("us-east-1", "s3://bucket/model", None, config, endpoint=options.rank_of)
    client = S3Client("us-east-1", endpoint=options.rank_of, s3client_config=config)
    folder = f"{tempfile.gettempdir()}/consolidated"

    def sent() -> int:
        return writer.client.stats.bytes_sent + client.stats.bytes_sent

    def consolidate() -> None:
        save(state, storage_writer=HuggingFaceStorageWriter(folder, save_distributed=True, enable_consolidation=True))
        if is_first:
            for file in Path(folder).glob("*.safetensors"):
                with client.put_object("bucket", file.name) as upload, file.open("rb") as opened:
                    shutil.copyfileobj(opened, upload, 8 * _MIB)
        dist.barrier()

    def alone() -> None:
        if is_first:
            save_file(whole, "s3://bucket/model.safetensors", client=client, progress=False)
        dist.barrier()

    def apart() -> None:
        save_file(own, f"s3://bucket/part-{dist.get_rank()}.safetensors", client=client, progress=False)
        dist.barrier()

    def sharded() -> None:
        save_sharded(state, "s3://bucket/sharded.safetensors", client=client, group=dist.group.WORLD)

    sides: dict[str, Callable[[], None]] = {
        "together": lambda: save(state, storage_writer=writer),
        "save_sharded": sharded,
        "consolidated": consolidate,
        "save_file": alone,
        "apart": apart,
    }
    if options.without_torch:
        del sides["consolidated"]
    found: dict[str, list[Row]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):  # the first one warms up
        for name, side in sides.items():
            dist.barrier()
            before, cpu, began = sent(), _cpu(), time.perf_counter()
            side()
            row = time.perf_counter() - began, _cpu() - cpu, sent() - before
            if turn:
                found[name].append(row)
            if is_first:
                shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found), flush=True)  # to the process that started this one
    os._exit(0)  # threads of the process group may abort while the interpreter ends


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _report(ranks: list[dict[str, list[Row]]], options: argparse.Namespace) -> None:
    print(f"{options.size} MiB in tensors of {options.tensor} MiB, {options.ranks} ranks, uploads that are dropped:")
    walls: dict[str, list[float]] = {}
    cpus: dict[str, float] = {}
    for name in ranks[0]:
        turns = list(zip(*(rank[name] for rank in ranks), strict=True))
        walls[name] = [max(each[0] for each in turn) for turn in turns]
        # Where one rank works the others wait in a barrier, which costs them nothing worth counting.
        cpus[name] = statistics.median(sum(each[1] for each in turn) for turn in turns)
        sent = statistics.median(sum(each[2] for each in turn) for turn in turns)
        print(
            f"  {name}: {_spread(walls[name])} s, CPU {cpus[name]:.2f} s, sent {sent / options.size / _MIB:.4f} of it"
        )
    for other in [name for name in walls if name != "together"]:
        ratios = [mine / theirs for mine, theirs in zip(walls["together"], walls[other], strict=True)]
        cpu = cpus["together"] / cpus[other]
        print(f"  together takes {_spread(ratios)} times as long as {other}, and {cpu:.2f} times the CPU time")
    print(f"  save_sharded takes {cpus['save_sharded'] / cpus['apart']:.2f} times the CPU time of apart")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
