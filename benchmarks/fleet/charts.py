"""The charts of a run, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.fleet.job import GETS_PER_SECOND, STS_PER_SECOND
from benchmarks.fleet.report import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

_PAPER, _INK, _FAINT = "#fbfbf9", "#1f2328", "#d0d4d9"
_OURS, _OTHER, _THIRD, _LIMIT = "#d9480f", "#5c7cfa", "#2f9e44", "#868e96"
_BINS = 40


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Write all charts into a folder, and return their paths.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figures = {
        "scale-bytes.png": _bytes(findings),
        "scale-prefixes.png": _prefixes(findings),
        "scale-start.png": _start(findings),
        "scale-503.png": _outages(findings),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=110)
    return [folder / name for name in figures]


def _bytes(findings: Findings) -> Figure:
    figure, (left, right) = _figure("Bytes of ranks, shuffled, sizes log-normal", (10, 3.8), (1, 2))
    left.hist([share * 100 - 100 for share in findings.bytes.ranks], bins=_BINS, color=_OURS)
    left.set_xlabel("a rank's bytes of an epoch, % from the mean")
    left.set_ylabel("ranks")
    steps, hundreds = findings.bytes.steps, findings.bytes.hundreds
    right.hist(steps, bins=_BINS, color=_OTHER, weights=[1 / len(steps)] * len(steps), label="of a step")
    right.axvspan(min(hundreds), max(hundreds), color=_OURS, label="of 100 steps: all within this")
    right.set_xlabel("bytes of the heaviest rank, 1 is the mean rank")
    right.set_ylabel("share of steps")
    right.set_xlim(left=1.0)
    right.legend(frameon=False, fontsize=9)
    return figure


def _prefixes(findings: Findings) -> Figure:
    title = f"The busiest prefix, where the fleet sends {findings.rate:,} GETs a second"
    figure, (axes,) = _figure(title, (8.5, 4.2), (1, 1))
    for (name, found), color in zip(findings.hot.items(), (_OURS, _OTHER), strict=True):
        axes.plot(list(found), [hot.most for hot in found.values()], "o-", color=color, label=name, markersize=4)
    axes.axhline(GETS_PER_SECOND, color=_LIMIT, linestyle="--", label=f"limit of a prefix: {GETS_PER_SECOND:,}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("prefixes that hold the objects, as many in each")
    axes.set_ylabel("GETs a second")
    _plain(axes, both=True)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _start(findings: Findings) -> Figure:
    figure, (left, right) = _figure("Requests at the start of a job, where all start at once", (10.5, 4.2), (1, 2))
    _draw_storm(left, findings, "credentials, each worker", STS_PER_SECOND, "limit of an account")
    _draw_storm(right, findings, "listing, each rank", GETS_PER_SECOND, "limit of a prefix")
    left.set_title("each worker asks for credentials", fontsize=10, color=_INK)
    right.set_title("each rank lists: its first 32 pages", fontsize=10, color=_INK)
    left.set_ylabel("requests a second")
    return figure


def _draw_storm(axes: Axes, findings: Findings, start: str, limit: int, what: str) -> None:
    storms = {name: storm for name, storm in findings.storms.items() if name.startswith(start)}
    for (name, storm), color in zip(storms.items(), (_OURS, _OTHER, _THIRD), strict=False):
        counts = storm.course.served + storm.course.refused
        seconds = range(int(storm.course.ended) + 1)
        given_up = f", {storm.failed:,} given up" if storm.failed else ""
        label = f"{name.rpartition(', ')[2]}{given_up}"
        axes.plot(seconds, [counts[second] for second in seconds], "o-", color=color, markersize=3, label=label)
    axes.axhline(limit, color=_LIMIT, linestyle="--", label=f"{what}: {limit:,}")
    axes.set_xlabel("seconds")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(0, 3e6)  # room for the legend
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)


def _outages(findings: Findings) -> Figure:
    begin, lasts = findings.outage
    rows = len(findings.outages[True])
    title = f"A limit for {begin} s, then {lasts} s in which all is refused, then the limit again"
    figure, all_axes = _figure(title, (11, 1.7 * rows + 0.8), (rows, 2))
    end = max(int(found.course.ended) for outages in findings.outages.values() for found in outages.values())
    for column, (in_step, outages) in enumerate(findings.outages.items()):
        most = 1.6 * max(outages["s3torch"].limited, *(found.limited for found in outages.values()))
        for axes, (name, found) in zip(all_axes[column::2], outages.items(), strict=True):
            seconds = range(end)
            axes.plot(seconds, [found.course.refused[second] for second in seconds], color=_OTHER, label="refused")
            axes.plot(seconds, [found.course.served[second] for second in seconds], color=_OURS, label="answered")
            axes.axvspan(begin, begin + lasts, color=_FAINT, alpha=0.6, zorder=0)
            axes.set_ylim(0, most)
            axes.set_xlim(0, len(seconds))
            how = "in step" if in_step else "each for itself"
            axes.set_title(f"{name}; {how}", fontsize=9, color=_INK, loc="left")
            _plain(axes)
        all_axes[column - 2].set_xlabel("seconds; what leaves the top goes on beyond it")
    for axes in all_axes[::2]:
        axes.set_ylabel("a second")
    all_axes[1].legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _figure(title: str, size: tuple[float, float], grid: tuple[int, int]) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor=_PAPER, layout="constrained")
    figure.suptitle(title, color=_INK, fontsize=11, fontweight="bold")
    all_axes: list[Axes] = list(figure.subplots(*grid, squeeze=False).flat)
    for axes in all_axes:
        axes.set_facecolor(_PAPER)
        axes.tick_params(colors=_INK, labelsize=8)
        axes.grid(visible=True, color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure, all_axes


def _plain(axes: Axes, *, both: bool = False) -> None:
    """Write numbers out instead of powers of ten."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value:,.0f}")
    if both:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
