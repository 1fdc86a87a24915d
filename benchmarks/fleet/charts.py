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
    right.hist(findings.bytes.steps, bins=_BINS, color=_OTHER, density=True, label="of a step")
    right.hist(findings.bytes.hundreds, bins=_BINS, color=_OURS, density=True, label="of 100 steps")
    right.set_xlabel("bytes of the heaviest rank, 1 is the mean rank")
    right.set_ylabel("density")
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
    figure, (left, right) = _figure("Requests at the start of a job", (10.5, 4.2), (1, 2))
    storms = findings.storms
    for who, axes in (("each worker", left), ("each rank", right)):
        names = [name for name in storms if name.startswith(f"credentials, {who}")]
        for name, color in zip(names, (_OURS, _OTHER, _THIRD), strict=False):
            course = storms[name].course
            seconds = range(int(course.ended) + 1)
            counts = [course.served[second] + course.refused[second] for second in seconds]
            how = name.rpartition(", ")[2]
            given_up = f", {storms[name].failed:,} given up" if storms[name].failed else ""
            axes.plot(seconds, counts, "o-", color=color, markersize=3, label=f"{how}{given_up}")
        axes.axhline(STS_PER_SECOND, color=_LIMIT, linestyle="--", label=f"limit of an account: {STS_PER_SECOND}")
        axes.set_title(f"{who} asks for credentials: {storms[names[0]].asked:,}", fontsize=10, color=_INK)
        axes.set_xlabel("seconds")
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(bottom=0)
        _plain(axes)
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("requests to STS, a second")
    return figure


def _outages(findings: Findings) -> Figure:
    figure, all_axes = _figure(
        f"{len(findings.outages)} ways to meet a limit, and {findings.outage[1]} s in which all is refused",
        (10, 2.0 * len(findings.outages) + 0.8),
        (len(findings.outages), 1),
    )
    begin, lasts = findings.outage
    most = max(max(found.course.served.values(), default=1) for found in findings.outages.values()) * 1.6
    for axes, (name, found) in zip(all_axes, findings.outages.items(), strict=True):
        seconds = range(int(found.course.ended))
        axes.plot(seconds, [found.course.served[second] for second in seconds], color=_OURS, label="answered")
        axes.plot(seconds, [found.course.refused[second] for second in seconds], color=_OTHER, label="refused")
        axes.axvspan(begin, begin + lasts, color=_FAINT, alpha=0.6, zorder=0)
        axes.set_ylim(0, most)
        axes.set_xlim(0, len(seconds))
        axes.set_title(name, fontsize=10, color=_INK, loc="left")
        axes.set_ylabel("a second")
        _plain(axes)
    all_axes[0].legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
    all_axes[-1].set_xlabel("seconds; lines that leave the top go on beyond it")
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
