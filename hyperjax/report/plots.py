"""Pictures of a report, as SVG or PNG bytes.

Each function draws on a figure of its own; nothing is shown and no global state is kept.
The pictures are sized to stay readable at a width of 400 to 800 pixels, on a white ground.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hyperjax.errors import unknown
from hyperjax.types import Array

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is too pale for lines.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, AMBER, BLACK, GREY = "#56b4e9", "#e69f00", "#222222", "#8a8a8a"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ("-", "--", "-.", ":")

WIDTH = 5.6  # inches
_BINS = 60  # of a histogram; the outermost 0.1 % of weights are not shown
_PEAK = 2.5  # a histogram higher than this many times the original's is cut off
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "figure.facecolor": "white",
    "legend.frameon": False,
    "svg.hashsalt": "hyperjax",  # the same picture gives the same bytes
    "svg.fonttype": "path",  # looks alike where the font is missing
}

Panel = tuple[Array, Array, float]  # original weights, reconstructed weights, R^2
Series = tuple[Array, Array, Array, Array]  # x, mean, and the ends of a band, f[K] each


def weight_histograms(columns: Mapping[str, Mapping[str, Panel]], *, kind: str = "svg") -> bytes:
    """Distribution of weights, original against reconstructed (paper figure 2).

    Args:
      columns: per column title ("with LWLN"), per layer: original weights f[...],
        reconstructed weights f[...] and R^2. Every column has the same layers; one row each.
      kind: "svg" or "png".

    A row shares its axes. A reconstruction that collapses to a peak is cut off, and says so.
    """
    layers = list(next(iter(columns.values())))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 1.3 * len(layers)), layout="constrained")
        grid = figure.subplots(len(layers), len(columns), squeeze=False)
        any_cut = False
        for row, layer in zip(grid, layers, strict=True):
            any_cut |= _histogram_row(row, [column[layer] for column in columns.values()])
            row[0].set_ylabel(layer)
        for axes, name in zip(grid[0], columns, strict=True):
            axes.set_title(name)
        for axes in grid[-1]:
            axes.set_xlabel("weight")
        legend = figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2
        )
        if any_cut:
            note = "peak n\N{MULTIPLICATION SIGN}: cut off, n times as high as the original"
            legend.set_title(note, prop={"size": 9})
        return render(figure, kind)


def population_boxes(
    populations: Mapping[str, Array],
    label: str,
    *,
    highlights: Collection[str] = (),
    kind: str = "svg",
) -> bytes:
    """Horizontal boxes and all points, one row per population, top to bottom as given.

    Args:
      populations: values f[N] of each, any N. Those that are not finite are left out.
      label: what the values are, with their unit ("test accuracy (%)").
      highlights: populations drawn in a second colour.
      kind: "svg" or "png".

    A box spans the quartiles, its whiskers 5 to 95 %; line: median, diamond: mean.
    """
    values = [np.asarray(v, np.float64).ravel() for v in populations.values()]
    values = [v[np.isfinite(v)] for v in values]
    rng = np.random.default_rng(0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.4 * len(values)), layout="constrained")
        axes = figure.subplots()
        for row, (name, points) in enumerate(zip(populations, values, strict=True)):
            _box(axes, row, points, ORANGE if name in highlights else BLUE, rng)
        axes.set_yticks(range(len(values)), [textwrap.fill(name, 26) for name in populations])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        note = "box: quartiles, whiskers: 5 to 95 %, line: median, diamond: mean"
        figure.supxlabel(note, fontsize=9, color="#555555")
        return render(figure, kind)


def curves(
    series: Mapping[str, Series],
    xlabel: str,
    ylabel: str,
    *,
    dashed: Collection[str] = (),
    linear_below: float = 0,
    ticks: Sequence[float] = (),
    kind: str = "svg",
) -> bytes:
    """Lines with bands.

    Args:
      series: per name (x, mean, low, high), each f[K]. NaN leaves a gap; a band that is
        wholly NaN is not drawn.
      dashed: names of series that are baselines.
      linear_below: if positive, x is logarithmic from there on, and linear between it and 0.
      ticks: of x, with their numbers; empty: chosen.
      kind: "svg" or "png".
    """
    longest = max(map(len, series), default=0)
    names_per_row = 3 if longest <= 14 else 2 if longest <= 28 else 1
    legend_rows = math.ceil(len(series) / names_per_row)
    styles = zip(itertools.cycle(COLORS), itertools.cycle(MARKERS), strict=False)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.5 + 0.24 * legend_rows), layout="constrained")
        axes = figure.subplots()
        for index, ((name, data), (color, marker)) in enumerate(
            zip(series.items(), styles, strict=False)
        ):
            x, mean, low, high = (np.asarray(part, np.float64) for part in data)
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(
                x,
                mean,
                color=color,
                linestyle="--" if name in dashed else _DASHES[index // len(COLORS) % len(_DASHES)],
                linewidth=1.8,
                marker=marker,
                markersize=5,
                markevery=max(1, len(x) // 12),
                label=name,
            )
        if linear_below:
            axes.set_xscale("symlog", linthresh=linear_below)
        if len(ticks):
            axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if series:
            figure.legend(loc="outside lower center", ncols=names_per_row)
        return render(figure, kind)


def predictions(
    groups: Mapping[str, tuple[Array, Array]], true: str, predicted: str, *, kind: str = "svg"
) -> bytes:
    """Predicted against true values, each group in a colour, with the line where they agree.

    Args:
      groups: per name true and predicted values, f[N] each.
      true: what the values are, with their unit; `predicted` likewise.
      kind: "svg" or "png".
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
        axes = figure.subplots()
        for (name, (x, y)), color in zip(groups.items(), itertools.cycle(COLORS), strict=False):
            axes.scatter(x, y, s=12, color=color, alpha=0.5, linewidths=0, label=name)
        middle = float(np.mean(np.concatenate([np.ravel(x) for x, _ in groups.values()])))
        axes.axline((middle, middle), slope=1, color=BLACK, linewidth=1, linestyle=":", zorder=1)
        axes.set_xlabel(true)
        axes.set_ylabel(predicted)
        figure.legend(loc="outside lower center", ncols=min(len(groups), 3), markerscale=2)
        return render(figure, kind)


