"""The connections that wait for their next request."""

from __future__ import annotations

import pytest

from s3torch._transfer.pool import ConnectionPool
from s3torch._transfer.stats import TransferStats

from .network import ORIGIN, FakeConnection, FakeNetwork, never, serve


def open_one(network: FakeNetwork) -> tuple[ConnectionPool, FakeConnection]:
    """Return a pool and a connection of it that is established."""
    pool = ConnectionPool(network, 2, TransferStats())
    connection = pool.open(ORIGIN)
    network.select(1.0)
    assert connection.establish()
    return pool, connection


@pytest.mark.parametrize("mark", [1, 2, 50_000])
def test_an_idle_connection_tells_of_each_byte(mark: int):
    """Whatever was awaited of the last answer, one byte on an idle connection is enough to be told of it."""
    pool, connection = open_one(FakeNetwork(serve(), most_awaited=100_000))
    connection.expect(mark)
    assert connection.awaited == mark
    pool.keep(connection, 0.0)
    assert connection.awaited == 1


@pytest.mark.parametrize(("seconds", "is_kept"), [(14.9, True), (15.0, False)])
def test_how_long_a_connection_is_kept(seconds: float, is_kept: bool):
    """An idle connection serves the next request for 15 seconds, and is closed then."""
    network = FakeNetwork(serve(), never)
    pool, connection = open_one(network)
    pool.keep(connection, 100.0)
    assert (pool.take(ORIGIN, 100.0 + seconds) is connection) is is_kept
    assert len(pool) == network.open_connections == 1
