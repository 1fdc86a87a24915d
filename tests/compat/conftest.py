"""How programs written for s3torchconnector find the server, and what they have in common."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import pytest

from tests.compat.connector import OBJECTS, content_of, run_program


@pytest.fixture
def found(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the one that unchanged programs find: s3torchconnector reads no AWS_ENDPOINT_URL_S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)


@pytest.fixture(scope="session")
def folder(client, bucket) -> str:
    """The URI of a folder of objects; beside it is one more, whose key begins alike."""
    for number in range(OBJECTS):
        with client.put_object(bucket, f"compat/images/{number:03}") as writer:
            writer.write(content_of(number))
    with client.put_object(bucket, "compat/images-2") as writer:
        writer.write(b"other")
    return f"s3://{bucket}/compat/images/"


@pytest.fixture(scope="session")
def checkpoints(bucket) -> Callable[[int], str]:
    """Returns the URI under which a job of so many ranks has saved."""
    return lambda ranks: f"s3://{bucket}/compat/test_[+re.name]!@$%^&*_(src)-{ranks}"


@pytest.fixture(scope="session")
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
