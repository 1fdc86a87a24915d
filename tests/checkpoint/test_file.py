"""S3Checkpoint: what torch.save wrote, torch.load reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from s3torch import S3Checkpoint, S3ClientConfig, S3Reader, S3ReaderConfig, S3Writer
from s3torch.errors import ArgumentError, ArgumentTypeError, InvalidURIError, ObjectNotFoundError

pytestmark = pytest.mark.usefixtures("s3")

MiB = 1024 * 1024
READERS = {
    "default": None,
    "sequential": S3ReaderConfig.sequential(),
    "range_based": S3ReaderConfig.range_based(),
    "buffered": S3ReaderConfig.range_based(64 * 1024),
}


@pytest.fixture
def uri(bucket, key) -> str:
    """A URI that no other test uses."""
    return f"s3://{bucket}/{key}"


@pytest.fixture(scope="module", params=READERS.values(), ids=READERS)
def checkpoint(request) -> S3Checkpoint:
    """A checkpoint of small parts, with each reader; it looks the server up when it is first used."""
    return S3Checkpoint(s3client_config=S3ClientConfig(part_size=5 * MiB), reader_config=request.param)


def _save(checkpoint: S3Checkpoint, uri: str, state: object, **options: object) -> None:
    with checkpoint.writer(uri) as writer:
        torch.save(state, writer, **options)


def _save_and_fail(checkpoint: S3Checkpoint, uri: str, size: int) -> None:
    with checkpoint.writer(uri) as writer:
        torch.save(torch.zeros(size, dtype=torch.uint8), writer)
        raise RuntimeError("out of luck")


def _load(checkpoint: S3Checkpoint, uri: str) -> object:
    with checkpoint.reader(uri) as reader:
        return torch.load(reader, weights_only=True)


@pytest.mark.parametrize("size", [7, 12 * MiB // 4])
def test_round_trip(checkpoint, uri, size):
    """Tensors of any dtype, in a PUT or in several parts, are loaded as they were saved, weights only."""
    state = {
        "weight": torch.arange(size, dtype=torch.float32),
        "half": torch.arange(5, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "epoch": 3,
    }
    _save(checkpoint, uri, state)
    loaded = _load(checkpoint, uri)
    assert loaded.keys() == state.keys()
    assert loaded.pop("epoch") == 3
    for name, tensor in loaded.items():
        assert tensor.dtype is state[name].dtype
        assert torch.equal(tensor, state[name])


def test_old_format(checkpoint, uri):
    """The old file format of torch is a stream of pickles, and works as well."""
    _save(checkpoint, uri, {"weight": torch.arange(1000.0)}, _use_new_zipfile_serialization=False)
    assert torch.equal(_load(checkpoint, uri)["weight"], torch.arange(1000.0))


def test_a_model_and_its_optimizer(checkpoint, uri):
    """A model and its optimizer go on from where they were."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    _save(checkpoint, uri, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    loaded = _load(checkpoint, uri)
    other = nn.Linear(4, 3)
    other.load_state_dict(loaded["model"])
    torch.optim.Adam(other.parameters()).load_state_dict(loaded["optimizer"])
    assert torch.equal(other.weight, model.weight)


def test_replaced(checkpoint, uri):
    """A second checkpoint takes the first one's place."""
    for number in range(2):
        _save(checkpoint, uri, {"number": number})
    assert _load(checkpoint, uri) == {"number": 1}


@pytest.mark.parametrize("size", [10, 12 * MiB])
def test_an_exception_leaves_nothing(boto, uri, bucket, key, size):
    """An exception while saving leaves the old checkpoint, and nothing of the new one."""
    checkpoint = S3Checkpoint(s3client_config=S3ClientConfig(part_size=5 * MiB))
    _save(checkpoint, uri, {"number": 1})
    with pytest.raises(RuntimeError, match="out of luck"):
        _save_and_fail(checkpoint, uri, size)
    assert _load(checkpoint, uri) == {"number": 1}
    uploads = boto.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert key not in [upload["Key"] for upload in uploads]


def test_what_cannot_be_pickled(uri):
    """An error of torch.save itself leaves nothing either."""
    checkpoint = S3Checkpoint()
    with pytest.raises(AttributeError, match=r"lambda|local"):
        _save(checkpoint, uri, {"function": lambda: None})
    with pytest.raises(ObjectNotFoundError):
        _load(checkpoint, uri)


def test_lazy(uri):
    """Opening sends nothing: a checkpoint that does not exist is missed at the first read."""
    checkpoint = S3Checkpoint()
    reader = checkpoint.reader(uri)
    assert isinstance(reader, S3Reader)
    with pytest.raises(ObjectNotFoundError, match=f"{uri} does not exist"):
        reader.read()
    writer = checkpoint.writer(uri)
    assert isinstance(writer, S3Writer)
    writer.abort()


@pytest.mark.parametrize(
    ("reader", "name"), [(None, "SequentialS3Reader"), (S3ReaderConfig.range_based(), "RangedS3Reader")]
)
def test_reader_config(uri, reader, name):
    """The configured reader is the one that loads."""
    assert type(S3Checkpoint(reader_config=reader).reader(uri)).__name__ == name


@pytest.mark.parametrize("uri", ["", "model.pt", "/tmp/model.pt", "s3://", "s3:///model.pt", "S3://bucket/key"])
def test_bad_uris(uri):
    """A URI that is none is refused by both ways in, with what was given."""
    for open_file in (S3Checkpoint().reader, S3Checkpoint().writer):
        with pytest.raises(InvalidURIError, match=f"got {uri!r}"):
            open_file(uri)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/"])
def test_a_bucket_alone(uri):
    """A bucket is no file: reading or writing it is refused, and no request is sent about it."""
    for open_file in (S3Checkpoint().reader, S3Checkpoint().writer):
        with pytest.raises(ArgumentError, match=r"[Kk]ey"):
            open_file(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/folder/", "s3://bucket//"])
def test_a_folder(uri):
    """A folder is no file: saving to it is refused, where some servers would drop what it holds."""
    checkpoint = S3Checkpoint()
    for save in (checkpoint.writer, lambda uri: checkpoint.save({}, uri), lambda uri: checkpoint.save_async({}, uri)):
        with pytest.raises(InvalidURIError, match="an object and no folder"):
            save(uri)


@pytest.mark.parametrize("uri", [None, 5, b"s3://bucket/key"])
def test_no_uris(uri):
    """What is no string is a TypeError that names it."""
    for open_file in (S3Checkpoint().reader, S3Checkpoint().writer):
        with pytest.raises(ArgumentTypeError, match="An S3 URI must be a str"):
            open_file(uri)


@pytest.mark.parametrize("name", ["reader_config", "s3client_config", "region"])
def test_wrong_types(name):
    """An argument of a wrong type is refused by name."""
    with pytest.raises(ArgumentTypeError, match=f"{name} must be"):
        S3Checkpoint(**{name: 5})


def test_repr():
    """The repr shows where it opens files; the attributes too."""
    checkpoint = S3Checkpoint("eu-west-1", "http://host:9")
    assert repr(checkpoint) == "S3Checkpoint(region='eu-west-1', endpoint='http://host:9')"
    assert (checkpoint.region, checkpoint.endpoint) == ("eu-west-1", "http://host:9")
