"""Curves with bands on a logarithmic axis, drawn by Matplotlib without its global state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Curve", "draw_curves", "plot_curves"]

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's palette, told apart by all common kinds of colour vision; without its yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")  # with the markers they tell curves apart in grey, too
WIDTH, HEIGHT = 2.7, 2.8  # inches of a panel
LABEL = 0.12  # width of a tick's label, as a share of a panel's
MARGIN = 1.06  # of the horizontal axis, on either side


class Curve(NamedTuple):
    """A line of a panel.

    Attributes
    ----------
    name : str
        In the legend.
    points : sequence of (x, y, low, high)
        ``x`` above 0; ``low`` and ``high`` bound the band about ``y``.
    """

    name: str
    points: Sequence[tuple[float, float, float, float]]


def plot_curves(
    panels: Mapping[str, Sequence[Curve]], path: str | os.PathLike[str], *, x_label: str
) -> None:
    """Draw panels side by side, four of them two by two, with one legend, into a file.

    Parameters
    ----------
    panels : mapping of str to sequence of Curve
        By title. A name has the same colour, line and marker in every panel.
    path : path
        Ends in ``.png``, ``.svg`` or ``.pdf``.
    x_label : str
        Of the horizontal axis, which is logarithmic.

    Raises
    ------
    ValueError
        Another suffix.
    ImportError
        Matplotlib is not installed.
    OSError
        The file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in {', '.join(SUFFIXES)}, got {path!s}")
    figure = draw_curves(panels, x_label=x_label)
    # Without a date, equal reports give pictures that differ in nothing that can be seen.
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(path, format=suffix[1:], metadata=dates.get(suffix))


def draw_curves(panels: Mapping[str, Sequence[Curve]], *, x_label: str) -> Any:
    """Return the figure that `plot_curves` saves, a Matplotlib ``Figure``."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.textpath import TextPath
    except ImportError as error:
        raise ImportError("a plot needs Matplotlib: pip install 'cexnn[cpu]'") from error
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    columns = 2 if len(panels) == 4 else len(panels)
    n_rows = -(-len(panels) // columns)
    letters = max(TextPath((0, 0), name).get_extents().width for name in names)
    column = 0.75 + max(0.0, letters) / 72  # inches of the legend
    width = max(5.0, WIDTH * columns + 0.4, column)
    n_columns = min(len(names), int(width / column))
    height = HEIGHT * n_rows + 0.5 + 0.24 * -(-len(names) // n_columns)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    grid = figure.subplots(n_rows, columns, sharey=True, squeeze=False)
    all_axes = grid.ravel()
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        _draw_panel(axes, title, curves, names)
        axes.set_xlabel(x_label)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of the exact\nneighbours found")
    handles = {h.get_label(): h for axes in all_axes for h in axes.get_lines()}
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=n_columns,
        frameon=False,
    )
    return figure


def _draw_panel(axes: Any, title: str, curves: Sequence[Curve], names: Sequence[str]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    for curve in curves:
        at = names.index(curve.name)
        colour = COLOURS[at % len(COLOURS)]
        x, y, low, high = np.array(sorted(curve.points), dtype=float).reshape(-1, 4).T
        axes.plot(
            x,
            y,
            label=curve.name,
            color=colour,
            marker=MARKERS[at % len(MARKERS)],
            markerfacecolor="white" if at % 2 else colour,
            linestyle=LINES[at % len(LINES)],
            markersize=4.5,
            linewidth=1.4,
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    ticks = sorted({round(point[0], 1) for curve in curves for point in curve.points}) or [1.0]
    axes.set_xscale("log")
    axes.set_xlim(ticks[0] / MARGIN, ticks[-1] * MARGIN)
    axes.set_xticks(_apart(ticks), [f"{tick:g}" for tick in _apart(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 1.02)
    axes.set_title(title)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(ticks: Sequence[float]) -> list[float]:
    """Return ticks that leave room for their labels on a logarithmic axis.

    Examples
    --------
    >>> _apart([50, 51, 100, 110, 200])
    [50, 100, 200]
    >>> _apart([1, 3, 10, 20, 30, 40, 100, 400])
    [1, 3, 10, 30, 100, 400]
    """
    kept = [ticks[0]]
    for tick in ticks[1:]:
        if tick >= kept[-1] * (ticks[-1] / ticks[0]) ** LABEL:
            kept.append(tick)
    return kept
