"""A child that is forked in the middle of a program, and uses what it has inherited.

It is a real ``os.fork``: the child has the interpreter's state as it is, in the middle of a turn or of a handler, too.
The world is copied with it. So the child meets a server of its own, and what it does reaches the parent only as what
the child has found, by a pipe. In the child these hold, beside the invariants: no connection and no selector of the
parent is used or closed, for its descriptors are shared with the parent; and no upload of the parent is ended.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import sys
import time
import weakref
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from s3torch.testing.simulate import probe
from s3torch.testing.simulate.invariants import IN_CHILD
from s3torch.testing.simulate.model import PROBE
from s3torch.testing.simulate.play import Play
from s3torch.testing.simulate.steps import BUCKET, Step
from s3torch.testing.simulate.tracing import end_in_child

__all__ = ["Fork"]

# Seconds of real time after which a child is held to be stuck. Nothing is decided by it that a seed should decide.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Fork(Step):
    """Steps in a child that is forked here, for whose end this process waits.

    As a step of a signal handler it forks in the middle of whatever the handler interrupts.
    """

    steps: tuple[Step, ...]

    @property
    def names(self) -> set[str]:
        """What any of them uses."""
        return {name for step in self.steps for name in step.names}

    def run(self, play: Play) -> None:
        """Fork, and take over what the child has found."""
        if not hasattr(os, "fork"):
            return
        play.happened.add("a child was forked in the middle" if play.is_in_the_middle else "a child was forked")
        reading, writing = os.pipe()
        tracing = sys.gettrace()
        sys.settrace(None)  # what runs in the child at the fork would give its turn to threads that are not there
        child = os.fork()
        if not child:
            os.close(reading)
            _live(play, self.steps, writing)
        sys.settrace(tracing)
        os.close(writing)
        try:
            told = _read_all(reading)
        finally:
            os.close(reading)
            os.kill(child, signal.SIGKILL)  # it has told all, or comes to no end
            os.waitpid(child, 0)
        if not told:
            play.find("time", "a forked child comes to no end")
            return
        findings, happened = pickle.loads(told)  # noqa: S301  # our own
        play.happened |= happened
        for invariant, detail in findings:
            play.find(invariant, f"in a forked child: {detail}")


def _read_all(reading: int) -> bytes:
    """Return all that a child tells; nothing if it does not come to its end."""
    told, until = b"", time.monotonic() + _PATIENCE
    while select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
        piece = os.read(reading, 1 << 16)
        if not piece:
            return told
        told += piece
    return b""


def _write_all(writing: int, told: bytes) -> None:
    while told:
        told = told[os.write(writing, told) :]


def _live(play: Play, steps: tuple[Step, ...], writing: int) -> NoReturn:
    """Be the child: play its steps, tell what was found, and end at once."""
    try:
        if play.tracer is not None:
            play.tracer.end_turns()
            play.tracer.stop()
        end_in_child()
        play.begin_in_child()
        try:
            _play(play, steps)
        except BaseException as error:  # noqa: BLE001  # nothing may go on behind the parent's step
            play.find("documented errors", f"it ended by {type(error).__name__}: {error}")
        told = pickle.dumps(([tuple(each) for each in play.findings], play.happened))
        _write_all(writing, told)
    finally:
        os._exit(0)


def _play(play: Play, steps: tuple[Step, ...]) -> None:
    inherited = set(play.world.server.uploads)
    for step in steps:
        step.run(play)
        if play.world.is_silent:
            return
    # What is dropped here is dropped by no ``close``: a finaliser must know whose it is.
    play.kept.clear()
    play.things.clear()
    datasets = [weakref.ref(each) for each in play.datasets]
    play.datasets.clear()
    play.forget_checkpoints()
    gc.collect()
    for kept in datasets:  # by frames of the parent's threads, which are in the middle of it and not there
        if dataset := kept():
            probe.cancel_ahead(dataset)
    play.world.heal()
    for client in play.clients:  # sends what finalisers have left
        play.attempt("a call afterwards", [PROBE], partial(client.head_object, BUCKET, PROBE))
    for upload in inherited:
        if play.world.server.uploads.pop(upload, None) is None:
            play.find("uploads", "it has ended an upload of its parent")
    play.check_memory("at its end")
    for invariant in IN_CHILD if not play.findings else ():
        invariant(play)
