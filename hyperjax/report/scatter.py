"""Pictures of points, in the style of `hyperjax.report.plots`."""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter

from hyperjax.report import plots
from hyperjax.types import Array

Points = tuple[Array, Array]  # x and y, f[N] each


class Look(NamedTuple):
    """Of the points of a group."""

    color: str
    marker: str = "o"
    hollow: bool = False
    size: float = 30  # square points
    alpha: float = 0.85


class Label(NamedTuple):
    """A name beside a point."""

    text: str
    x: float
    y: float
    color: str = plots.BLACK


class Line(NamedTuple):
    """A line beneath the points, with a band around it where its ends are given."""

    x: Array  # f[K], as all others
    y: Array
    low: Array | None = None
    high: Array | None = None
    color: str = plots.GREY
    style: str = "-"


def scatter(
    groups: Mapping[str, Points],
    xlabel: str,
    ylabel: str,
    *,
    looks: Mapping[str, Look] | None = None,
    key: Mapping[str, Look] | None = None,
    labels: Sequence[Label] = (),
    lines: Mapping[str, Line] | None = None,
    guide: float | None = None,
    accuracy: bool = False,
    kind: str = "svg",
) -> bytes:
    """Points in groups, each of a colour and a marker.

    Args:
      groups: per name (x, y), f[N] each, any N. Points that are not finite are not drawn.
      looks: of groups; the others get a colour and a marker of their own.
      key: what the legend says of the groups, in place of their names.
      labels: names beside points; the picture grows with their number.
      lines: per name, in the order in which they are drawn.
      guide: where a dotted vertical line is.
      accuracy: y is an accuracy in percent, whose distance from 100 is shown on a logarithmic
        scale: good ones, which differ little, are told apart.
      kind: "svg" or "png".
    """
    lines = lines or {}
    styles = (Look(*style) for style in zip(itertools.cycle(plots.COLORS),
                                            itertools.cycle(plots.MARKERS)))  # fmt: skip
    looks = dict(zip(groups, styles, strict=False)) | dict(looks or {})
    key = looks if key is None else key
    labels = [label for label in labels if np.isfinite(label[1:3]).all()]
    with matplotlib.rc_context(plots.STYLE):
        rows = math.ceil((len(key) + len(lines)) / 3)
        height = 4.4 + 0.06 * min(max(len(labels) - 12, 0), 40) + 0.22 * rows
        figure = Figure(figsize=(plots.WIDTH, height), layout="constrained")
        axes = figure.subplots()
        if guide is not None:
            axes.axvline(guide, color=plots.GREY, linewidth=0.9, linestyle=":", zorder=1)
        for line in lines.values():
            if line.low is not None:
                ends = line.low, line.high
                axes.fill_between(line.x, *ends, color=line.color, alpha=0.16, linewidth=0)
            axes.plot(line.x, line.y, color=line.color, linestyle=line.style, zorder=2)
        for name, (x, y) in groups.items():
            axes.scatter(x, y, zorder=3, **_drawn(looks[name]))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if accuracy:
            _error_scale(axes)
        _legend(figure, key, lines)
        if labels:
            along = [_dense((line.x, line.y)) for line in lines.values()]
            _write_labels(figure, axes, labels, [*groups.values(), *along])
        return plots.render(figure, kind)


def _drawn(look: Look) -> dict:
    face, edge = ("white", 1.3) if look.hollow else (look.color, 0.4)
    line = {"facecolors": face, "edgecolors": look.color, "linewidths": edge}
    return line | {"marker": look.marker, "s": look.size, "alpha": look.alpha}


_ACCURACIES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 99.8)
_LEAST_ERROR = 0.1  # percent


