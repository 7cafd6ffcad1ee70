"""Distances modulo symmetries: replicas in disguise are found, and nothing is nearer than it is."""

import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from hyperjax import symmetry
from hyperjax.errors import HyperJaxError
from hyperjax.symmetry import Transform, alignment, nearest
from hyperjax.weights import LayerSpec, WeightSpec

LAYERS = (
    LayerSpec("conv1", "conv", (3, 1, 2, 2), pool="max"),
    LayerSpec("fc1", "dense", (4, 3)),
    LayerSpec("fc2", "dense", (2, 4)),
)
SPECS = {activation: WeightSpec(LAYERS, activation) for activation in ("tanh", "relu", "gelu")}
MEMBERS, SNAPSHOTS = 7, 2
apply = jax.jit(symmetry.apply, static_argnums=0)


def rng(seed):
    return np.random.default_rng(seed)


def make_train(spec, seed=0):
    start = rng(seed).normal(0, 1, (MEMBERS, 1, spec.num_params))
    steps = 0.02 * rng(seed + 1).normal(0, 1, (MEMBERS, SNAPSHOTS, spec.num_params))
    trajectories = (start + steps).astype(np.float32)
    return nearest.train_models(spec, trajectories, trajectories[0, -1])


def disguise(spec, vectors, seed=0):
    """The same functions with other orders, signs and scales of neurons."""
    keys = jax.random.split(jax.random.key(seed), len(vectors))
    draw = jax.vmap(lambda key: symmetry.random_transform(key, spec, scale=0.5))
    return np.asarray(apply(spec, draw(keys), vectors))


@pytest.fixture(scope="module", params=SPECS)
def train(request):
    return make_train(SPECS[request.param])


def test_replicas_in_disguise_have_no_distance(train):
    for snapshot in range(SNAPSHOTS):
        hidden = disguise(train.spec, train.vectors[:, snapshot], snapshot)
        assert np.linalg.norm(hidden - train.vectors[:, snapshot], axis=1).min() > 0.5
        found = nearest.distances(train, hidden)
        np.testing.assert_allclose(found.member, 0, atol=1e-5)
        np.testing.assert_allclose(found.mixture, 0, atol=1e-5)


def test_a_disguise_hardly_changes_a_distance(train):
    vectors = nearest.balanced(train.spec, train.vectors[:, -1])
    noisy = vectors + 0.1 * rng(5).normal(size=vectors.shape).astype(np.float32)
    plain = nearest.distances(train, noisy).member
    hidden = nearest.distances(train, disguise(train.spec, noisy)).member
    np.testing.assert_allclose(hidden, plain, rtol=1e-4)
    assert np.all(plain <= np.linalg.norm(noisy - vectors, axis=1) + 1e-6)


def test_distance_equals_that_over_all_symmetries():
    """Against every order of neurons, for a network so small that they can all be tried."""
    train = make_train(SPECS["gelu"])
    sizes = [layer.num_neurons for layer in LAYERS[:-1]]
    orders = list(itertools.product(*(itertools.permutations(range(size)) for size in sizes)))
    columns = tuple(np.array(column, np.int32) for column in zip(*orders, strict=True))
    every = Transform(columns, tuple(np.ones(c.shape, np.float32) for c in columns))
    # near one member: the matching of unrelated networks has local optima
    noise = rng(9).normal(0, 0.3, (5, train.spec.num_params)).astype(np.float32)
    vectors = train.vectors[:5, 0] + noise
    flat = train.vectors.reshape(-1, train.spec.num_params)
    expected = [
        cdist(apply(train.spec, every, np.tile(v, (len(orders), 1))), flat).min() for v in vectors
    ]
    found = nearest.distances(train, disguise(train.spec, vectors)).member
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_own_snapshots_do_not_count():
    train = make_train(SPECS["gelu"])
    found = nearest.distances(train, train.vectors[:, -1], own=np.arange(MEMBERS)).member
    for i, distance in enumerate(found):
        others = nearest.train_models(
            train.spec, np.delete(train.vectors, i, axis=0), train.reference
        )
        alone = nearest.distances(others, train.vectors[i : i + 1, -1]).member[0]
        assert distance == pytest.approx(alone, rel=1e-5)
        assert distance > 1


