"""Where s3torch is joined to the simulated world: the only module here, with ``probe``, that knows its inside."""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from s3torch import S3Client, S3ClientConfig
from s3torch._aws.endpoint import endpoint_of_bucket_url
from s3torch._transfer.facts import Facts
from s3torch.testing.simulate.world import World

__all__ = ["BUCKET", "client_of", "connected"]

BUCKET = "bucket"
_REGION = "us-east-1"
_ENDPOINT = "http://s3.simulated"

KiB = 1024

# Sizes that are megabytes in earnest are kilobytes here, so that small objects take the ways of large ones.
_KNOBS: tuple[tuple[str, str, object], ...] = (
    ("s3torch._transfer.plan", "SMALLEST_PART", 16 * KiB),
    ("s3torch.config", "_MIN_PART_SIZE", 16 * KiB),
    ("s3torch.config", "MiB", KiB),
)


class _Known:
    """The caches of the modules that are loaded."""

    modules = 0
    clears: Sequence[Callable[[], None]] = ()


_known = _Known()


def client_of(config: S3ClientConfig) -> S3Client:
    """Return a client of the world that is connected."""
    return S3Client(_REGION, endpoint=_ENDPOINT, s3client_config=config)


def where() -> dict[str, Any]:
    """Return the arguments that lead a dataset to the world that is connected."""
    return {"region": _REGION, "endpoint": _ENDPOINT}


@contextlib.contextmanager
def connected(world: World) -> Iterator[None]:
    """Let all clients that are used inside the block talk to this world, and take their chance from its seed."""
    with contextlib.ExitStack() as stack:

        def swap(module: str, name: str, value: object) -> None:
            place: Any = importlib.import_module(module)
            *path, name = name.split(".")
            for each in path:
                place = getattr(place, each)
            stack.callback(setattr, place, name, getattr(place, name))  # fails if it has moved: that is to be seen
            setattr(place, name, value)

        # The one seam: what an engine gets for a network.
        swap("s3torch._access.access", "Network", lambda _tls, **_arguments: world.network())
        # What other worlds have taught of the server, and the clock of what finalisers have left.
        swap("s3torch._access.access", "PROCESS_FACTS", Facts())
        swap("s3torch._access.leftovers", "clock", world.clock)
        # Nobody is asked for addresses, which would take botocore a while.
        swap("s3torch._aws.session", "AwsSession.endpoint", _endpoint)
        # To look the versions of packages up takes as long as a small program.
        swap("s3torch._access.access", "user_agent", lambda _comments: "s3torch")
        # Sets of flights are walked in the same order each time.
        swap("s3torch._transfer.flight", "Flight.__hash__", _hash_of_flight)
        for module, name, value in _KNOBS:
            swap(module, name, value)
        bucket: Any = importlib.import_module("s3torch._aws.bucket").Bucket
        defaults = bucket.__init__.__kwdefaults__
        if defaults and "clock" in defaults:
            stack.callback(defaults.__setitem__, "clock", defaults["clock"])
            defaults["clock"] = world.clock
        _clear_caches()
        stack.callback(random.setstate, random.getstate())
        random.seed(world.chance.random())
        yield


def _clear_caches() -> None:
    """Empty what functions of s3torch remember, so that a program passes the same places whatever ran before it."""
    if _known.modules != len(sys.modules):
        _known.modules = len(sys.modules)
        _known.clears = [
            value.cache_clear
            for name, module in list(sys.modules.items())
            if name.startswith("s3torch.") and not name.startswith("s3torch.testing")
            for value in list(vars(module).values())
            if hasattr(value, "cache_clear")
        ]
    for clear in _known.clears:
        clear()


def _endpoint(_session: object, bucket: str, _region: str) -> object:
    return endpoint_of_bucket_url(f"{_ENDPOINT}/{bucket}/")


def _hash_of_flight(flight: Any) -> int:  # noqa: ANN401  # a class of the engine's own
    return hash((flight.began, flight.memory))  # of what stays: a flight may move to another connection
