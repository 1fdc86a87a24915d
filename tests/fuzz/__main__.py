"""Fuzzes for as long as one likes: ``python -m tests.fuzz --seconds 600 --seed 1``.

Each execution is one damaged input to one target. The same seed and targets give the same inputs. Ends with 1 if
anything was found; each finding is printed with the input that shows it.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from itertools import chain, repeat
from random import Random

from tests.fuzz.targets import TARGETS, mutate

__all__ = ["main"]

_SLOW = 2.0  # seconds of the processor, which others may keep busy, too; a finding of its own
_MOST_FINDINGS = 20


def fuzz(names: list[str], *, executions: int, seconds: float, seed: int) -> tuple[int, list[str]]:
    """Run until so many executions or seconds are over; returns the number of executions, and what was found."""
    chance = Random(seed)
    turns = list(chain.from_iterable(repeat(TARGETS[name], TARGETS[name].weight) for name in names))
    of = {id(TARGETS[name]): name for name in names}
    findings: list[str] = []
    count = 0
    clock = time.process_time
    now = clock()
    end = time.monotonic() + seconds
    while count < executions and time.monotonic() < end and len(findings) < _MOST_FINDINGS:
        for target in turns:
            seeds = target.seeds
            data = mutate(seeds[int(chance.random() * len(seeds))], target, chance)
            count += 1
            try:
                target.run(data, chance)
            except Exception:  # noqa: BLE001  # every one of them is what is looked for
                findings.append(f"{of[id(target)]}, seed {seed}, execution {count}: {data!r}\n{traceback.format_exc()}")
        before, now = now, clock()
        if now - before > _SLOW:
            findings.append(f"seed {seed}, executions up to {count} took {now - before:.1f} s")
    return count, findings


def main(arguments: list[str]) -> int:
    """Fuzz as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--executions", type=int, default=sys.maxsize)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    count, findings = fuzz(
        chosen.target or list(TARGETS), executions=chosen.executions, seconds=chosen.seconds, seed=chosen.seed
    )
    took = time.monotonic() - began
    for finding in findings:
        print(finding)  # noqa: T201
    print(f"{count} executions in {took:.0f} s, {count / took:.0f} a second, {len(findings)} findings")  # noqa: T201
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
