"""How programs written for s3torchconnector find the server, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.compat.connector import OBJECTS, content_of


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


@pytest.fixture
def names(client, bucket) -> Callable[[str], list[str]]:
    """Returns the names of the objects under a URI."""

    def names(uri: str) -> list[str]:
        key = uri.removeprefix(f"s3://{bucket}/") + "/"
        return sorted(info.key[len(key) :] for page in client.list_objects(bucket, key) for info in page.object_info)

    return names
