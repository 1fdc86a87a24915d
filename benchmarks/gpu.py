"""``python -m benchmarks.gpu``: loads into the memory of a GPU and saves from there, checked and measured.

It takes eight minutes at most, starts a server of its own (SeaweedFS) on the loopback, and prints a table. Each case
compares what it has loaded, bit for bit, before its time counts. Where there is no GPU it says so and ends: its cases
run on the CPU in the tests, so that what is left to find out on a GPU is what only a GPU has: pinned memory, copies
beside the CPU, nccl.

A case that fails is a line of the table; the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from s3torch import S3Reader

    State = dict[str, torch.Tensor]

__all__ = ["CASES", "Place", "main", "run_cases"]

_MIB = 1024 * 1024
_SECONDS = 480.0  # all of it, at most
_LAST_BEGIN = 400.0  # no case begins later than this
_SAMPLES, _SAMPLE = 64, 512 * 1024  # objects of the dataset, and bytes of each


class Place(NamedTuple):
    """Where the cases load to and save from.

    Args:
        device: Such as ``cuda``.
        folder: URI below which they save, with a slash at its end.
        size: Of the state, in bytes.
        rounds: Turns of each case; the fastest counts.
    """

    device: torch.device
    folder: str
    size: int
    rounds: int

    def state(self, seed: int = 0) -> State:
        """Return eight tensors on the device, of the whole size together, of random bits that a seed decides."""
        import torch

        generator = torch.Generator(device=self.device).manual_seed(seed)
        count = self.size // 8 // 4
        return {
            f"layer{number}.weight": torch.rand(count, generator=generator, device=self.device) for number in range(8)
        }

    def wait(self) -> None:
        """Wait for what the device is still doing."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Return how long the fastest of some calls took."""
        took = []
        for _ in range(self.rounds):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            took.append(time.perf_counter() - begin)
        return min(took)

    def check(self, loaded: State, expected: State) -> None:
        """Compare what was loaded.

        Raises:
            AssertionError: It is something else, or somewhere else.
        """
        import torch

        if loaded.keys() != expected.keys():
            raise AssertionError(f"{sorted(loaded)} were loaded instead of {sorted(expected)}")
        for name, tensor in expected.items():
            if loaded[name].device.type != self.device.type:
                raise AssertionError(f"{name} is on {loaded[name].device}, not on {self.device}")
            if not torch.equal(loaded[name], tensor):
                raise AssertionError(f"{name} has other values")


# What a case has measured: how many bytes, and in how many seconds.
Measured = Iterable[tuple[str, int, float]]


def load(place: Place) -> Measured:
    """S3Checkpoint.load to the device, by one thread and by as many as there are cores."""
    from s3torch import S3Checkpoint, S3ClientConfig

    uri, expected = f"{place.folder}load.pt", place.state()
    S3Checkpoint().save(expected, uri)
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        checkpoint = S3Checkpoint(s3client_config=S3ClientConfig(max_threads=threads))
        place.check(checkpoint.load(uri, map_location=place.device), expected)
        seconds = place.seconds(partial(checkpoint.load, uri, place.device))
        yield f"load, {threads} threads", place.size, seconds


def load_file(place: Place) -> Measured:
    """load_file to the device, by way of pinned memory, by one thread and by as many as there are cores."""
    from s3torch import S3ClientConfig
    from s3torch.safetensors import load_file, save_file

    uri, expected = f"{place.folder}load.safetensors", place.state()
    save_file(expected, uri)
    for threads in dict.fromkeys((1, os.cpu_count() or 1)):
        config = S3ClientConfig(max_threads=threads)
        place.check(load_file(uri, place.device, s3client_config=config), expected)
        seconds = place.seconds(partial(load_file, uri, place.device, s3client_config=config))
        yield f"load_file, {threads} threads", place.size, seconds


def load_file_by_a_group(place: Place) -> Measured:
    """load_file by a group of one rank: nccl on a GPU, gloo elsewhere."""
    from s3torch.safetensors import load_file, save_file

    uri, expected = f"{place.folder}group.safetensors", place.state()
    save_file(expected, uri)
    with _group(place) as group:
        place.check(load_file(uri, place.device, group=group), expected)
        seconds = place.seconds(lambda: load_file(uri, place.device, group=group))
    yield "load_file, a group of one", place.size, seconds


def distributed(place: Place) -> Measured:
    """A distributed checkpoint, saved from the device and loaded into tensors that are there."""
    import torch
    from torch.distributed.checkpoint.state_dict_loader import load as load_into
    from torch.distributed.checkpoint.state_dict_saver import save as save_from

    from s3torch.dcp import S3StorageReader, S3StorageWriter

    path, expected = f"{place.folder}dcp", place.state()

    def save() -> None:
        save_from(expected, storage_writer=S3StorageWriter(None, path, thread_count=2), no_dist=True)

    def load() -> None:
        load_into(loaded, storage_reader=S3StorageReader(None, path), no_dist=True)

    yield "DCP save", place.size, place.seconds(save)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    load()
    place.check(loaded, expected)
    yield "DCP load", place.size, place.seconds(load)


