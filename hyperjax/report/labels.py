"""Where to write the names of points so that no name covers another. Pure geometry."""

import numpy as np

from hyperjax.types import Array

_DIRECTIONS = np.deg2rad(np.arange(0, 360, 22.5))
# from point to name, in units of `gap`
_RADII = (1.0, 2.5, 4.0, 6.0, 8.0, 11.0, 14.0, 18.0, 23.0, 29.0)


def place(points: Array, sizes: Array, box: tuple[float, float, float, float], *, gap: float,
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
