"""A real S3 server on this machine, SeaweedFS, with samples and a large object in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from benchmarks.content import content, pieces
from benchmarks.servers.files import BUCKET, SAMPLES_PREFIX, Scale
from benchmarks.site import Site
from benchmarks.state import CHECKPOINT, WARM_UP, make_state

__all__ = ["Real", "serve", "serve_checkpoint"]

_SAMPLES = 1024  # as storing them takes a while


class Real(NamedTuple):
    """A running server.

    Attributes:
        site: What is in it.
        environment: The variables of who reads from it.
    """

    site: Site
    environment: Mapping[str, str]


@contextmanager
def serve(scale: Scale) -> Iterator[Real]:
    """Run the server until the block ends.

    Args:
        scale: Of the objects, of which up to 1,024 samples are stored.

    Raises:
        RuntimeError: It is not installed, or did not start.
    """
    from s3torch import S3Client
    from s3torch.testing import LocalS3

    samples = scale.sample_objects[:_SAMPLES]
    with LocalS3() as server:
        with server.activated():
            server.create_bucket(BUCKET)
            client = S3Client()
            sample = content(0, scale.sample)
            for key, _ in samples:
                with client.put_object(BUCKET, key) as writer:
                    writer.write(sample)
            with client.put_object(BUCKET, scale.large_object.key) as writer:
                for piece in pieces(scale.large):
                    writer.write(piece)
            client.close()
            environment = dict(server.environment)
        site = Site(
            bucket=BUCKET,
            region=server.region,
            endpoint=server.endpoint,
            path_style=True,
            is_ours=True,
            prefix=SAMPLES_PREFIX,
            samples=samples,
            large=scale.large_object,
            wide=scale.large_object,
        )
        yield Real(site, environment)


@contextmanager
def serve_checkpoint(scale: Scale) -> Iterator[Real]:
    """Run a server of its own with a checkpoint in it, which others may be saved beside, until the block ends.

    Raises:
        RuntimeError: It is not installed, or did not start.
    """
    from s3torch import S3Checkpoint
    from s3torch.testing import LocalS3

    with LocalS3() as server:
        with server.activated():
            server.create_bucket(BUCKET)
            checkpoint = S3Checkpoint()
            checkpoint.save(make_state(scale.tensors, scale.tensor), f"s3://{BUCKET}/{CHECKPOINT}", progress=False)
            checkpoint.save(make_state(2, 4096), f"s3://{BUCKET}/{WARM_UP}{CHECKPOINT}", progress=False)
            environment = dict(server.environment)
        site = Site(
            bucket=BUCKET,
            region=server.region,
            endpoint=server.endpoint,
            path_style=True,
            is_ours=True,
            tensors=scale.tensors,
            tensor=scale.tensor,
        )
        yield Real(site, environment)