def test_spacing_is_the_mean_distance_to_the_nearest_other_member(train):
    last = train.vectors[:, -1]
    found = nearest.distances(train, disguise(train.spec, last), own=np.arange(MEMBERS)).member
    assert train.spacing == pytest.approx(found.mean(), rel=1e-4)
    assert train.spacing > 0.5
    alone = nearest.train_models(train.spec, train.vectors[:1], train.reference)
    assert np.isnan(alone.spacing)


def test_novelty_of_replays_and_neighbours(train):
    """0 for a replica in disguise; beside a member, in units of the spacing; NaN for a network
    that is not finite, and where train models do not differ."""
    last = train.vectors[:, -1]
    step = rng(7).normal(size=last.shape)
    step *= 0.05 * train.spacing / np.linalg.norm(step, axis=1, keepdims=True)
    beside = nearest.balanced(train.spec, (last + step).astype(np.float32))
    vectors = np.array(disguise(train.spec, np.concatenate([last, beside])))
    vectors[3, 0] = np.inf
    found = nearest.novelty(train, vectors)
    assert np.isnan(found[3])
    np.testing.assert_allclose(np.delete(found[:MEMBERS], 3), 0, atol=1e-5)
    distance = np.linalg.norm(train.vectors - beside[:, None], axis=2).min(axis=1)
    np.testing.assert_allclose(found[MEMBERS:], distance / train.spacing, rtol=1e-3)
    same = nearest.train_models(train.spec, np.repeat(train.vectors[:1], 2, 0), train.reference)
    assert np.isnan(nearest.novelty(same, last)).all()


def test_averages_are_left_out_where_they_are_not_wanted(train):
    vectors = train.vectors[:3].mean(axis=0)
    both = nearest.distances(train, vectors)
    members = nearest.distances(train, vectors, mixtures=False)
    np.testing.assert_array_equal(members.member, both.member)
    assert np.isfinite(both.mixture).all()
    assert np.isinf(members.mixture).all()


@pytest.mark.parametrize("activation", ["tanh", "gelu"])  # averages of ReLU's are not balanced
def test_averages_are_far_from_members_and_near_to_the_hull(activation):
    train = make_train(SPECS[activation])
    weights = rng(3).dirichlet(np.ones(3), 6)
    averages = np.einsum("nk,kd->nd", weights, train.vectors[:3, -1]).astype(np.float32)
    found = nearest.distances(train, averages)
    np.testing.assert_allclose(found.mixture, 0, atol=1e-4)
    assert np.all(found.member > 0.1)


@pytest.mark.parametrize("seed", range(4))
def test_hull_against_a_general_optimiser(seed):
    points, vector = rng(seed).normal(size=(5, 8)), rng(seed + 10).normal(size=8)

    def square(w):
        return np.sum((w @ points - vector) ** 2)

    best = minimize(
        square, np.full(5, 0.2), method="SLSQP", bounds=[(0, 1)] * 5, tol=1e-12,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )  # fmt: skip
    assert nearest.to_hull(vector, points) == pytest.approx(np.sqrt(best.fun), rel=1e-4)


def test_hull_of_special_points():
    points = np.float32([[0, 0], [2, 0], [0, 2]])
    assert nearest.to_hull(np.float32([0.5, 0.5]), points) == pytest.approx(0, abs=1e-6)
    assert nearest.to_hull(np.float32([2, 0]), points) == 0
    assert nearest.to_hull(np.float32([5, 0]), points) == pytest.approx(3)
    assert nearest.to_hull(np.float32([2, 2]), points) == pytest.approx(np.sqrt(2))
    assert nearest.to_hull(np.float32([3, 4]), points[:1]) == pytest.approx(5)
    assert nearest.to_hull(np.float32([1, 1]), np.zeros((3, 2))) == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("most", [1, 4, 99])
