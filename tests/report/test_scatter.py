"""Pictures of points and the places of their names."""

import io
import itertools
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hyperjax.report import scatter

RNG = np.random.default_rng(0)
BOX = (0.0, 0.0, 300.0, 200.0)


def xy(count, shift=0.0):
    return RNG.normal(shift, 1, count), RNG.normal(shift, 1, count)


CALLS = {
    "scatter": lambda **kw: scatter.scatter(
        {"a": xy(5), "b": xy(3)}, "x", "y", labels={"first": (0, 0), "lost": (np.nan, 1)},
        line=("edge", ([0, 1], [1, 0])), **kw,
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
    pictures = [scatter.scatter(groups, "x", "y", labels={"p": (0.1, 0.2)}) for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_groups_are_drawn_where_they_are(as_figure):
    groups = {f"g{i}": xy(4, i) for i in range(9)}
    axes = scatter.scatter(groups, "x", "y").axes[0]
    looks = set()
    for points, (x, y) in zip(axes.collections, groups.values(), strict=True):
        np.testing.assert_array_equal(points.get_offsets(), np.stack([x, y], axis=1))
        looks.add((tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes()))
    assert len(looks) == 9


def test_names_stand_beside_their_points_and_apart(as_figure):
    """Twenty names, most of them of points in one corner."""
    points = {f"sampler_{i}": (0.05 * (i % 4), 1 - 0.02 * i) for i in range(16)}
    points |= {f"other_{i}": (0.3 * i, 0.3 * i) for i in range(4)}
    x, y = np.array(list(points.values())).T
    figure = scatter.scatter({"all": (x, y)}, "x", "y", labels=points)
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