def save(place: Place) -> Measured:
    """S3Checkpoint.save from the device."""
    from s3torch import S3Checkpoint

    uri, expected, checkpoint = f"{place.folder}save.pt", place.state(), S3Checkpoint()
    seconds = place.seconds(lambda: checkpoint.save(expected, uri))
    place.check(checkpoint.load(uri, map_location=place.device), expected)
    yield "save", place.size, seconds


def save_async(place: Place) -> Measured:
    """S3Checkpoint.save_async from the device: what changes right after the call is stored as it was."""
    from s3torch import S3Checkpoint

    uri, checkpoint = f"{place.folder}async.pt", S3Checkpoint()
    held, whole = [], []
    for turn in range(place.rounds + 1):  # the first one makes the memory that the others use again
        state, expected = place.state(turn), place.state(turn)
        place.wait()
        begin = time.perf_counter()
        future = checkpoint.save_async(state, uri)
        held.append(time.perf_counter() - begin)
        for tensor in state.values():
            tensor.zero_()
        place.wait()
        future.result()
        whole.append(time.perf_counter() - begin)
        place.check(checkpoint.load(uri, map_location=place.device), expected)
    yield "save_async, until it returns", place.size, min(held[1:])
    yield "save_async, until it is stored", place.size, min(whole[1:])


def samples(place: Place) -> Measured:
    """A DataLoader of two workers with pin_memory, whose batches go to the device."""
    import torch
    from torch.utils.data import DataLoader

    from s3torch import S3Client, S3MapDataset
    from s3torch.uri import parse_s3_uri

    bucket, key = parse_s3_uri(f"{place.folder}samples/")
    client = S3Client()
    for number in range(_SAMPLES):
        with client.put_object(bucket, f"{key}{number:03}") as writer:
            writer.write(bytes([number]) * _SAMPLE)
    client.close()
    dataset = S3MapDataset.from_prefix(f"{place.folder}samples/", transform=_tensor_of)
    is_cuda = place.device.type == "cuda"
    loader = DataLoader(dataset, batch_size=8, num_workers=2, pin_memory=is_cuda)

    def epoch() -> None:
        numbers = []
        for batch in loader:
            if is_cuda and not batch.is_pinned():
                raise AssertionError("a batch is not in pinned memory")
            there = batch.to(place.device, non_blocking=True)
            if not torch.equal(there, there[:, :1].expand_as(there)):
                raise AssertionError("a sample is a mixture")
            numbers += there[:, 0].tolist()
        if numbers != list(range(_SAMPLES)):
            raise AssertionError(f"the samples came as {numbers}")

    yield "DataLoader, pin_memory", _SAMPLES * _SAMPLE, place.seconds(epoch)


CASES: tuple[Callable[[Place], Measured], ...] = (
    load,
    load_file,
    load_file_by_a_group,
    distributed,
    save,
    save_async,
    samples,
)


def run_cases(place: Place, cases: Iterable[Callable[[Place], Measured]], is_late: Callable[[], bool]) -> int:
    """Run cases and print a table.

    Args:
        place: Where to.
        cases: To run, in order.
        is_late: Says, before each case, whether to leave it and the others out.

    Returns:
        How many have failed or were left out.
    """
    failed = 0
    print(f"| case ({place.size // _MIB} MiB, best of {place.rounds}) | seconds | GB/s |\n|---|---|---|")
    for case in cases:
        if is_late():
            print(f"| {case.__name__} | left out: no time | |", flush=True)
            failed += 1
            continue
        try:
            for name, size, seconds in case(place):
                print(f"| {name} | {seconds:.3f} | {size / seconds / 1e9:.2f} |", flush=True)
        except Exception as error:  # noqa: BLE001  # the other cases are worth knowing all the same
            print(f"| {case.__name__} | **failed**: {type(error).__name__}: {error} | |", flush=True)
            failed += 1
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Into a GPU and out of it.")
    parser.add_argument("--size", type=int, default=2048, help="MiB of the state (default: 2048)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each case (default: 3)")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("Skipped: torch finds no GPU here.")
        return 0
    from s3torch.testing import LocalS3

    begin = time.monotonic()
    faulthandler.dump_traceback_later(_SECONDS, exit=True)  # what hangs is shown where it does
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with LocalS3() as server, server.activated():
        server.create_bucket("bench")
        place = Place(torch.device("cuda", 0), "s3://bench/gpu/", options.size * _MIB, options.rounds)
        failed = run_cases(place, CASES, lambda: time.monotonic() - begin > _LAST_BEGIN)
    faulthandler.cancel_dump_traceback_later()
    return 1 if failed else 0


def _tensor_of(reader: S3Reader) -> torch.Tensor:
    """Return the bytes of an object."""
    import torch

    return torch.frombuffer(bytearray(reader.read()), dtype=torch.uint8)


@contextmanager
def _group(place: Place) -> Iterator[ProcessGroup | None]:
    """Return a group of this process alone."""
    import torch
    import torch.distributed as dist

    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    backend = "nccl" if place.device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory(prefix="s3torch-bench-") as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield dist.group.WORLD
        finally:
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
