"""What all tests share: how much Hypothesis tries, and how the code blocks of the documentation are run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from s3torch import S3Client
from s3torch.testing import LocalS3

# "ci" tries the same examples each time, so that a change is never blamed for another one's bug; "dev" tries new ones.
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("dev", max_examples=50, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def documented_server() -> Iterator[None]:
    """The server that the documentation's examples talk to, with what they read in it."""
    with LocalS3() as server, server.activated():
        server.create_bucket("my-bucket")
        client = S3Client()
        objects = {f"images/{number}.png": bytes([number]) * 100 for number in range(4)}
        objects["archive.bin"] = bytes(range(256)) * 5000
        for key, content in objects.items():
            with client.put_object("my-bucket", key) as writer:
                writer.write(content)
        path = list(sys.path)
        yield
        sys.path[:] = path  # docs/migrate.md has installed packages that other tests must not find
        for name in [name for name in sys.modules if name.startswith("s3torchconnector")]:
            del sys.modules[name]


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"], fixtures=["documented_server"]
).pytest()