def _histogram_row(row: Sequence, panels: Sequence[Panel]) -> bool:
    """One layer: a panel per column, with shared axes. Tells whether a peak was cut off."""
    weights = [[_finite(part) for part in panel[:2]] for panel in panels]
    everything = np.concatenate([part for pair in weights for part in pair])
    low, high = np.quantile(everything, [0.001, 0.999]) if len(everything) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    heights = [[_density(part, edges) for part in pair] for pair in weights]
    limit = _PEAK * max(float(original.max()) for original, _ in heights) or 1.0
    top = min(limit, max(float(part.max()) for pair in heights for part in pair) or 1.0)
    any_cut = False
    for axes, (original, reconstructed), panel in zip(row, heights, panels, strict=True):
        text = {"transform": axes.transAxes, "va": "top", "fontsize": 10}
        axes.stairs(original, edges, fill=True, color=SKY, alpha=0.6, label="original")
        axes.stairs(reconstructed, edges, color=ORANGE, linewidth=1.6, label="reconstructed")
        axes.set(xlim=(low, high), ylim=(0, 1.1 * top), yticks=[])
        axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
        r_squared = f"R² = {panel[2]:.2f}".replace("-", "\N{MINUS SIGN}")
        axes.text(0.98, 0.95, r_squared, ha="right", **text)
        if cut := reconstructed.max() > 1.1 * top:
            height = reconstructed.max() / original.max()
            axes.text(0.03, 0.95, f"peak {height:.0f}\N{MULTIPLICATION SIGN}", ha="left", **text)
        any_cut |= cut
    return any_cut


def _density(weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of the weights per unit of weight."""
    counts = np.histogram(weights, edges)[0]
    return counts / max(len(weights), 1) / (edges[1] - edges[0])


def _finite(weights: Array) -> np.ndarray:
    weights = np.asarray(weights, np.float64).ravel()
    return weights[np.isfinite(weights)]


def _box(axes, row: int, points: np.ndarray, color: str, rng: np.random.Generator) -> None:
    if len(points) == 0:
        axes.annotate(
            "no finite values",
            (0.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            color=GREY,
            style="italic",
        )
        return
    heights = row + rng.uniform(-0.24, 0.24, len(points))
    axes.scatter(points, heights, s=9, color=color, alpha=0.35, linewidths=0, zorder=2)
    axes.boxplot(
        points,
        positions=[row],
        orientation="horizontal",
        widths=0.56,
        whis=(5, 95),
        showfliers=False,
        manage_ticks=False,
        boxprops={"color": color, "linewidth": 1.4},
        whiskerprops={"color": color, "linewidth": 1.4},
        capprops={"color": color, "linewidth": 1.4},
        medianprops={"color": BLACK, "linewidth": 2},
        zorder=3,
    )
    axes.plot(points.mean(), row, "D", color="white", markeredgecolor=BLACK, markersize=5, zorder=4)


def render(figure: Figure, kind: str) -> bytes:
    if kind not in ("svg", "png"):
        raise unknown("kind of picture", kind, ("svg", "png"))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # no date: the same picture gives the same bytes
    figure.savefig(buffer, format=kind, dpi=180, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
