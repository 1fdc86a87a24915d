"""Threads of which exactly one runs at a time, and a seed says which.

They are real threads, so that what belongs to a thread does, but all others wait at a gate. The running one passes the
turn on where it waits for the network, and wherever ``switch`` is called: at bytecodes that the seed chooses. It keeps
the turn while it holds a lock of s3torch: the next to want that would wait for ever.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from s3torch.testing.simulate.world import World

__all__ = ["Scheduler", "StuckError"]

# Seconds of real time after which threads are held to be stuck. Nothing is decided by it that a seed should decide.
_PATIENCE = 60.0
# Places where signals are looked for in a function of s3torch, about.
_PLACES_OF_A_CALL = 4
_LOCKS = (type(threading.Lock()), type(threading.RLock()))


class StuckError(BaseException):
    """No thread comes on."""


class _Task:
    """One thread, and what it waits for."""

    def __init__(self) -> None:
        self.gate = threading.Lock()  # a bare lock: a semaphore is made of Python code, which takes ten times as long
        self.gate.acquire()
        self.is_ready: Callable[[], bool] | None = None
        self.deadline = 0.0
        self.is_done = False


class Scheduler:
    """Runs bodies in threads of their own, the first in the calling thread.

    Args:
        world: Whose time passes when all of them wait.
        chance: Decides who is next.
        gap: Bytecodes between two switches, on average.
    """

    def __init__(self, world: World, chance: random.Random, gap: int) -> None:
        self._world = world
        self._chance = chance
        self._gap = gap
        self._tasks: list[_Task] = []
        self._current: _Task | None = None
        self._locks = locks_of(len(sys.modules))
        self.switches = 0

    def run(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Run them all to their ends.

        Raises:
            StuckError: None of them comes on.
        """
        self._tasks = [_Task() for _ in bodies]
        self._current = self._tasks[0]
        threads = [
            threading.Thread(target=self._run, args=(task, body), daemon=True)
            for task, body in zip(self._tasks[1:], bodies[1:], strict=True)
        ]
        self._world.scheduler = self
        try:
            for thread in threads:
                thread.start()
            bodies[0]()
            first = self._tasks[0]
            first.is_done = True
            while True:
                if all(task.is_done for task in self._tasks):
                    break
                self._give_to(self._choose(), first)
        finally:
            self._world.scheduler = None
        for thread in threads:
            thread.join(_PATIENCE)

    def block(self, is_ready: Callable[[], bool], deadline: float) -> None:
        """Wait for the network; others run meanwhile."""
        task = self._current
        assert task is not None
        task.is_ready, task.deadline = is_ready, deadline
        try:
            self._give_to(self._choose(), task)
        finally:
            task.is_ready = None

    def switch(self) -> None:
        """Pass the turn on, perhaps."""
        if self._current is not None and not self._holds_lock():
            self._give_to(self._choose(), self._current)

    def draw(self) -> tuple[int, int]:
        """Return after how many calls of s3torch, and how many places more, the next switch is due."""
        return divmod(_PLACES_OF_A_CALL + 1 + int(self._chance.expovariate(1.0 / self._gap)), _PLACES_OF_A_CALL)

    def _run(self, task: _Task, body: Callable[[], None]) -> None:
        self._await(task)
        try:
            body()
        finally:
            task.is_done = True
            self._pass_on(self._choose())

    def _choose(self) -> _Task:
        """Return the task that runs next; lets time pass if all of them wait."""
        world = self._world
        while True:
            world.settle()
            alive = [task for task in self._tasks if not task.is_done]
            if not alive:
                return self._tasks[0]
            able = [task for task in alive if task.is_ready is None or world.now >= task.deadline or task.is_ready()]
            if able:
                return self._chance.choice(able)
            world.step(min(task.deadline for task in alive))

    def _give_to(self, chosen: _Task, task: _Task) -> None:
        if chosen is not task:
            self.switches += 1
            self._pass_on(chosen)
            self._await(task)

    def _pass_on(self, chosen: _Task) -> None:
        self._current = chosen
        chosen.gate.release()

    def _await(self, task: _Task) -> None:
        if not task.gate.acquire(timeout=_PATIENCE):
            raise StuckError("No thread comes on: one waits for what another holds.")

    def _holds_lock(self) -> bool:
        return any(lock._is_owned() if hasattr(lock, "_is_owned") else lock.locked() for lock in self._locks)


@functools.lru_cache(maxsize=1)
def locks_of(modules: int) -> list[Any]:
    """Return the locks that modules of s3torch, and the objects that they hold, have, while so many are loaded."""
    del modules
    found = []
    for name, module in list(sys.modules.items()):
        if name == "s3torch" or (name.startswith("s3torch.") and not name.startswith("s3torch.testing")):
            for value in list(vars(module).values()):
                if isinstance(value, _LOCKS):
                    found.append(value)
                elif type(value).__module__.startswith("s3torch"):
                    found += [each for each in getattr(value, "__dict__", {}).values() if isinstance(each, _LOCKS)]
    return found
