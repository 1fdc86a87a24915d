"""One request, and everything that a fault may do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from s3torch.testing.faulty.objects import Answer, Objects
from s3torch.testing.faulty.wire import Request, Wire

__all__ = ["Exchange"]


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request, the bucket that it is about, and the way back.

    Args:
        request: What the client asked for.
        wire: The way back to it.
        objects: The bucket.
        random: Seeded by the request, for positions that a fault leaves open.
        pause: Blocks for some seconds, or until the server exits.
        refuse: Refuses connections for some seconds.
    """

    request: Request
    wire: Wire
    objects: Objects
    random: Random
    pause: Callable[[float], None]
    refuse: Callable[[float], None]
    _answer: Answer | None = field(default=None, init=False)

    @property
    def answer(self) -> Answer:
        """The right answer. To ask for it does what was requested, once."""
        if self._answer is None:
            self._answer = self.objects.answer(self.request)
        return self._answer

    @property
    def key(self) -> str:
        """The key that the request is about; empty if it is about the bucket."""
        return self.objects.key_of(self.request)

    def send(self, answer: Answer | None = None) -> None:
        """Sends an answer; None means the right one."""
        answer = answer or self.answer
        self.wire.respond(answer.status, answer.fields, answer.body)

    def encoded(self, answer: Answer | None = None) -> tuple[bytes, bytes]:
        """Returns head and body of an answer as they are sent; None means the right one."""
        answer = answer or self.answer
        return self.wire.encode(answer.status, answer.fields, answer.body)
