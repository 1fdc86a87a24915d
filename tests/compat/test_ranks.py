"""Ranks of torchrun: by ``make compare`` on s3torchconnector itself, too.

What they save and load is compared in ``programs/ranks.py``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import pytest

from tests.compat.connector import OBJECTS, run_program

pytestmark = pytest.mark.usefixtures("found")

# Each rank is a process of its own that imports torch, and one more starts them.
RANKS = [pytest.param(1, marks=pytest.mark.soak), 3]


@pytest.fixture(scope="module")
def checkpoints(bucket) -> Callable[[int], str]:
    """Returns the URI under which a job of so many ranks has saved."""
    return lambda ranks: f"s3://{bucket}/compat/test_[+re.name]!@$%^&*_(src)-{ranks}"


@pytest.fixture(scope="module")
def ranks_of(server, folder, checkpoints) -> Callable[[int], list[list[list[str]]]]:
    """Runs ``programs/ranks.py`` by torchrun, once for each number of ranks; returns what each rank prints.

    One rank loads what three have saved, too.
    """

    @functools.cache
    def ranks_of(ranks: int) -> list[list[list[str]]]:
        to_load = []
        if ranks == 1:
            ranks_of(3)
            to_load = [f"{checkpoints(3)}/hex-4"]
        with server.activated(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
            printed = run_program("ranks", folder, checkpoints(ranks), *to_load, ranks=ranks)
        return [json.loads(line) for line in printed.splitlines() if line.startswith("[[")]

    return ranks_of


@pytest.mark.parametrize("ranks", RANKS)
def test_sharding_under_torchrun(ranks_of, ranks: int):
    """Ranks and their workers share the objects, each is yielded exactly once; a DistributedSampler does so, too."""
    printed = ranks_of(ranks)
    everything = [f"{number:03}" for number in range(OBJECTS)]
    assert len(printed) == ranks
    shares = [share for share, _ in printed]
    assert sorted(name for share in shares for name in share) == everything
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    sampled = sorted(name for _, share in printed for name in share)
    assert len(sampled) == OBJECTS // ranks * ranks
    assert set(sampled) <= set(everything)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("thread_count", [1, 4])
def test_names_of_ranks(ranks_of, checkpoints, names, ranks: int, thread_count: int):
    """Ranks save, load by each kind of reader and in the background; files are named as the strategies say."""
    ranks_of(ranks)
    begins = {
        "default": "__{rank}_",
        "binary": "{binary}/epoch_1/__{rank}_",
        "hex": "{rank}000/epoch_2/__{rank}_",
        "own": "rank-{rank}/part_",
    }
    for strategy, begin in begins.items():
        found = names(f"{checkpoints(ranks)}/{strategy}-{thread_count}")
        binary = ["0000000000", "1000000000", "0100000000"]
        expected = {begin.format(rank=rank, binary=binary[rank]) for rank in range(ranks)}
        assert ".metadata" in found
        files = [name for name in found if name != ".metadata"]
        assert {name.rpartition("_")[0] + "_" for name in files} == expected
        assert all(name.endswith(".distcp") for name in files)
        assert (len(files) == ranks) if thread_count == 1 else (ranks < len(files) <= 4 * ranks)
