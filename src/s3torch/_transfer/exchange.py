"""An exchange: one request, the reader of its answer, and how it went."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from s3torch.errors import S3Error

if TYPE_CHECKING:
    from s3torch._transfer.connection import Origin
    from s3torch._transfer.http1 import Head, Inbox

__all__ = ["Exchange", "without_frames"]


class Exchange(ABC):
    """One request, the reader of its answer, and how it went.

    Args:
        origin: Where it goes.
        memory: Bytes of memory that its answer fills; counts towards the limit of bytes in flight.

    Attributes:
        is_read: Whether it changes nothing, so that a second request may go out beside it.
        is_slow: Whether the server says by a byte now and then that it is at work: that is progress enough, and as much
            time may pass between two of them as before the first byte.
        attempts: How often it was sent; second requests do not count.
        is_done: Whether it has succeeded or failed.
        error: What it failed with. Once it is set the exchange has failed, whatever else it says.
        head: The head of the last answer.
        flight: The attempt that is on a connection now.
        rival: A second attempt beside it.
    """

    is_read = False
    is_slow = False

    def __init__(self, origin: Origin, memory: int) -> None:
        self.origin = origin
        self.memory = memory
        self.attempts = 0
        self.is_done = False
        self.error: Exception | None = None
        self.head: Head | None = None
        # Of class Flight. A flight knows its exchange; were it known here as well, imports would go round a circle.
        self.flight: Any = None
        self.rival: Any = None

    def aim(self) -> None:  # noqa: B027  # most know no other place
        """Set ``origin`` to where the next attempt goes: answers to others may have corrected that.

        Between two calls of it all attempts go to the same place, and are signed for it.
        """

    @property
    def label(self) -> str:
        """What the log calls it: no secret is in it."""
        return repr(self)

    @abstractmethod
    def request(self) -> Sequence[memoryview]:
        """Return the bytes to send, signed anew for this attempt."""

    @abstractmethod
    def response(self, inbox: Inbox) -> Generator[memoryview, int, S3Error | None]:
        """Read one answer; returns the error that the answer stands for.

        An error that is raised, not returned, means that the connection can't be used any more.
        """

    def recover(self, error: S3Error) -> bool:
        """Correct what caused the error, if that is possible; returns whether to send the request again at once."""
        del error
        return False

    def explain(self, error: S3Error) -> S3Error:
        """Return the error as the caller is to see it."""
        return error

    def release(self) -> None:  # noqa: B027  # some exchanges have none
        """Drop the caller's memory: the exchange is over and will touch it no more."""

    def take_error(self) -> Exception:
        """Return the error it failed with, to be raised.

        The exchange does not keep it: an error that is raised refers to the frames that it passed, and they to the
        exchange. As a cycle, that would hold the memory of a failed read until the garbage collector runs.
        """
        error = self.error
        if error is None:
            raise AssertionError("the error of an exchange that has not failed")
        # Whoever waits again gets its like, without the frames that this one will refer to.
        self.error = copy.copy(error) if isinstance(error, S3Error) else RuntimeError(str(error))
        return error


def without_frames(error: BaseException) -> None:
    """Drop the frames that an error and its causes have passed: they hold buffers, exchanges and generators."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            left += [each.__cause__, each.__context__]
