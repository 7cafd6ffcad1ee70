"""Alignment: bring networks as close to a reference as their symmetries allow.

Weight matching: layer by layer, assign a network's neurons to those of the reference by the
inner products of their incoming and outgoing weights, given the present assignment of the
layers around, until no layer improves. Where signs are a symmetry, the magnitude of an inner
product decides and the neuron takes its sign. Where positive scales are a symmetry, networks
are balanced first, so that the result does not depend on the scales that they came with.

The inner products are of the raw weights, not divided by each layer's standard deviation: they
minimise the plain distance, and averages of aligned members of a small MNIST zoo were more
accurate than with the division (pairs 72 % against 69 %, of eight 60 % against 53 %).

Runs on the host with NumPy and SciPy: batched over networks, except for the assignments, and in
blocks of networks, so that memory does not grow with their number.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from hyperjax import symmetry
from hyperjax.errors import HyperJaxError
from hyperjax.symmetry import Transform
from hyperjax.types import Array
from hyperjax.weights import STATISTICS, WeightSpec, running_statistics, split_layer

_apply = jax.jit(symmetry.apply, static_argnums=0)
_BLOCK = 512  # networks that are matched together, in float64
_LEAST = 64  # networks that are transformed together
_ROUNDING = 2e-6  # of scales, relative
_TOLERANCE = 1e-9  # relative; an assignment changes only if it gains more, so that sweeps end


class Alignment(NamedTuple):
    """What `find_reference` finds.

    Attributes:
      reference: float32[D], the mean of the aligned members.
      score: share of the members' mean squared norm that their mean keeps, from 0 to 1.
    """

    reference: np.ndarray
    score: float


class _Layer(NamedTuple):
    """One layer of N networks."""

    weights: np.ndarray  # [N, neurons, inputs, block], see symmetry.input_blocks
    values: np.ndarray  # [N, neurons, values]: biases, and what else belongs to neurons


def align(
    spec: WeightSpec, vectors: Array, reference: Array, *, iterations: int = 20
) -> tuple[np.ndarray, Transform]:
    """Transform networks into near neighbours of a reference that compute the same as before.

    No network ends farther from the reference than it was (with scale symmetry: than it was
    after balancing both), running statistics of normalisation aside, which follow from the rest.
    Equal up to symmetry, networks are recovered exactly.

    Args:
      spec: the architecture.
      vectors: float32[N, D].
      reference: float32[D].
      iterations: most sweeps over the layers; networks that no longer improve drop out.

    Returns:
      The aligned vectors float32[N, D], and the transforms ([N, neurons] per layer) that made
      them, which `symmetry.apply` applies to other snapshots of the same networks.

    Raises HyperJaxError if shapes do not fit or a value is not finite.
    """
    vectors, reference = _checked(spec, vectors, 2), _checked(spec, reference, 1)
    return _align(spec, vectors, reference[None], iterations)


def align_pairs(
    spec: WeightSpec, vectors: Array, references: Array, *, iterations: int = 20
) -> tuple[np.ndarray, Transform]:
    """`align`, but each network float32[N, D] to a reference of its own, float32[N, D]."""
    vectors, references = _checked(spec, vectors, 2), _checked(spec, references, 2)
    return _align(spec, vectors, references, iterations)


def align_trajectories(spec: WeightSpec, trajectories: Array, reference: Array) -> np.ndarray:
    """Align trajectories float32[M, E, D], each by its last snapshot, so that it stays one."""
    aligned = np.empty(np.shape(trajectories), np.float32)
    for block, transform in _transforms(spec, trajectories, reference):
        aligned[block] = transformed(spec, transform, trajectories[block])
    return aligned


def align_moments(
    spec: WeightSpec, trajectories: Array, moments: Array, reference: Array
) -> tuple[np.ndarray, np.ndarray]:
    """`align_trajectories`, and the second moments float32[M, E, D] of the same networks as they
    go with it (`symmetry.for_moments`)."""
    aligned = np.empty(np.shape(trajectories), np.float32)
    moved = np.empty_like(aligned)
    for block, transform in _transforms(spec, trajectories, reference):
        aligned[block] = transformed(spec, transform, trajectories[block])
        moved[block] = transformed(spec, symmetry.for_moments(transform), moments[block])
    return aligned, moved


def _transforms(
    spec: WeightSpec, trajectories: Array, reference: Array
) -> Iterator[tuple[slice, Transform]]:
    """What aligns the last snapshots of trajectories [M, E, D], block by block."""
    for block in blocks(len(trajectories), _BLOCK):
        yield block, align(spec, trajectories[block, -1], reference)[1]


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive parts of `count` things, of at most `size` each."""
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))


