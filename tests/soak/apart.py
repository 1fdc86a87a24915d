"""A FaultyServer in a process of its own, so that it and the client that is measured share no interpreter."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection

from s3torch import S3ClientConfig, S3MapDataset, S3Reader
from s3torch.testing import FaultyServer
from s3torch.testing.faulty.faults import Fault

__all__ = ["OBJECTS", "SIZE", "Apart", "apart", "batches", "dataset_of"]

OBJECTS = 512
SIZE = 100_000
BATCH = 64

Rates = Mapping["Fault | Callable[[], Fault]", float]


class Apart:
    """The server, from outside.

    Args:
        pipe: To the process.
        rates_of: A function of a module, which returns rates by the name that it is given.

    Attributes:
        endpoint: Where it answers.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.endpoint: str = pipe.recv()

    def rates(self, name: str) -> Counter[str]:
        """Change what happens by chance; returns what was injected since the last change."""
        self._pipe.send(name)
        injected: Counter[str] = self._pipe.recv()
        return injected


@contextmanager
def apart(rates_of: Callable[[str], Rates], seed: int) -> Iterator[Apart]:
    """Run the server until the block ends.

    Args:
        rates_of: A function of a module: returns the rates that a name stands for.
        seed: Of the server.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, rates_of, seed), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Apart(ours)
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, rates_of: Callable[[str], Rates], seed: int) -> None:
    contents = {f"objects/{number:03}": random.Random(number).randbytes(SIZE) for number in range(OBJECTS)}
    with FaultyServer(contents, seed=seed) as server:
        pipe.send(server.endpoint)
        before = Counter[str]()
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            server.rates(rates_of(name))
            pipe.send(server.injected - before)
            before = Counter(server.injected)
            server.requests.clear()


def dataset_of(endpoint: str, config: S3ClientConfig) -> S3MapDataset[bytes]:
    """Return the objects of the server as a dataset, which knows their sizes."""
    return S3MapDataset.from_prefix(
        "s3://bucket/objects/", endpoint=endpoint, transform=_content, s3client_config=config
    )


def batches(count: int, seed: int) -> Iterator[list[int]]:
    """Yield indices of batches, in random order."""
    order = random.Random(seed)
    for _ in range(count):
        yield order.sample(range(OBJECTS), BATCH)


def _content(reader: S3Reader) -> bytes:
    return reader.read()
