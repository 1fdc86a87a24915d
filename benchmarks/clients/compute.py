"""An epoch with work for each sample: how much of the transfer is hidden behind it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.clients.work import BATCH
from benchmarks.registry import Done, Work
from benchmarks.site import Site, Stored

__all__ = ["Decode", "epoch", "in_python", "releases_gil"]

_SECONDS = 0.002  # of one sample's decoding
_TRIES = 5

Decode = Callable[[bytes], object]


def releases_gil() -> Decode:
    """Return work of 2 ms that releases the GIL: SHA-256, as often as that takes."""
    return _calibrated(lambda sample, times: [hashlib.sha256(sample).digest() for _ in range(times)])


def in_python() -> Decode:
    """Return work of 2 ms in the interpreter: a sum of squares."""
    return _calibrated(lambda sample, times: [sum(byte * byte for byte in sample[:256]) for _ in range(times)])


def epoch(
    site: Site,
    make: Callable[[tuple[Stored, ...], Callable[[Any], Any]], Any],
    count: int,
    new_decode: Callable[[], Decode],
    **options: Any,  # noqa: ANN401 - a DataLoader's
) -> Work:
    """Return work that does the transfer alone, the decoding alone, and then the epoch of both.

    Args:
        site: Whose samples they are.
        make: Returns a dataset of these samples with this transform.
        count: Of the samples.
        new_decode: Calibrates the decoding.
        options: Of the DataLoader; callables are given the dataset.
    """
    from torch.utils.data import DataLoader

    samples = site.samples[:count]
    decode = new_decode()

    def read(reader: Any) -> int:  # noqa: ANN401 - of any client
        return len(reader.read())

    def read_and_decode(reader: Any) -> int:  # noqa: ANN401 - of any client
        sample = reader.read()
        decode(sample)
        return len(sample)

    def loader(transform: Callable[[Any], int]) -> Any:  # noqa: ANN401 - its type needs torch
        dataset = make(samples, transform)
        chosen = {name: value(dataset) for name, value in options.items()} or {"batch_size": BATCH}
        return DataLoader(dataset, num_workers=0, collate_fn=list, **chosen)

    transfer, both = loader(read), loader(read_and_decode)
    held = bytes(samples[0].size)
    for each in (transfer, both):
        next(iter(each))

    def decode_all() -> None:
        for _ in samples:
            decode(held)

    def work() -> Done:
        transfer_s, _ = _timed(lambda: sum(map(sum, transfer)))
        before_s, _ = _timed(decode_all)
        both_s, received = _timed(lambda: sum(map(sum, both)))
        after_s, _ = _timed(decode_all)
        compute_s = (before_s + after_s) / 2  # as the clock of a shared machine changes its pace
        return Done(
            items=len(samples),
            bytes=received,
            seconds=both_s,
            extra={
                "transfer_s": transfer_s,
                "compute_s": compute_s,
                "over_the_longer": both_s / max(transfer_s, compute_s),
            },
        )

    return work


def _calibrated(decode: Callable[[bytes, int], object]) -> Decode:
    """Return the decoding of a sample that takes 2 ms, by the best of a few tries."""
    sample = bytes(100_000)
    times = 1

    def taken_by(times: int) -> float:
        return min(_timed(lambda: decode(sample, times))[0] for _ in range(_TRIES))

    while (taken := taken_by(times)) < _SECONDS / 4:
        times *= 2
    times = max(1, round(times * _SECONDS / taken))
    return lambda each: decode(each, times)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
