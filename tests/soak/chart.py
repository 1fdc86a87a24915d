"""Draws a soak: samples per second, memory and descriptors over time, with what was done to the server."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from tests.soak.record import Record

__all__ = ["draw"]

_INK, _FAINT, _LINE = "#1f2328", "#d0d4d9", "#1c5fb0"
_MARKS = {"server killed": ("#c92a2a", "-"), "key rotated": ("#2b8a3e", "--")}
_RESETS = ("reset in a request", "reset in an answer")
_STEP = 5.0  # seconds of one point of the first panel


def draw(record: Record, path: Path) -> None:
    """Write the chart as PNG."""
    figure = Figure(figsize=(11, 7.5), facecolor="white", layout="constrained")
    first, second, third = figure.subplots(3, 1, sharex=True)
    first.plot(*_rate(record.samples), color=_LINE, linewidth=1)
    first.set_ylabel("samples per second")
    second.plot([t / 60 for t, _ in record.memory], [v / 2**20 for _, v in record.memory], color=_LINE, linewidth=1)
    second.set_ylabel("resident memory, MiB")
    third.plot([t / 60 for t, _ in record.descriptors], [v for _, v in record.descriptors], color=_LINE, linewidth=1)
    third.set_ylabel("open descriptors")
    third.set_xlabel("minutes")
    for axes in (first, second, third):
        axes.set_facecolor("white")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        axes.grid(color=_FAINT, linewidth=0.5)
        axes.tick_params(colors=_INK)
        for name, (color, style) in _MARKS.items():
            for number, when in enumerate(record.moments.get(name, ())):
                axes.axvline(
                    when / 60, color=color, linestyle=style, linewidth=0.8, alpha=0.7, label=None if number else name
                )
    resets = [when / 60 for name in _RESETS for when in record.moments.get(name, ())]
    low, high = first.get_ylim()
    first.plot(
        resets, [low + (high - low) * 0.02] * len(resets), "|", color="#e8590c", markersize=6, label="connection reset"
    )
    first.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, frameon=False, ncols=3)
    figure.suptitle(
        "Training against a server that is killed, reset and given other keys",
        color=_INK,
        fontsize=12,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=110)


def _rate(samples: list[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """Return minutes and samples per second, of steps of some seconds."""
    if not samples:
        return [], []
    counts = [0] * (int(samples[-1][0] / _STEP) + 1)
    for when, count in samples:
        counts[int(when / _STEP)] += count
    return [(step + 0.5) * _STEP / 60 for step in range(len(counts))], [count / _STEP for count in counts]