def _error_scale(axes) -> None:
    """Equal heights for equal ratios of errors."""

    def height(accuracy):
        return -np.log10(np.maximum(100 - np.asarray(accuracy, np.float64), _LEAST_ERROR))

    if not np.isfinite(axes.dataLim.intervaly).all():
        return  # no points
    low, high = height(axes.dataLim.intervaly)
    margin = 0.04 * max(high - low, 0.1)
    axes.set_yscale("function", functions=(height, lambda y: 100 - 10.0 ** -np.asarray(y)))
    axes.set_ylim(*(100 - 10.0 ** -np.array([low - margin, high + margin])))
    ticks: list[float] = []
    for value in reversed(_ACCURACIES):
        at = height(value)
        if low - margin <= at <= high + margin and (
            not ticks or height(ticks[-1]) - at > 0.06 * (high - low)
        ):
            ticks.append(value)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _legend(figure: Figure, key: Mapping[str, Look], lines: Mapping[str, Line]) -> None:
    """Below the axes; nothing for one entry."""
    entries = [
        Line2D([], [], color=line.color, linestyle=line.style, label=name)
        for name, line in lines.items()
    ]
    for name, look in key.items():
        face = "white" if look.hollow else look.color
        entries.append(Line2D([], [], linestyle="", marker=look.marker, color=look.color,
                              markerfacecolor=face, markersize=math.sqrt(min(look.size, 80)),
                              alpha=look.alpha, label=name))  # fmt: skip
    if len(entries) > 1:
        widest = max(len(entry.get_label()) for entry in entries)
        figure.legend(
            handles=entries, loc="outside lower center", ncols=3 if widest < 24 else 2,
            fontsize=9.5, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip


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


def _write_labels(figure: Figure, axes, labels: Sequence[Label], avoided: list[Points]) -> None:
    """Names near their points, none over another; with a thin line to points farther away."""
    FigureCanvasAgg(figure).draw()  # lays the axes out, so that data have places in pixels
    figure.set_layout_engine("none")
    size = 9 if len(labels) <= 16 else 8
    texts = [axes.text(0, 0, label.text, fontsize=size) for label in labels]
    extents = [text.get_window_extent() for text in texts]
    sizes = np.array([(extent.width, extent.height) for extent in extents])
    points = axes.transData.transform(np.array([label[1:3] for label in labels], np.float64))
    others = np.concatenate([np.stack(xy, axis=-1) for xy in avoided])
    others = axes.transData.transform(others[np.isfinite(others).all(axis=1)])
    dot = figure.dpi / 72  # pixels a point
    centres = place_labels(
        points, sizes, axes.get_window_extent().extents, gap=5 * dot, obstacles=others
    )
    ends = np.clip(points, centres - sizes / 2, centres + sizes / 2)  # of the thin lines
    halo = [withStroke(linewidth=2, foreground="white", alpha=0.8)]
    for text, label, size_i, centre, point, end in zip(
        texts, labels, sizes, centres, points, ends, strict=True
    ):
        arrow = {"arrowstyle": "-", "color": label.color, "alpha": 0.6, "linewidth": 0.7,
                 "shrinkA": 0, "shrinkB": 3, "relpos": (end - centre) / size_i + 0.5}  # fmt: skip
        far = np.abs(end - point).max() > 7 * dot
        axes.annotate(
            label.text, (label.x, label.y), (centre - point) / dot, textcoords="offset points",
            ha="center", va="center", fontsize=size, zorder=5, color=label.color,
            path_effects=halo, arrowprops=arrow if far else None,
        )  # fmt: skip
        text.remove()


_DIRECTIONS = np.deg2rad(np.arange(0, 360, 22.5))
# from point to name, in units of `gap`
_RADII = (1.0, 1.8, 2.8, 4.0, 5.5, 7.0, 9.0, 11.0, 14.0, 18.0, 23.0)
_SWEEPS = 6  # in which every name may move again
# what a place costs, in units of `gap` of distance between point and name
_TOUCHES, _COVERS, _CROSSES, _PASSES, _MISLEADS = 1000, 100, 8, 4, 5


def place_labels(points: Array, sizes: Array, box: tuple[float, float, float, float], *, gap: float,
          obstacles: Array = ()) -> np.ndarray:  # fmt: skip
    """Centres f64[N, 2] of names of widths and heights `sizes` f[N, 2] near `points` f[N, 2].

    Greedy: the most crowded points choose first, each the best place that the others leave; then
    all choose again, a few times. The best place covers no name and no point, is near, its line to
    the point crosses nothing, and no other point is as near to it.

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
    order = np.argsort(np.sort(spacing, axis=1)[:, :3].sum(axis=1), kind="stable")
    choices = [_choices(*both, gap) for both in zip(points, sizes, strict=True)]
    alone = [_alone(i, choices[i], sizes[i], points, avoided, box, gap) for i in range(len(points))]
    centres, placed = np.zeros_like(points), np.zeros(len(points), bool)
    for sweep in range(1 + _SWEEPS):
        before = centres.copy()
        for i in order:
            placed[i] = False
            cost = alone[i] + _among(i, choices[i], points, sizes, centres, placed, gap)
            centres[i] = choices[i][np.argmin(np.round(cost, 6))]  # they come nearest first
            placed[i] = True
        if sweep and np.array_equal(before, centres):
            break
    return centres


def _alone(i: int, choices: np.ndarray, size: np.ndarray, points: np.ndarray, avoided: np.ndarray,
           box: tuple[float, float, float, float], gap: float) -> np.ndarray:  # fmt: skip
    """What each of the choices [C, 2] costs, whatever the other names do."""
    boxes = np.concatenate([choices - size / 2, choices + size / 2], axis=1)
    others = np.delete(points, i, axis=0)
    ends = np.clip(points[i], boxes[:, :2], boxes[:, 2:])
    far = np.linalg.norm(ends - points[i], axis=1)
    near = np.clip(others, boxes[:, None, :2], boxes[:, None, 2:])  # [C, others, 2]
    misleads = np.linalg.norm(near - others, axis=2) < np.maximum(far, gap)[:, None]
    passed = _from_lines(others, points[i], ends) < gap / 2
    cost = far / gap + _outside(boxes, box) * _TOUCHES + _covered(boxes, avoided, gap / 2) * _COVERS
    return cost + misleads.sum(axis=1) * _MISLEADS + passed.sum(axis=1) * _PASSES


def _among(i: int, choices: np.ndarray, points: np.ndarray, sizes: np.ndarray,
           centres: np.ndarray, placed: np.ndarray, gap: float) -> np.ndarray:  # fmt: skip
    """What each of the choices [C, 2] costs beside the names that are placed."""
    boxes = np.concatenate([choices - sizes[i] / 2, choices + sizes[i] / 2], axis=1)
    starts, half = points[placed], sizes[placed] / 2
    others = np.concatenate([centres[placed] - half, centres[placed] + half], axis=1)
    ends = np.clip(points[i], boxes[:, :2], boxes[:, 2:])
    other_ends = np.clip(starts, others[:, :2], others[:, 2:])
    crossed = _cross(points[i], ends[:, None], starts, other_ends).sum(axis=1)
    crossed += _through(points[i], ends, others).sum(axis=1)
    crossed += _through(starts, other_ends, boxes).sum(axis=0)
    return _overlap(boxes, others, gap).sum(axis=1) * _TOUCHES + crossed * _CROSSES


def _from_lines(points: np.ndarray, start: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Distances [C, P] of points [P, 2] from lines between a start [2] and ends [C, 2]."""
    along = (ends - start)[:, None]
    squares = np.maximum((along**2).sum(axis=2), 1e-12)
    part = np.clip(((points - start) * along).sum(axis=2) / squares, 0, 1)
    return np.linalg.norm(start + part[:, :, None] * along - points, axis=2)


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Whether lines from a to b and from c to d cross; points [..., 2]."""

    def side(p, q, r):
        (px, py), (qx, qy), (rx, ry) = (np.moveaxis(x, -1, 0) for x in (p, q, r))
        return (qx - px) * (ry - py) - (qy - py) * (rx - px)

    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)


def _through(starts: np.ndarray, ends: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether lines between starts and ends [L, 2] go through boxes [C, 4], [L, C]."""
    parts = np.linspace(0, 1, 16)[:, None, None]
    at = (starts + parts * (ends - starts))[:, :, None]  # [parts, L, 1, 2]
    return ((at > boxes[:, :2]) & (at < boxes[:, 2:])).all(axis=3).any(axis=0)


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
