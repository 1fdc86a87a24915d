"""A simulation of programs that use s3torch, in which several things happen at once.

A seed makes a program of the public API, and what happens in the middle of it: signal handlers, interrupts,
collections, turns of threads, faults of the network. It runs in virtual time against a server in memory, and what must
hold is checked (see ``invariants``). What fails is printed as a program of a few lines, which ``check`` runs again::

    from s3torch.testing.simulate import *

    check(Program(seed=7, objects=(300, 300), datasets=(DatasetSpec("map"),), steps=(Batch(0, (0, 1)),)))
"""

from s3torch.testing.simulate.coincidences import Collect, Forget, Interrupt, Lose, Replace, Signal
from s3torch.testing.simulate.invariants import NAMES, Finding
from s3torch.testing.simulate.programs import KINDS, DatasetSpec, Program
from s3torch.testing.simulate.running import (
    Result,
    check,
    everywhere,
    program_of,
    result_of,
    run,
    shrunk,
    simulate,
)
from s3torch.testing.simulate.steps import (
    Batch,
    Churn,
    CloseClient,
    Drop,
    Elsewhere,
    EndWriter,
    Epoch,
    ForgetErrors,
    Head,
    Iterate,
    ListPages,
    LoseInCycle,
    Next,
    Open,
    OpenWriter,
    Prefetch,
    Read,
    ReadInto,
    ReadLine,
    ReadRange,
    ReadRanges,
    ReplaceObject,
    Seek,
    Together,
    Workers,
    Write,
    WriteTo,
)

__all__ = [
    "KINDS",
    "NAMES",
    "Batch",
    "Churn",
    "CloseClient",
    "Collect",
    "DatasetSpec",
    "Drop",
    "Elsewhere",
    "EndWriter",
    "Epoch",
    "Finding",
    "Forget",
    "ForgetErrors",
    "Head",
    "Interrupt",
    "Iterate",
    "ListPages",
    "Lose",
    "LoseInCycle",
    "Next",
    "Open",
    "OpenWriter",
    "Prefetch",
    "Program",
    "Read",
    "ReadInto",
    "ReadLine",
    "ReadRange",
    "ReadRanges",
    "Replace",
    "ReplaceObject",
    "Result",
    "Seek",
    "Signal",
    "Together",
    "Workers",
    "Write",
    "WriteTo",
    "check",
    "everywhere",
    "program_of",
    "result_of",
    "run",
    "shrunk",
    "simulate",
]
