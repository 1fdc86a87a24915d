"""``python -m tests.soak --minutes 60``: trains against a real server that fails; see ``run``.

Prints a table, and writes ``soak.json`` and ``soak.png`` into the folder that ``--out`` names. Exits with 1 if anything
was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.soak.chart import draw
from tests.soak.record import Plan, Record, as_json, quarters, verdict
from tests.soak.run import soak

MiB = 1024 * 1024


def rows(record: Record) -> dict[str, str]:
    """Return the figures."""
    moments = record.moments
    memory, descriptors = quarters(record.memory), quarters(record.descriptors)
    return {
        "minutes": f"{record.ended / 60:.1f}",
        **{name: f"{count:,}" for name, count in sorted(record.counts.items())},
        **{f"{name}, times": f"{len(moments.get(name, ())):,}" for name in ("server killed", "key rotated")},
        **{f"connection {name}": f"{len(moments[name]):,}" for name in ("reset in a request", "reset in an answer")},
        "longest time without a batch": f"{record.longest_wait():.1f} s",
        "memory, second and last quarter": f"{memory[0] / MiB:.0f} MiB, {memory[1] / MiB:.0f} MiB",
        "descriptors, second and last quarter": f"{descriptors[0]:.0f}, {descriptors[1]:.0f}",
        "multipart uploads left open": str(len(record.uploads)),
        "empty ones, begun by a request whose answer was lost": str(record.empty_uploads),
    }


def main() -> int:
    """Run it, and show what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--objects", type=int, default=Plan(seconds=0).objects)
    parser.add_argument("--checkpoint-every", type=float, default=Plan(seconds=0).checkpoint_every)
    parser.add_argument("--kill-every", type=float, default=Plan(seconds=0).kill_every)
    parser.add_argument("--reset-every", type=float, default=Plan(seconds=0).reset_every)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    options = parser.parse_args()
    plan = Plan(
        seconds=options.minutes * 60,
        seed=options.seed,
        objects=options.objects,
        checkpoint_every=options.checkpoint_every,
        kill_every=options.kill_every,
        reset_every=options.reset_every,
    )
    record = soak(plan)
    figures, wrong = rows(record), verdict(record)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps({"figures": figures, "wrong": wrong, **as_json(record)}))
    draw(record, options.out / "soak.png")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
