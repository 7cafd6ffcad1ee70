"""Pictures of points and the places of their names."""

import io
import itertools
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hyperjax.report import scatter
from hyperjax.report.scatter import Label, Line, Look

RNG = np.random.default_rng(0)
BOX = (0.0, 0.0, 300.0, 200.0)


def xy(count, shift=0.0):
    return RNG.normal(shift, 1, count), RNG.normal(shift, 1, count)


CALLS = {
    "scatter": lambda **kw: scatter.scatter(
        {"a": xy(5), "b": xy(3)}, "x", "y",
        labels=[Label("first", 0, 0, "red"), Label("lost", np.nan, 1)], guide=0.5,
        lines={"edge": Line([0, 1], [1, 0]), "other": Line([0, 1], [2, 1], [1, 0], [3, 2])}, **kw,
    ),
    "by_value": lambda **kw: scatter.by_value(xy(6), np.r_[np.arange(5), np.nan], "x", "y", "%",
                                              **kw),
    "panels": lambda **kw: scatter.panels({f"g{i}": xy(4) for i in range(5)}, ("rest", xy(9)),
                                          "x", "y", **kw),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_pictures_open_and_leave_nothing_behind(name):
    before = dict(matplotlib.rcParams)
    root = ElementTree.fromstring(CALLS[name]())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    links = [value for node in root.iter() for key, value in node.items() if "href" in key]
    assert all(link.startswith(("#", "data:")) for link in links)
    image = Image.open(io.BytesIO(CALLS[name](kind="png")))
    assert abs(image.width - 1008) <= 2
    assert dict(matplotlib.rcParams) == before


def test_same_data_same_bytes():
    groups = {"a": xy(9)}
    pictures = [scatter.scatter(groups, "x", "y", labels=[Label("p", 0.1, 0.2)]) for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_groups_are_drawn_where_they_are(as_figure):
    groups = {f"g{i}": xy(4, i) for i in range(9)}
    axes = scatter.scatter(groups, "x", "y").axes[0]
    looks = set()
    for points, (x, y) in zip(axes.collections, groups.values(), strict=True):
        np.testing.assert_array_equal(points.get_offsets(), np.stack([x, y], axis=1))
        looks.add((tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes()))
    assert len(looks) == 9


def test_looks_and_what_the_legend_says_of_them(as_figure):
    groups = {"a": xy(3), "b": xy(2), "c": xy(1)}
    looks = {"a": Look("red", "s"), "b": Look("red", "s", hollow=True, size=99)}
    figure = scatter.scatter(groups, "x", "y", looks=looks, key={"squares": looks["a"]},
                             lines={"edge": Line([0, 1], [1, 0])})  # fmt: skip
    full, hollow, own = figure.axes[0].collections
    red = matplotlib.colors.to_rgb("red")
    for points in (full, hollow):
        assert tuple(points.get_edgecolor()[0][:3]) == red
    assert tuple(full.get_facecolor()[0][:3]) == red
    assert tuple(hollow.get_facecolor()[0][:3]) == (1, 1, 1)
    assert hollow.get_sizes() == [99]
    assert tuple(own.get_facecolor()[0][:3]) != red
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["edge", "squares"]
    assert not scatter.scatter({"a": xy(3)}, "x", "y").legends


def test_lines_with_bands_lie_below_the_points(as_figure):
    lines = {"one": Line([0, 1, 2], [5, 4, 3], [4, 3, 2], [7, 5, 4], "red", "--"),
             "two": Line([0, 1], [1, 0])}  # fmt: skip
    axes = scatter.scatter({"a": xy(3)}, "x", "y", lines=lines, guide=1.5).axes[0]
    band, points = axes.collections
    edge = band.get_paths()[0].vertices
    assert {tuple(v) for v in edge} == {(0, 4), (1, 3), (2, 2), (0, 7), (1, 5), (2, 4)}
    guide, one, two = axes.lines
    assert list(guide.get_xdata()) == [1.5, 1.5]
    np.testing.assert_array_equal(one.get_xydata(), [[0, 5], [1, 4], [2, 3]])
    assert (one.get_color(), one.get_linestyle()) == ("red", "--")
    np.testing.assert_array_equal(two.get_xydata(), [[0, 1], [1, 0]])
    assert max(band.get_zorder(), one.get_zorder()) < points.get_zorder()


@pytest.mark.parametrize("y", [[10.0, 60, 96.5], [99.2, 99.9, 100], [30, 31], [50.0]])
def test_errors_on_a_logarithmic_scale(as_figure, y):
    """Equal ratios of errors are equally far apart, and ticks have room."""
    figure = scatter.scatter({"a": (np.arange(len(y)), y)}, "x", "y", accuracy=True)
    axes = figure.axes[0]
    bottom, top = axes.get_ylim()
    assert bottom < min(y)
    assert max(y) < 100 or top > 99.9
    wanted = [100 - 8e-1 * f for f in (4, 2, 1)] if min(y) > 90 else [20, 60, 80]
    heights = axes.transData.transform([(0, value) for value in wanted])[:, 1]
    np.testing.assert_allclose(*np.diff(heights), rtol=1e-6)
    assert heights[0] < heights[1]
    ticks = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(not a.overlaps(b) for a, b in itertools.combinations(ticks, 2))
    assert all(bottom <= tick <= top for tick in axes.get_yticks())


def test_an_accuracy_of_nothing():
    nothing = {"a": ([np.nan], [np.nan])}
    assert scatter.scatter(nothing, "x", "y", labels=[Label("a", 1, np.nan)], accuracy=True)


def test_names_stand_beside_their_points_and_apart(as_figure):
    """Twenty names, most of them of points in one corner."""
    points = {f"sampler_{i}": (0.05 * (i % 4), 1 - 0.02 * i) for i in range(16)}
    points |= {f"other_{i}": (0.3 * i, 0.3 * i) for i in range(4)}
    x, y = np.array(list(points.values())).T
    labels = [Label(name, *at) for name, at in points.items()]
    figure = scatter.scatter({"all": (x, y)}, "x", "y", labels=labels)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == list(points)
    assert [text.xy for text in axes.texts] == list(points.values())
    # without their thin lines, which may cross
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 - 1 <= b.x0 and b.x1 <= frame.x1 + 1 for b in boxes)


def test_values_get_colours_in_their_order(as_figure):
    values = np.array([3.0, np.nan, 1.0, 2.0])
    axes, bar = scatter.by_value((np.arange(4.0), np.zeros(4)), values, "x", "y", "acc").axes
    unknown, known = axes.collections
    np.testing.assert_array_equal(unknown.get_offsets()[:, 0], [1])
    np.testing.assert_array_equal(known.get_offsets()[:, 0], [2, 3, 0])  # rising values
    np.testing.assert_array_equal(known.get_array(), [1, 2, 3])
    assert bar.get_ylabel() == "acc"


def test_panels_share_axes_and_background(as_figure):
    groups, rest = {f"g{i}": xy(4, i) for i in range(5)}, xy(7)
    figure = scatter.panels(groups, ("rest", rest), "x", "y", columns=3)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == list(groups)
    assert len({axes.get_xlim() for axes in shown}) == 1
    for axes, (x, _) in zip(shown, groups.values(), strict=True):
        behind, points = axes.collections
        np.testing.assert_array_equal(behind.get_offsets()[:, 0], rest[0])
        np.testing.assert_array_equal(points.get_offsets()[:, 0], x)
    with_numbers = [axes.xaxis.get_tick_params()["labelbottom"] for axes in shown]
    assert with_numbers == [False, False, True, True, True]


# --- the places of names ----------------------------------------------------------------


def boxes(centres, sizes):
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_places_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.uniform(100, 160, (8, 2)), rng.uniform(10, 190, (8, 2))])
    sizes = np.stack([rng.uniform(20, 50, 16), np.full(16, 8.0)], axis=1)
    placed = boxes(scatter.place_labels(points, sizes, BOX, gap=3), sizes)
    for a, b in itertools.combinations(placed, 2):
        assert np.any((a[2:] <= b[:2]) | (b[2:] <= a[:2]))
    assert np.all(placed[:, :2] >= BOX[:2])
    assert np.all(placed[:, 2:] <= BOX[2:])
    covered = (points[None] > placed[:, None, :2]) & (points[None] < placed[:, None, 2:])
    assert not covered.all(axis=2).any()


