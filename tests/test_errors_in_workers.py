"""Every error of ours survives the way out of a DataLoader worker."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset

from s3torch import errors

NAMES = sorted(errors.__all__)


def _error(name: str) -> errors.S3Error:
    return getattr(errors, name)(
        f"{name} happened to s3://bucket/key.",
        bucket="bucket",
        key="key",
        status=503,
        code="SlowDown",
        request_id="REQUEST",
        region="eu-west-1",
        attempts=3,
    )


def _raise(name: str) -> None:
    raise _error(name)


class Failing(Dataset):
    """Raises the error of the index's number."""

    def __len__(self) -> int:
        return len(NAMES)

    def __getitem__(self, index: int) -> None:
        _raise(NAMES[index])


class FailingStream(IterableDataset):
    """Raises an error when it is asked for a sample."""

    def __iter__(self):
        yield from map(_raise, ["ThrottledError"])


@pytest.fixture(scope="module")
def arrived() -> dict[str, Exception]:
    """What arrives of each error, by its name: all through one loader, as starting one takes a while."""
    found: dict[str, Exception] = {}
    batches = iter(DataLoader(Failing(), None, num_workers=2, multiprocessing_context="fork"))
    for name in NAMES:
        try:
            next(batches)
        except Exception as error:  # noqa: BLE001  # what it is, is for the tests to say
            found[name] = error
    assert list(batches) == []
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_error_arrives(arrived, name):
    """An error raised in a worker is raised by the loader as the same class, with its sentence and its facts."""
    error = arrived[name]
    assert type(error) is getattr(errors, name)
    assert str(error).startswith(f"Caught {name} in DataLoader worker process ")
    sentence = f"{name} happened to s3://bucket/key. (status 503, code SlowDown, request id REQUEST, attempts 3)"
    assert f"s3torch.errors.{name}: {sentence}" in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_builtin_classes_arrive(arrived, name):
    """It can be caught there as the builtin class that means the same."""
    for builtin in (ValueError, TypeError, FileNotFoundError, PermissionError, ConnectionError, TimeoutError):
        if issubclass(getattr(errors, name), builtin):
            with pytest.raises(builtin):
                raise arrived[name]


def test_an_error_of_a_stream(errors_of):
    """So it does out of an iterable dataset, whose worker ends with it."""
    (error,) = errors_of(DataLoader(FailingStream(), None, num_workers=1, multiprocessing_context="fork"))
    assert type(error) is errors.ThrottledError
    assert "ThrottledError happened to s3://bucket/key." in str(error)
