"""Pictures of points, in the style of `hyperjax.report.plots`."""

import itertools
import math
import textwrap
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperjax.report import labels as label_places
from hyperjax.report import plots
from hyperjax.types import Array

Points = tuple[Array, Array]  # x and y, f[N] each


def scatter(
    groups: Mapping[str, Points],
    xlabel: str,
    ylabel: str,
    *,
    labels: Mapping[str, tuple[float, float]] | None = None,
    line: tuple[str, Points] | None = None,
    title: str = "",
    kind: str = "svg",
) -> bytes:
    """Points in groups, each of a colour and a marker.

    Args:
      groups: per name (x, y), f[N] each, any N. Points that are not finite are not drawn.
      labels: names of points (x, y), written beside them.
      line: a name and the (x, y) of a line beneath the points.
      kind: "svg" or "png".
    """
    entries = len(groups) + bool(line)
    with matplotlib.rc_context(plots._STYLE):
        height = 4.4 + 0.24 * math.ceil(entries / 3)
        figure = Figure(figsize=(plots._WIDTH, height), layout="constrained")
        axes = figure.subplots()
        if line:
            axes.plot(*line[1], color=plots.GREY, linewidth=1.5, zorder=1, label=line[0])
        styles = zip(itertools.cycle(plots._COLORS), itertools.cycle(plots._MARKERS), strict=False)
        for (name, (x, y)), (color, marker) in zip(groups.items(), styles, strict=False):
            axes.scatter(
                x, y, s=30, color=color, marker=marker, alpha=0.8, linewidths=0, label=name
            )
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        if entries > 1:
            figure.legend(loc="outside lower center", ncols=3, fontsize=10)
        finite = {name: xy for name, xy in (labels or {}).items() if np.isfinite(xy).all()}
        if finite:
            avoided = [*groups.values(), *([_dense(line[1])] if line else [])]
            _write_labels(figure, axes, finite, avoided)
        return plots._render(figure, kind)


def by_value(
    points: Points,
    values: Array,
    xlabel: str,
    ylabel: str,
    value_label: str,
    *,
    title: str = "",
    kind: str = "svg",
) -> bytes:
    """Points (x, y), f[N] each, coloured by their values f[N]; grey where there is none.

    Args:
      value_label: what the values are, with their unit.
      kind: "svg" or "png".
    """
    x, y, values = (np.asarray(part, np.float64) for part in (*points, values))
    known = np.isfinite(values)
    with matplotlib.rc_context(plots._STYLE):
        figure = Figure(figsize=(plots._WIDTH, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.scatter(x[~known], y[~known], s=24, color=plots.GREY, linewidths=0)
        order = np.flatnonzero(known)[np.argsort(values[known])]  # the best on top
        shown = axes.scatter(
            x[order], y[order], s=24, c=values[order], cmap="viridis", linewidths=0
        )
        figure.colorbar(shown, ax=axes, label=value_label)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        return plots._render(figure, kind)


def panels(
    groups: Mapping[str, Points],
    background: tuple[str, Points],
    xlabel: str,
    ylabel: str,
    *,
    columns: int = 3,
    title: str = "",
    kind: str = "svg",
) -> bytes:
    """Groups of points, each in a panel of its own, before the same background in grey.

    Args:
      groups: per name (x, y), f[N] each; at least one. All panels share their axes.
      background: what the grey points are, and their (x, y).
      columns: panels side by side.
      kind: "svg" or "png".
    """
    name, others = background
    rows = math.ceil(len(groups) / columns)
    with matplotlib.rc_context(plots._STYLE):
        size = (plots._WIDTH, 0.8 + 1.8 * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes in grid[len(groups) :]:
            axes.set_visible(False)
        for axes, (group, points) in zip(grid, groups.items(), strict=False):
            # as pixels: the same hundreds of points in every panel
            axes.scatter(*others, s=8, color="#c9c9c9", linewidths=0, rasterized=True)
            axes.scatter(*points, s=14, color=plots.BLUE, alpha=0.8, linewidths=0)
            axes.set_title(textwrap.fill(group, 20), fontsize=10)
            axes.tick_params(labelsize=9)
        for axes in grid[max(len(groups) - columns, 0) : len(groups)]:
            axes.tick_params(labelbottom=True)  # nothing below
        figure.supxlabel(f"{xlabel} (grey: {name})", fontsize=10)
        figure.supylabel(ylabel, fontsize=10)
        if title:
            figure.suptitle(title, fontsize=13)
        return plots._render(figure, kind)


def _dense(line: Points) -> Points:
    """Points all along a line."""
    x, y = (np.asarray(part, np.float64) for part in line)
    at = np.linspace(0, len(x) - 1, 20 * len(x))
    return np.interp(at, np.arange(len(x)), x), np.interp(at, np.arange(len(x)), y)


def _write_labels(figure: Figure, axes, labels: Mapping, avoided: list[Points]) -> None:
    """Names near their points, none over another; with a thin line to points farther away."""
    FigureCanvasAgg(figure).draw()  # lays the axes out, so that data have places in pixels
    figure.set_layout_engine("none")
    texts = [axes.text(0, 0, name, fontsize=9) for name in labels]
    extents = [text.get_window_extent() for text in texts]
    sizes = np.array([(extent.width, extent.height) for extent in extents])
    points = axes.transData.transform(np.array(list(labels.values()), np.float64))
    others = np.concatenate([np.stack(xy, axis=-1) for xy in avoided])
    others = axes.transData.transform(others[np.isfinite(others).all(axis=1)])
    dot = figure.dpi / 72  # pixels a point
    centres = label_places.place(
        points, sizes, axes.get_window_extent().extents, gap=3 * dot, obstacles=others
    )
    distances = np.maximum(np.abs(centres - points) - sizes / 2, 0).max(axis=1)
    for text, xy, centre, point, distance in zip(
        texts, labels.values(), centres, points, distances, strict=True
    ):
        arrow = {"arrowstyle": "-", "color": "#777777", "linewidth": 0.6, "shrinkB": 3}
        axes.annotate(
            text.get_text(), xy, (centre - point) / dot, textcoords="offset points",
            ha="center", va="center", fontsize=9, zorder=5,
            arrowprops=arrow if distance > 6 * dot else None,
        )  # fmt: skip
        text.remove()