def find_reference(
    spec: WeightSpec, vectors: Array, *, seed: int, restarts: int = 8, iterations: int = 8
) -> Alignment:
    """Find a reference for a population: the mean that keeps most of its aligned members.

    Starts from a member, aligns all members to it, moves to their mean, and so on until the
    score stops rising; then again from another member. Use train members only.

    Args:
      spec: the architecture.
      vectors: float32[N, D], N > 0.
      seed: chooses the members to start from.
      restarts: number of members to start from.
      iterations: most moves of the reference per start.

    Raises HyperJaxError if there are no vectors, or they do not fit or are not finite.
    """
    vectors = _checked(spec, vectors, 2)
    if not len(vectors) or restarts < 1 or iterations < 1:
        raise HyperJaxError(
            f"a reference needs at least one vector, restart and iteration; got {len(vectors)}, "
            f"{restarts} and {iterations}"
        )
    vectors = transformed(spec, balance(spec, vectors), vectors)
    learned = ~running_statistics(spec)
    norm = max(np.mean(np.sum(learned * vectors**2, axis=1)), np.finfo(np.float32).tiny)
    best = Alignment(vectors[0], -1.0)
    for first in np.random.default_rng(seed).permutation(len(vectors))[:restarts]:
        reference, previous = vectors[first], -1.0
        for _ in range(iterations):
            mean = align(spec, vectors, reference)[0].mean(axis=0)
            reference = transformed(spec, balance(spec, mean[None]), mean[None])[0]
            score = float(np.sum(learned * mean**2) / norm)
            if score > best.score:
                best = Alignment(reference, score)
            if score <= previous:
                break
            previous = score
    return best


