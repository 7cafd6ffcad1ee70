import io
import itertools
from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from hyperjax.errors import HyperJaxError
from hyperjax.report import plots

RNG = np.random.default_rng(0)
LAYERS = ("conv1", "fc1")


def histogram_columns():
    weights = RNG.normal(size=(2, 4, 50))
    close = {name: (w, w + 0.1, 0.9) for name, w in zip(LAYERS, weights, strict=True)}
    collapsed = {name: (w, 0 * w, -0.25) for name, w in zip(LAYERS, weights, strict=True)}
    return {"with LWLN": close, "without LWLN": collapsed}


def curve(level):
    x = np.arange(4.0)
    return x, x + level, x + level - 1, x + level + 1


CALLS = {
    "histograms": lambda **kw: plots.weight_histograms(histogram_columns(), **kw),
    "boxes": lambda **kw: plots.population_boxes(
        {"B_T": [1.0, 2.0, 4.0], "S_U": [0.0], "lost": [np.nan], "same": [5.0, 5.0]}, "%", **kw
    ),
    "curves": lambda **kw: plots.curves({"a": curve(0), "b": curve(3)}, "epoch", "accuracy", **kw),
}


@pytest.mark.parametrize("name", CALLS)
def test_pictures_open_and_leave_nothing_behind(name):
    before = dict(matplotlib.rcParams)
    svg = CALLS[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    links = [value for node in root.iter() for key, value in node.items() if "href" in key]
    assert all(link.startswith(("#", "data:")) for link in links)
    image = Image.open(io.BytesIO(CALLS[name](kind="png"))).convert("RGB")
    assert abs(image.width - 1008) <= 2
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert len(image.getcolors(2**20)) > 20
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_same_data_same_bytes():
    data = {"a": RNG.normal(size=30), "b": RNG.normal(size=30)}
    assert plots.population_boxes(data, "x") == plots.population_boxes(data, "x")
    assert plots.curves({"a": curve(0)}, "x", "y") == plots.curves({"a": curve(0)}, "x", "y")


def test_unknown_kind():
    with pytest.raises(HyperJaxError, match="unknown kind of picture 'gif'; there is: png, svg"):
        CALLS["curves"](kind="gif")


def test_density_integrates_to_the_share_within():
    weights, edges = RNG.normal(size=1000), np.linspace(-1, 1, 21)
    inside = weights[np.abs(weights) < 1]
    expected = np.histogram(inside, edges, density=True)[0] * len(inside) / 1000
    np.testing.assert_allclose(plots._density(weights, edges), expected)


def test_histogram_grid(as_figure):
    figure = plots.weight_histograms(histogram_columns())
    grid = np.reshape(figure.axes, (2, 2))
    assert [axes.get_ylabel() for axes in grid[:, 0]] == list(LAYERS)
    assert [axes.get_title() for axes in grid[0]] == ["with LWLN", "without LWLN"]
    for row in grid:
        assert row[0].get_xlim() == row[1].get_xlim()
        assert row[0].get_ylim() == row[1].get_ylim()
    assert [text.get_text() for text in grid[0, 0].texts] == ["R² = 0.90"]
    # the collapsed weights all fall into one of the ten bins
    original = grid[0, 1].patches[0].get_data()
    ratio = 1 / np.diff(original.edges)[0] / original.values.max()
    assert [text.get_text() for text in grid[0, 1].texts] == [
        "R² = \N{MINUS SIGN}0.25",
        f"peak {ratio:.0f}\N{MULTIPLICATION SIGN}",
    ]
    assert "cut off" in figure.legends[0].get_title().get_text()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["original", "reconstructed"]


@pytest.mark.parametrize("scale", [3e-5, 2e-3, 1.0, 700.0])
def test_ticks_of_histograms_do_not_touch(as_figure, scale):
    weights = scale * RNG.normal(0.5, 1, 500)
    figure = plots.weight_histograms(
        {"a": {"fc": (weights, weights, 1.0)}} | {"b": {"fc": (weights, -weights, -1.0)}}
    )
    extents = [
        label.get_window_extent()
        for axes in figure.axes
        for label in axes.get_xticklabels()
        if axes.get_window_extent().x0 <= label.get_window_extent().x1
        and label.get_window_extent().x0 <= axes.get_window_extent().x1
    ]
    assert len(extents) >= 4
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(extents))


@pytest.mark.parametrize("weights", [np.zeros(5), np.full(3, np.nan), np.zeros(0)])
def test_histograms_of_odd_weights(weights):
    assert plots.weight_histograms({"only": {"fc": (weights, weights, np.nan)}})


def test_boxes_are_in_order_and_readable(as_figure):
    names = [f"population {i} of some length, fine-tuned" for i in range(15)]
    populations = {name: RNG.normal(i, 1, 20) for i, name in enumerate(names)}
    figure = plots.population_boxes(populations, "accuracy (%)", highlights=names[3:4])
    axes = figure.axes[0]
    labels = axes.get_yticklabels()
    assert [label.get_text().replace("\n", " ") for label in labels] == names
    extents = [label.get_window_extent() for label in labels]
    assert all(a.y0 >= b.y1 for a, b in itertools.pairwise(extents))  # top down, no overlap
    colors = [matplotlib.colors.to_hex(points.get_facecolor()[0]) for points in axes.collections]
    assert [i for i, color in enumerate(colors) if color != colors[0]] == [3]
    for row, (points, values) in enumerate(
        zip(axes.collections, populations.values(), strict=True)
    ):
        x, y = np.asarray(points.get_offsets()).T
        np.testing.assert_array_equal(x, values)
        assert np.abs(y - row).max() < 0.5


def test_population_without_values_keeps_its_row(as_figure):
    axes = plots.population_boxes({"a": [np.nan], "b": [1.0, np.inf, 3.0]}, "x").axes[0]
    assert [text.get_text() for text in axes.texts] == ["no finite values"]
    np.testing.assert_array_equal(axes.collections[0].get_offsets()[:, 0], [1.0, 3.0])


def test_curves_are_told_apart(as_figure):
    series = {f"sampler_{i}": curve(i) for i in range(20)}
    figure = plots.curves(series, "epoch", "accuracy (%)")
    axes = figure.axes[0]
    styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == 20
    np.testing.assert_array_equal(axes.lines[3].get_ydata(), curve(3)[1])
    band = axes.collections[3].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (2.0, 7.0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(series)
    legend, plot = figure.legends[0].get_window_extent(), axes.get_tightbbox()
    assert legend.y1 <= plot.y0
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def test_curves_without_band_or_series():
    x, mean, *_ = curve(0)
    gap = np.full(4, np.nan)
    assert plots.curves({"a": (x, mean, gap, gap)}, "x", "y")
    assert plots.curves({}, "x", "y")
