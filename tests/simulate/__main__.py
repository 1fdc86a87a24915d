"""Simulates for as long as one likes: ``python -m tests.simulate --seeds 10000 --start 1 --minutes 5``.

Each seed is one program with what happens in the middle of it. Ends with 1 if anything was found; each finding is
printed as a program that fails again, made small, with the invariants that it breaks.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter

from s3torch.testing.simulate import KINDS, NAMES, Finding, Program, run, shrunk, simulate

__all__ = ["main"]

_MOST_FINDINGS = 20


def told(seed: int, program: Program, findings: list[Finding]) -> str:
    """Return how a finding is printed."""
    lines = [f"seed {seed} breaks:", *(f"  {each.invariant}: {each.detail}" for each in findings[:5])]
    lines += [f"  it happened at {place}" for place in run(program).met]
    return "\n".join([*lines, "", "from s3torch.testing.simulate import *", "", f"check({program!r})", ""])


def main(arguments: list[str]) -> int:
    """Simulate as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, help="how many; default: as many as the time allows")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="for how long at most; default: one, or until all seeds are done")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--findings", type=int, default=_MOST_FINDINGS, help="when to stop")
    parser.add_argument(
        "--ignore", choices=NAMES, action="append", default=[], help="an invariant that is known to break"
    )
    parser.add_argument("--whole", action="store_true", help="print programs as they are, not made small")
    chosen = parser.parse_args(arguments)
    minutes = chosen.minutes or (1.0 if chosen.seeds is None else None)
    began = time.monotonic()
    seeds = itertools.count(chosen.start) if chosen.seeds is None else range(chosen.start, chosen.start + chosen.seeds)
    broken: Counter[str] = Counter()
    count = failed = 0
    for seed in seeds:
        if (minutes is not None and time.monotonic() - began >= 60 * minutes) or failed >= chosen.findings:
            break
        program, findings = simulate(seed, chosen.only, ignore=chosen.ignore)
        count += 1
        if findings:
            failed += 1
            broken.update({each.invariant for each in findings})
            print(
                told(seed, program if chosen.whole else shrunk(program, findings, ignore=chosen.ignore), findings),
                flush=True,
            )
    took, cpu = time.monotonic() - began, time.process_time()
    rate = f"{count} programs in {took:.0f} s ({cpu:.0f} s of CPU, {count / cpu:.0f} programs each)"
    print(f"{rate}, {failed} that fail: {dict(broken)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
