"""Pictures of points, in the style of `hyperjax.report.plots`."""

import itertools
import math
import textwrap
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    with matplotlib.rc_context(plots.STYLE):
        height = 4.4 + 0.24 * math.ceil(entries / 3)
        figure = Figure(figsize=(plots.WIDTH, height), layout="constrained")
        axes = figure.subplots()
        if line:
            axes.plot(*line[1], color=plots.GREY, linewidth=1.5, zorder=1, label=line[0])
        styles = zip(itertools.cycle(plots.COLORS), itertools.cycle(plots.MARKERS), strict=False)
        for (name, (x, y)), (color, marker) in zip(groups.items(), styles, strict=False):
            axes.scatter(
                x, y, s=30, color=color, marker=marker, alpha=0.8, linewidths=0, label=name
            )
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if entries > 1:
            figure.legend(loc="outside lower center", ncols=3, fontsize=10)
        finite = {name: xy for name, xy in (labels or {}).items() if np.isfinite(xy).all()}
        if finite:
            avoided = [*groups.values(), *([_dense(line[1])] if line else [])]
            _write_labels(figure, axes, finite, avoided)
        return plots.render(figure, kind)


def by_value(
    points: Points,
    values: Array,
    xlabel: str,
    ylabel: str,
    value_label: str,
    *,
    kind: str = "svg",
) -> bytes:
    """Points (x, y), f[N] each, coloured by their values f[N]; grey where there is none.

    Args:
      value_label: what the values are, with their unit.
      kind: "svg" or "png".
    """
    x, y, values = (np.asarray(part, np.float64) for part in (*points, values))
    known = np.isfinite(values)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.scatter(x[~known], y[~known], s=24, color=plots.GREY, linewidths=0)
        order = np.flatnonzero(known)[np.argsort(values[known])]  # the best on top
        shown = axes.scatter(
            x[order], y[order], s=24, c=values[order], cmap="viridis", linewidths=0
        )
        figure.colorbar(shown, ax=axes, label=value_label)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return plots.render(figure, kind)


def panels(
    groups: Mapping[str, Points],
    background: tuple[str, Points],
    xlabel: str,
    ylabel: str,
    *,
    columns: int = 3,
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
    with matplotlib.rc_context(plots.STYLE):
        size = (plots.WIDTH, 0.8 + 1.8 * rows)
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
        return plots.render(figure, kind)


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
    centres = place_labels(
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


_DIRECTIONS = np.deg2rad(np.arange(0, 360, 22.5))
# from point to name, in units of `gap`
_RADII = (1.0, 2.5, 4.0, 6.0, 8.0, 11.0, 14.0, 18.0, 23.0, 29.0)


def place_labels(points: Array, sizes: Array, box: tuple[float, float, float, float], *, gap: float,
          obstacles: Array = ()) -> np.ndarray:  # fmt: skip
    """Centres f64[N, 2] of names of widths and heights `sizes` f[N, 2] near `points` f[N, 2].

    Greedy: the most crowded points choose first, each the free place nearest to it. Where none is
    free, the place that covers least.

    Args:
      box: left, bottom, right and top, which names must not cross.
      gap: least distance between a point and its name, and between names.
      obstacles: more points f[K, 2] that names should not cover.
    """
    points, sizes = np.asarray(points, np.float64), np.asarray(sizes, np.float64)
    avoided = np.concatenate([points, np.reshape(np.asarray(obstacles, np.float64), (-1, 2))])
    spacing = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(
        [np.inf] * len(points)
    )
    centres, placed = np.zeros_like(points), np.zeros((0, 4))
    for i in np.argsort(np.sort(spacing, axis=1)[:, :3].sum(axis=1), kind="stable"):
        choices = _choices(points[i], sizes[i], gap)
        boxes = np.concatenate([choices - sizes[i] / 2, choices + sizes[i] / 2], axis=1)
        # a name over a name is worse than a name over points
        cost = _outside(boxes, box) * 100 + _overlap(boxes, placed, gap).sum(axis=1) * 100
        cost += _covered(boxes, avoided, gap / 2) * sizes[i].prod()
        best = np.argmin(np.round(cost, 6))  # choices come nearest first
        centres[i] = choices[best]
        placed = np.concatenate([placed, boxes[best : best + 1]])
    return centres


def _choices(point: np.ndarray, size: np.ndarray, gap: float) -> np.ndarray:
    """Centres around a point, nearest first; at radius r the name's box is r gaps away."""
    direction = np.stack([np.cos(_DIRECTIONS), np.sin(_DIRECTIONS)], axis=1)
    side = np.clip(direction * 1.6, -1, 1) * size / 2
    return np.concatenate([point + side + gap * radius * direction for radius in _RADII])


def _overlap(boxes: np.ndarray, others: np.ndarray, gap: float) -> np.ndarray:
    """Area that each pair of boxes [C, 4] and [K, 4], `gap` apart at least, shares, [C, K]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2] - gap / 2)
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:] + gap / 2)
    return np.prod(np.maximum(high - low, 0), axis=2)


def _outside(boxes: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """How far each of the boxes [C, 4] sticks out, times its size, [C]."""
    low = np.maximum(np.asarray(box[:2]) - boxes[:, :2], 0).sum(axis=1)
    high = np.maximum(boxes[:, 2:] - np.asarray(box[2:]), 0).sum(axis=1)
    return (low + high) * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)


def _covered(boxes: np.ndarray, points: np.ndarray, gap: float) -> np.ndarray:
    """Number of points [P, 2] in or near each of the boxes [C, 4]."""
    inside = (points[None] > boxes[:, None, :2] - gap) & (points[None] < boxes[:, None, 2:] + gap)
    return inside.all(axis=2).sum(axis=1)