def test_a_lonely_name_stands_next_to_its_point():
    size = np.array([[40.0, 8.0]])
    (centre,) = scatter.place_labels([[100, 100]], size, BOX, gap=3)
    gaps = np.abs(centre - [100, 100]) - size[0] / 2
    assert 0 < gaps.max() <= 3 + 1e-9


def test_a_name_avoids_obstacles():
    wall = np.stack([np.full(50, 110.0), np.linspace(60, 140, 50)], axis=1)
    (centre,) = scatter.place_labels([[100, 100]], [[40, 8]], BOX, gap=3, obstacles=wall)
    assert not centre[0] - 20 < 110 < centre[0] + 20


def test_no_other_point_is_nearer_to_a_name():
    """Where there is room."""
    points = np.array([[100.0, 100], [100, 110], [108, 105], [170, 50], [170, 56]])
    sizes = np.tile([40.0, 8.0], (5, 1))
    placed = boxes(scatter.place_labels(points, sizes, BOX, gap=3), sizes)
    near = np.clip(points, placed[:, None, :2], placed[:, None, 2:])
    assert list(np.linalg.norm(near - points, axis=2).argmin(axis=1)) == list(range(5))


def test_lines_from_names_to_points_do_not_cross():
    points = np.random.default_rng(3).uniform(140, 160, (10, 2))
    sizes = np.tile([50.0, 8.0], (10, 1))
    centres = scatter.place_labels(points, sizes, BOX, gap=3)
    ends = np.clip(points, centres - sizes / 2, centres + sizes / 2)
    assert np.linalg.norm(ends - points, axis=1).max() > 10  # there are such lines
    crossed = scatter._cross(points[:, None], ends[:, None], points, ends)
    assert not crossed.any()


def test_distances_from_lines_and_crossings():
    start, ends = np.array([0.0, 0]), np.array([[10.0, 0], [0, 0]])
    found = scatter._from_lines(np.array([[5.0, 2], [13, 4], [-3, 4]]), start, ends)
    np.testing.assert_allclose(found, [[2, 5, 5], [np.hypot(5, 2), np.hypot(13, 4), 5]])
    a, b = np.array([0.0, 0]), np.array([10.0, 10])
    assert scatter._cross(a, b, np.array([0.0, 10]), np.array([10.0, 0]))
    assert not scatter._cross(a, b, np.array([0.0, 10]), np.array([4.0, 6]))
    through = scatter._through(a[None], b[None], np.array([[4.0, 4, 6, 6], [0, 5, 3, 9]]))
    assert through.tolist() == [[True, False]]
