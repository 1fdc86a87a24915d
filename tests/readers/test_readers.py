"""Every kind of reader passes the same suite."""

from __future__ import annotations

import itertools

import pytest

from s3torch import ReaderType, S3Client, S3ReaderConfig
from s3torch.errors import ArgumentTypeError, ConfigError, TransientError
from s3torch.readers import RangedS3Reader, SequentialS3Reader, check_reader_config
from s3torch.testing import FaultyServer
from tests.readers.conformance import ReaderConformance, store_samples

KINDS = {
    "sequential": S3ReaderConfig.sequential(),
    "ranged": S3ReaderConfig.range_based(),
    "ranged, buffer 0": S3ReaderConfig.range_based(0),
    "ranged, buffer 1": S3ReaderConfig.range_based(1),
    "ranged, buffer 1000": S3ReaderConfig.range_based(1000),
    "ranged, buffer larger than the object": S3ReaderConfig.range_based(1_000_000),
    "adaptive": S3ReaderConfig.adaptive(),
    "adaptive, smallest window": S3ReaderConfig.adaptive(16 * 1024),
}


@pytest.fixture(scope="module")
def samples(client, bucket) -> dict[str, str]:
    """The suite's objects, stored once."""
    return store_samples(client, bucket)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
class TestReaders(ReaderConformance):
    """The suite, for each kind."""

    @pytest.fixture
    def stored(self, samples):
        """The keys of the samples."""
        return samples


@pytest.mark.parametrize("config", [None, S3ReaderConfig(), S3ReaderConfig.sequential()])
def test_sequential_is_the_default(client, bucket, config):
    """A reader is sequential unless another one is asked for."""
    assert type(client.get_object(bucket, "key", reader_config=config)) is SequentialS3Reader
    assert check_reader_config(config).reader_type is ReaderType.SEQUENTIAL


def test_range_based(client, bucket):
    """A range-based reader is what its configuration asks for."""
    assert type(client.get_object(bucket, "key", reader_config=S3ReaderConfig.range_based(5))) is RangedS3Reader


@pytest.mark.parametrize("config", ["sequential", ReaderType.SEQUENTIAL, S3ReaderConfig, {}, False])
def test_no_reader_config(client, bucket, config):
    """Anything else as ``reader_config`` is a TypeError that names the argument, the value and the remedy."""
    with pytest.raises(ArgumentTypeError, match=r"reader_config must be .* got .*Use S3ReaderConfig\.sequential\(\)"):
        client.get_object(bucket, "key", reader_config=config)


def test_a_buffer_is_not_negative():
    """A buffer of negative size is refused when it is configured."""
    with pytest.raises(ConfigError, match="buffer_size=-1"):
        S3ReaderConfig.range_based(-1)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_line_that_fails_in_the_middle(config, monkeypatch):
    """A line whose second half cannot be read is read again from its beginning, by whoever tries again."""
    content = b"x" * 12 * 1024 * 1024 + b"\nnext\n"
    with FaultyServer({"k": content}) as server:
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=server.config)
        with client.get_object("bucket", "k", reader_config=config) as reader:
            chunks, calls = reader._chunk_at, itertools.count()

            def fail(start: int) -> tuple[bytes, int]:
                if next(calls) == 1:
                    raise TransientError("once")
                return chunks(start)

            monkeypatch.setattr(reader, "_chunk_at", fail)
            with pytest.raises(TransientError, match="once"):
                reader.readline()
            assert reader.tell() == 0
            assert reader.readline() == content[:-5]
            assert reader.readline() == b"next\n"
        client.close()
