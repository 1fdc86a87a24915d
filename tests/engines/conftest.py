"""What the examples of all engines read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3torch import S3Client
from s3torch.testing import LocalS3
from tests.engines.launching import SAMPLES


@pytest.fixture(scope="module")
def data(server: LocalS3) -> Iterator[str]:
    """The prefix of samples that tell which one they are; the environment knows the server."""
    with server.activated():
        client = S3Client()
        for number in range(SAMPLES):
            with client.put_object("tests", f"engines/train/{number:03}") as writer:
                writer.write(number.to_bytes(2, "big") + bytes(62))
        client.close()
        yield "s3://tests/engines/train/"
