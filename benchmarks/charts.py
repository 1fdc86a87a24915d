"""A chart of each case, as PNG: bars are medians, their whiskers the least and the greatest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Outcome, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.promises import Column

__all__ = ["draw"]

# On a background of its own, so that it reads the same on a light and on a dark page.
_PAPER, _INK, _FAINT = "#fbfbf9", "#1f2328", "#d0d4d9"
_OURS, _FLOOR, _OTHERS = "#d9480f", "#868e96", "#5c7cfa"
_WIDTH = 6.2  # inches of one column's part
_ROW = 0.34  # inches


def draw(outcome: Outcome, path: Path) -> bool:
    """Write the chart of a case; returns whether there was anything to draw.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    columns = [(column, outcome.column(column)) for column in outcome.case.charts]
    columns = [(column, found) for column, found in columns if found]
    if not columns:
        return False
    rows = max(len(found) for _, found in columns)
    size = (_WIDTH * len(columns) + 1.0, _ROW * rows + 1.3)
    figure = Figure(figsize=size, facecolor=_PAPER, layout="constrained")
    figure.suptitle(outcome.case.title, color=_INK, fontsize=11, fontweight="bold")
    all_axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (column, found) in zip(all_axes, columns, strict=True):
        _draw_column(axes, column, found)
    figure.savefig(path, dpi=110)
    return True


def _draw_column(axes: Axes, column: Column, found: dict[str, Spread]) -> None:
    names, spreads = list(found), list(found.values())
    medians = [spread.median for spread in spreads]
    whiskers = [
        [spread.median - spread.low for spread in spreads],
        [spread.high - spread.median for spread in spreads],
    ]
    axes.set_facecolor(_PAPER)
    axes.barh(names, medians, color=[_color(name) for name in names], height=0.72, zorder=2)
    axes.errorbar(medians, names, xerr=whiskers, fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5, zorder=3)
    axes.invert_yaxis()
    reach = max(spread.high for spread in spreads)
    for place, spread in enumerate(spreads):
        text = f"{spread.median:,.{column.digits}f}"
        axes.text(spread.high + reach * 0.015, place, text, va="center", fontsize=8, color=_INK)
    axes.set_xlim(min(0.0, *(spread.low for spread in spreads)), reach * 1.16)
    axes.set_xlabel(f"{column.title} ({'more' if column.is_more_better else 'less'} is better)", color=_INK, fontsize=9)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.xaxis.grid(visible=True, color=_FAINT, linewidth=0.6, zorder=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    for spine in axes.spines.values():
        spine.set_visible(False)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if _is_ours(name) else "normal")


def _is_ours(name: str) -> bool:
    return name.removeprefix("import ").startswith("s3torch") and "s3torchconnector" not in name


def _color(name: str) -> str:
    if name.startswith("floor") or name in {"empty program", "import torch"}:
        return _FLOOR
    return _OURS if _is_ours(name) else _OTHERS