@pytest.mark.parametrize("others", [False, True])
def test_nearest_members_against_scipy(most, others, monkeypatch):
    """By float64, whatever the size of the blocks; with `others`, without a vector's own member."""
    vectors, trajectories = rng(0).normal(size=(12, 6)), rng(1).normal(size=(40, 5, 6))
    own = rng(2).permutation(40)[:12] if others else None
    every = cdist(vectors, trajectories.reshape(-1, 6)).reshape(12, 40, 5)
    if others:
        every[np.arange(12), own] = np.inf
    order = every.min(axis=2).argsort(axis=1)[:, : min(most, 40 - others)]
    chosen = np.take_along_axis(every, order[:, :, None], axis=1)
    for members in (1, 7, 40):
        monkeypatch.setattr(nearest, "_BLOCK_BYTES", members * 5 * 6 * 4)
        near = nearest.nearest_members(vectors, trajectories, most, own=own)
        np.testing.assert_array_equal(near.members, order)
        np.testing.assert_array_equal(near.snapshots, chosen.argmin(axis=2))
        np.testing.assert_allclose(near.far, chosen.min(axis=2))


def test_float32_loses_no_replica():
    """Far from the origin its products cannot tell the nearest of a cluster apart."""
    trajectories = 100 + 1e-3 * rng(0).normal(size=(7, 2, 50)).astype(np.float32)
    near = nearest.nearest_members(trajectories[:, 1], trajectories, 1)
    np.testing.assert_array_equal(near.members[:, 0], np.arange(7))
    np.testing.assert_array_equal(near.snapshots[:, 0], 1)
    np.testing.assert_array_equal(near.far, 0)


def test_distances_do_not_depend_on_the_blocks(train, monkeypatch):
    noise = rng(4).normal(0, 0.1, (MEMBERS, train.spec.num_params)).astype(np.float32)
    vectors = disguise(train.spec, train.vectors[:, 0] + noise)
    whole = nearest.distances(train, vectors)
    monkeypatch.setattr(nearest, "_QUERIES", 3)
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", 2 * train.vectors[0].nbytes)
    monkeypatch.setattr(alignment, "_BLOCK", 4)
    parts = nearest.distances(train, vectors)
    np.testing.assert_allclose(parts.member, whole.member, rtol=1e-6)
    np.testing.assert_allclose(parts.mixture, whole.mixture, rtol=1e-6)
    again = nearest.train_models(train.spec, disguised_trajectories(train), train.reference)
    np.testing.assert_allclose(again.vectors, train.vectors, rtol=1e-3, atol=1e-5)
    assert again.spacing == pytest.approx(train.spacing, rel=1e-4)


def disguised_trajectories(train):
    draw = jax.vmap(lambda key: symmetry.random_transform(key, train.spec, scale=0.5))
    keys = jax.random.split(jax.random.key(3), MEMBERS)
    return np.asarray(apply(train.spec, draw(keys), train.vectors))


def test_the_spacing_of_many_members_is_that_of_some(monkeypatch):
    """Evenly spaced, each against all others; up to as many as are asked for it is that of all."""
    np.testing.assert_array_equal(nearest.evenly_spaced(MEMBERS), np.arange(MEMBERS))
    monkeypatch.setattr(nearest, "_SPACED", 3)
    some = nearest.evenly_spaced(MEMBERS)
    np.testing.assert_array_equal(some, [0, 3, 6])
    train = make_train(SPECS["gelu"])
    far = nearest.distances(train, train.vectors[:, -1], own=np.arange(MEMBERS)).member
    assert train.spacing == pytest.approx(far[some].mean(), rel=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_aligned_trajectories_are_not_copied(activation):
    train = make_train(SPECS[activation])
    again = nearest.train_models(train.spec, train.vectors, train.reference)
    assert again.vectors is train.vectors
    hidden = disguised_trajectories(train)
    before = hidden.copy()
    assert nearest.train_models(train.spec, hidden, train.reference).vectors is not hidden
    np.testing.assert_array_equal(hidden, before)


def test_vectors_of_another_architecture():
    with pytest.raises(HyperJaxError, match=r"have 38 values; this architecture .* has 41"):
        nearest.distances(make_train(SPECS["tanh"]), np.zeros((2, 38), np.float32))
