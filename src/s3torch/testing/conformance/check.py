"""What a check is: a function of the `Site`, with a name, a sentence, and what follows where it does not pass.

A check that needs another one (``needs``) is skipped where that one has not passed: a server that ignores ranges fails
one check, not twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from s3torch.testing.conformance.site import Site

__all__ = ["Check", "Checks"]

_BASIS = "object.put-get"  # needed by all others


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One named check.

    Args:
        name: Of the form ``group.name``.
        shows: One sentence: what it shows if it passes.
        consequence: What a user of s3torch must expect of a server that does not pass it.
        run: Makes it.
        needs: Names of checks without which it shows nothing.
    """

    name: str
    shows: str
    consequence: str
    run: Callable[[Site], None] = field(repr=False)
    needs: tuple[str, ...] = ()


class Checks(list[Check]):
    """The checks of one module, in the order in which they are made."""

    def add(
        self, name: str, shows: str, consequence: str, needs: Iterable[str] = ()
    ) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
        """Return a decorator that makes a check of a function.

        Args:
            name: See `Check`, like the others.
            shows: A sentence.
            consequence: A sentence.
            needs: Names of checks that are made before; all but the first of all need that.
        """
        needed = () if name == _BASIS else tuple(dict.fromkeys([_BASIS, *needs]))

        def add(run: Callable[[Site], None]) -> Callable[[Site], None]:
            self.append(Check(name=name, shows=shows, consequence=consequence, run=run, needs=needed))
            return run

        return add
