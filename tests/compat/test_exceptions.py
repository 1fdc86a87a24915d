"""S3Exception, as programs raise and derive from it: by ``make compare`` on s3torchconnector itself, too."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from torch._utils import ExceptionWrapper

from tests.compat.connector import IS_REAL, importable

with importable():
    from s3torchconnector import S3Exception


class Derived(S3Exception):
    """An exception of a program's own, without a constructor."""


class WithField(S3Exception):
    """An exception of a program's own that has a constructor."""

    def __init__(self, message: str, field: int) -> None:
        super().__init__(message, field)
        self.field = field


GIVEN = [(), ("foo",), ("foo", 1), (1, "foo"), (None,), ("a", "b", "c", "d", "e", "f")]


@pytest.mark.parametrize("kind", [S3Exception, Derived])
@pytest.mark.parametrize("given", GIVEN)
def test_arguments(kind: Any, given: tuple[object, ...]):
    """It takes what any exception takes, and says it as any exception does."""
    error = kind(*given)
    assert error.args == given
    assert str(error) == str(Exception(*given))
    assert repr(error) == repr(Exception(*given)).replace("Exception", kind.__name__)


@pytest.mark.parametrize("given", GIVEN)
def test_pickles(given: tuple[object, ...]):
    """It comes back from a pickle, and from copying."""
    for back in (pickle.loads(pickle.dumps(S3Exception(*given))), copy.copy(S3Exception(*given))):
        assert (type(back), back.args) == (S3Exception, given)


def test_derived_classes():
    """What derives from it is caught as it, and pickles with what was added."""
    error = Derived("foo", 1)
    error.added = 2
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.args, back.added) == (Derived, ("foo", 1), 2)
    again = pickle.loads(pickle.dumps(WithField("foo", 3)))
    assert (type(again), again.args, again.field) == (WithField, ("foo", 3), 3)
    with pytest.raises(S3Exception):
        raise back


def test_out_of_a_worker():
    """It is rebuilt by torch in the process that gets it from a DataLoader worker."""
    try:
        raise Derived("foo")
    except Derived:
        wrapped = ExceptionWrapper(where="in a worker")
    with pytest.raises(Derived, match="in a worker"):
        wrapped.reraise()


@pytest.mark.skipif(IS_REAL, reason="it takes no keywords")
def test_fields_beside_arguments():
    """The fields of s3torch are there, whatever the arguments are."""
    error = S3Exception("foo", 1, bucket="bucket")
    assert (error.args, error.bucket, error.key) == (("foo", 1), "bucket", None)