def transformed(spec: WeightSpec, transform: Transform, vectors: Array) -> np.ndarray:
    """`symmetry.apply` on the host, for N transforms of vectors [N, D] or trajectories [N, E, D].

    A few more are transformed than are asked for, so that most numbers share a compiled program.
    """
    if (count := len(vectors)) == 0:
        return np.asarray(vectors)
    step = 1 << max(0, count.bit_length() - 3)
    size = max(_LEAST, -(-count // step) * step)
    filled = jax.tree.map(lambda x: np.resize(x, (size, *x.shape[1:])), (transform, vectors))
    return np.asarray(_apply(spec, *filled))[:count]


def balance(spec: WeightSpec, vectors: Array, *, iterations: int = 200) -> Transform:
    """The positive scales that make vectors [N, D] smallest in norm.

    Every neuron's incoming weights and bias then have the norm of its outgoing weights, which
    picks one network among all that differ by positive scales. Scales are one where they
    are no symmetry, and for dead neurons (nothing comes in, or nothing goes out).
    """
    transform, scaled = _identity(spec, len(vectors)), symmetry.scale_symmetric(spec)
    if not any(scaled):
        return transform
    masses = [
        _Layer(np.sum(layer.weights**2, axis=-1), np.sum(layer.values**2, axis=-1))
        for layer in _layers(spec, np.asarray(vectors, np.float64))
    ]
    ones = [np.ones((len(vectors), size)) for size in (1, spec.layers[-1].num_neurons)]
    squares = [ones[0], *(np.ones(scale.shape) for scale in transform.scales), ones[1]]
    for _ in range(iterations):  # the norm is convex in the logarithms: one layer at a time
        change = 0.0
        for i, (layer, after) in enumerate(itertools.pairwise(masses)):
            if not scaled[i]:
                continue
            incoming = np.sum(layer.weights / squares[i][:, None], axis=2) + layer.values
            outgoing = np.sum(after.weights * squares[i + 2][:, :, None], axis=1)
            alive = (incoming > 0) & (outgoing > 0)
            ratio = np.divide(outgoing, incoming, out=np.ones_like(incoming), where=alive)
            change = max(change, np.max(np.abs(np.sqrt(ratio) / squares[i + 1] - 1), initial=0.0))
            squares[i + 1] = np.sqrt(ratio)
        if change < _TOLERANCE:
            break
    scales = tuple(np.sqrt(square).astype(np.float32) for square in squares[1:-1])
    return transform._replace(scales=scales)


def _align(
    spec: WeightSpec, vectors: np.ndarray, references: np.ndarray, iterations: int
) -> tuple[np.ndarray, Transform]:
    """Align vectors [N, D] to their references [N, D], or all to one [1, D]."""
    aligned, transform = np.empty_like(vectors), _identity(spec, len(vectors))
    for block in blocks(len(vectors), _BLOCK):
        part = vectors[block]
        target = references if len(references) == 1 else references[block]
        found = _align_block(spec, part, target, iterations)
        aligned[block] = transformed(spec, found, part)
        for whole, field in zip(jax.tree.leaves(transform), jax.tree.leaves(found), strict=True):
            whole[block] = field
    return aligned, transform


def _align_block(
    spec: WeightSpec, vectors: np.ndarray, references: np.ndarray, iterations: int
) -> Transform:
    own, target = balance(spec, vectors), balance(spec, references)
    start = transformed(spec, own, vectors), transformed(spec, target, references)
    matching = _match(spec, *start, iterations)
    scales = (
        sign * np.take_along_axis(scale, permutation, axis=1) / target_scale
        for permutation, sign, scale, target_scale in zip(
            *matching, own.scales, target.scales, strict=True
        )
    )
    # what rounding has left to do is not done: networks that are aligned stay as they are
    exact = (np.where(np.abs(s - 1) < _ROUNDING, np.float32(1), s) for s in scales)
    return Transform(matching.permutations, tuple(exact))


def _match(
    spec: WeightSpec, vectors: np.ndarray, references: np.ndarray, iterations: int
) -> Transform:
    """Match vectors [N, D] to references [N, D], or all to one [1, D], by permutations and signs.

    The start matches layer after layer by incoming weights alone. It does not depend on the
    order that the neurons have now, and is already right for networks equal up to symmetry.
    Networks that it leads farther away than they were start again from where they were.
    """
    layers, target = (_layers(spec, np.asarray(v, np.float64)) for v in (vectors, references))
    matching, rows = _identity(spec, len(vectors)), np.arange(len(vectors))
    for i, signed in enumerate(symmetry.sign_symmetric(spec)):
        similarity = _incoming(layers, target, matching, i, rows)
        matching.permutations[i][:], matching.scales[i][:] = _assign(similarity, signed)
    _improve(spec, layers, target, matching, rows, iterations)
    moved = transformed(spec, matching, vectors)
    worse = np.sum((moved - vectors) * references * ~running_statistics(spec), axis=1) < 0
    unchanged = jax.tree.leaves(symmetry.identity(spec))
    for field, neutral in zip(jax.tree.leaves(matching), unchanged, strict=True):
        field[worse] = neutral
    _improve(spec, layers, target, matching, rows[worse], iterations)
    return matching


def _improve(
    spec: WeightSpec,
    layers: list[_Layer],
    target: list[_Layer],
    matching: Transform,
    rows: np.ndarray,
    iterations: int,
) -> None:
    """Reassign layer by layer, in place, the `rows` of a matching until nothing changes."""
    for _ in range(iterations):
        if not rows.size:
            break
        changed = np.zeros(rows.size, bool)
        for i, signed in enumerate(symmetry.sign_symmetric(spec)):
            similarity = _incoming(layers, target, matching, i, rows)
            similarity += _outgoing(layers, target, matching, i, rows)
            permutation, sign = _assign(similarity, signed)
            before = _total(similarity, matching.permutations[i][rows], matching.scales[i][rows])
            margin = _TOLERANCE * np.abs(similarity).sum(axis=(1, 2))
            better = _total(similarity, permutation, sign) > before + margin
            matching.permutations[i][rows[better]] = permutation[better]
            matching.scales[i][rows[better]] = sign[better]
            changed |= better
        rows = rows[changed]


def _incoming(layers, target, matching: Transform, i: int, rows: np.ndarray) -> np.ndarray:
    """Inner products of neurons by incoming weights and bias, [rows, target's, own neurons]."""
    weights, values = layers[i].weights[rows], layers[i].values[rows]
    if i > 0:
        before = matching.permutations[i - 1][rows][:, None, :, None]
        signs = matching.scales[i - 1][rows][:, None, :, None]
        weights = np.take_along_axis(weights, before, axis=2) * signs
    wanted = _of(target[i].weights, rows)
    products = _flat(wanted) @ _flat(weights).swapaxes(1, 2)
    return products + _of(target[i].values, rows) @ values.swapaxes(1, 2)


def _outgoing(layers, target, matching: Transform, i: int, rows: np.ndarray) -> np.ndarray:
    """Inner products of neurons by outgoing weights, [rows, target's, own neurons]."""
    weights = layers[i + 1].weights[rows]
    if i + 1 < len(matching.scales):
        after = matching.permutations[i + 1][rows][:, :, None, None]
        signs = matching.scales[i + 1][rows][:, :, None, None]
        weights = np.take_along_axis(weights, after, axis=1) * signs
    wanted = _of(target[i + 1].weights, rows)
    return _flat(wanted.swapaxes(1, 2)) @ _flat(weights.swapaxes(1, 2)).swapaxes(1, 2)


def _of(targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of the `rows`, where each network has its own reference."""
    return targets if len(targets) == 1 else targets[rows]


def _flat(weights: np.ndarray) -> np.ndarray:
    return weights.reshape(*weights.shape[:2], -1)


def _assign(similarity: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The best permutation and signs for each matrix of similarities, both [N, neurons]."""
    from scipy.optimize import linear_sum_assignment

    values = np.abs(similarity) if signed else similarity
    permutation = np.zeros(similarity.shape[:2], np.int32)
    for row, value in zip(permutation, values, strict=True):
        row[:] = linear_sum_assignment(value, maximize=True)[1]
    chosen = np.take_along_axis(similarity, permutation[:, :, None], axis=2)[:, :, 0]
    flip = signed & (chosen < 0)
    return permutation, np.where(flip, np.float32(-1), np.float32(1))


def _total(similarity: np.ndarray, permutation: np.ndarray, sign: np.ndarray) -> np.ndarray:
    chosen = np.take_along_axis(similarity, permutation[:, :, None], axis=2)[:, :, 0]
    return np.sum(chosen * sign, axis=1)


def _layers(spec: WeightSpec, vectors: np.ndarray) -> list[_Layer]:
    layers = []
    for layer, part, blocks in zip(
        spec.layers, spec.slices, symmetry.input_blocks(spec), strict=True
    ):
        weights, values = split_layer(layer, vectors[..., part])
        weights = weights.reshape(len(vectors), layer.num_neurons, *blocks)
        values = values.reshape(len(vectors), len(layer.values), layer.num_neurons)
        kept = [name not in STATISTICS for name in layer.values]
        layers.append(_Layer(weights, values[:, kept].swapaxes(1, 2)))
    return layers


def _identity(spec: WeightSpec, count: int) -> Transform:
    """Identities for `count` networks, in memory that can be written to."""
    one = symmetry.identity(spec)
    return jax.tree.map(lambda field: np.tile(np.asarray(field), (count, 1)), one)


def _checked(spec: WeightSpec, vectors: Array, ndim: int) -> np.ndarray:
    """As float32 on the host. Raises HyperJaxError on a wrong shape or values not finite."""
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != ndim or vectors.shape[-1] != spec.num_params:
        raise HyperJaxError(
            f"alignment needs {'vectors' if ndim == 2 else 'a reference'} with {ndim} axes, the "
            f"last of {spec.num_params} values; got shape {vectors.shape}"
        )
    if not np.all(np.isfinite(vectors)):
        raise HyperJaxError("alignment needs finite weights; leave diverged members out")
    return vectors
