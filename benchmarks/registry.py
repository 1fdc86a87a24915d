"""Who takes part in what: the files of ``clients`` enter their functions here.

A function gets ready and returns the work. Getting ready means: import, make the client, allocate and touch what a real
program would reuse. The work does one round. Nobody's time is spent on checking what arrived beyond its length; where
the content is checked, that happens while getting ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.site import Effort, Site

__all__ = ["Contender", "Done", "Prepare", "Work", "contenders", "enter"]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one round of work did.

    Attributes:
        items: Objects, ranges, samples or keys.
        bytes: That the caller got.
        seconds: What of the round counts as its time; None counts all of it.
        requests: That the client sent, where it tells; None where it does not.
        wire_bytes: That the client received, where it tells.
        extra: What only this task has.
    """

    items: int
    bytes: int = 0
    seconds: float | None = None
    requests: int | None = None
    wire_bytes: int | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


Work = Callable[[], Done]
Prepare = Callable[[Site, Effort], Work]


@dataclass(frozen=True)
class Contender:
    """One row of the tables of a task.

    Attributes:
        name: In the table.
        client: What ``--clients`` calls it: the file that it is in.
        needs: The module without which it cannot run, or None.
        prepare: Gets ready and returns the work.
    """

    name: str
    client: str
    needs: str | None
    prepare: Prepare


_entered: dict[str, dict[str, Contender]] = {}


def enter(name: str, *tasks: str, needs: str | None = None) -> Callable[[Prepare], Prepare]:
    """Enter a function for these tasks.

    Args:
        name: In the table.
        tasks: That it does.
        needs: The module without which it cannot.
    """

    def decorate(prepare: Prepare) -> Prepare:
        client = prepare.__module__.rpartition(".")[2]
        for task in tasks:
            _entered.setdefault(task, {})[name] = Contender(name, client, needs, prepare)
        return prepare

    return decorate


def contenders(task: str) -> Mapping[str, Contender]:
    """Return who has been entered for a task, by name and in the order of entry."""
    return _entered.get(task, {})
