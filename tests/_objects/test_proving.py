"""Each byte of any ranges is proven: by what was read, or by what is read beside it."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable

import pytest

from s3torch import S3Client
from s3torch._objects.proving import prove_each_byte
from s3torch._objects.remote import DEFAULT_MAX_GAP, RemoteObject
from s3torch.checkpoint.proof import Proof
from s3torch.errors import IntegrityError, UnverifiedError
from s3torch.testing import FaultyServer
from tests.test_composite import MiB, always, asked, connect, flip, refuse, store  # noqa: F401  # a fixture

pytestmark = pytest.mark.usefixtures("no_pauses")
_SIZES = [6 * MiB, 5 * MiB, 7 * MiB + 1, 1]


def _read(client: S3Client, ranges: list[tuple[int, int]]) -> tuple[RemoteObject, list[memoryview]]:
    remote = RemoteObject(client._access, "bucket", "key")
    remote.learn_size()
    views = [memoryview(bytearray(stop - start)) for start, stop in ranges]
    gets = remote.vector(ranges, views, DEFAULT_MAX_GAP)
    client._access.run(gets)
    remote.conclude_vector(gets, ranges)
    return remote, views


@pytest.mark.parametrize("has_list", [True, False])
def test_random_ranges(faulty: FaultyServer, connect: Callable[..., S3Client], has_list: bool):  # noqa: F811
    """Whatever the ranges are, also where they overlap: what is right passes, what is flipped on its way is mended."""
    content = store(faulty, _SIZES)
    chance = random.Random(4)
    for _ in range(6):
        ranges = []
        for _ in range(chance.randrange(1, 6)):
            start = chance.randrange(len(content))
            ranges.append((start, min(len(content), start + chance.choice([0, 1, 1000, 6 * MiB]))))
        place = chance.randrange(len(content))
        faults = [refuse("GetObjectAttributes")] if not has_list else []
        always(faulty, flip(place), *faults)
        remote, views = _read(connect(), ranges)
        prove_each_byte(remote, ranges, views)
        for (start, stop), view in zip(ranges, views, strict=True):
            assert view == content[start:stop]
        always(faulty, flip(place, times=100), *faults)
        remote, views = _read(connect(), ranges)
        if any(start <= place < stop for start, stop in ranges):
            with pytest.raises(IntegrityError):
                prove_each_byte(remote, ranges, views)
        always(faulty)


def test_what_is_read_for_it(faulty: FaultyServer, connect: Callable[..., S3Client]):  # noqa: F811
    """Ranges that are parts take the list of them alone, and others the rest of their parts."""
    store(faulty, _SIZES)
    client = connect()
    remote, views = _read(client, [(0, 6 * MiB), (11 * MiB, 18 * MiB + 1)])
    asked(faulty)
    before = client.stats.bytes_received
    prove_each_byte(remote, [(0, 6 * MiB), (11 * MiB, 18 * MiB + 1)], views)
    assert asked(faulty) == ["GetObjectAttributes"]
    assert client.stats.bytes_received < before + 10_000
    remote, views = _read(client, [(6 * MiB + 5, 6 * MiB + 10)])
    before = client.stats.bytes_received
    prove_each_byte(remote, [(6 * MiB + 5, 6 * MiB + 10)], views)
    assert 5 * MiB - 5 <= client.stats.bytes_received - before < 5 * MiB + 10_000


def test_a_bound(faulty: FaultyServer, connect: Callable[..., S3Client]):  # noqa: F811
    """No more is held for it than may be in flight: parts come in turn, and one that is larger not at all."""
    content = store(faulty, _SIZES)
    ranges = [(10, 20), (6 * MiB + 10, 6 * MiB + 20)]
    remote, views = _read(connect(max_bytes_in_flight=6 * MiB), ranges)
    prove_each_byte(remote, ranges, views)
    assert [bytes(view) for view in views] == [content[start:stop] for start, stop in ranges]
    remote, views = _read(connect(max_bytes_in_flight=5 * MiB), ranges)
    with pytest.raises(UnverifiedError, match=rf"is of one of its parts, {6 * MiB} bytes"):
        prove_each_byte(remote, ranges, views)


class _Memory(bytearray):
    """Memory that can be referred to weakly."""


@pytest.mark.parametrize("stop", [1000, 6 * MiB, 18 * MiB + 2])
def test_a_kept_error_keeps_no_memory(faulty: FaultyServer, connect: Callable[..., S3Client], stop: int):  # noqa: F811
    """The memory of what could not be proven is free when its owner drops it, with the collector off, too."""
    store(faulty, _SIZES)
    always(faulty, flip(500, times=100))
    remote, (view,) = _read(connect(), [(0, stop)])
    memory = _Memory(view)
    del view
    reference = weakref.ref(memory)
    proof = Proof(remote)
    proof.add(0, memoryview(memory))
    gc.disable()
    try:
        with pytest.raises(IntegrityError) as caught:
            proof.conclude()
        error = caught.value
        del memory
        assert reference() is None
        assert error.attempts == 3
    finally:
        gc.enable()
