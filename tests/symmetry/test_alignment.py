import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import symmetry
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.population import evaluation
from hyperjax.symmetry import Transform, alignment
from hyperjax.weights import LayerSpec, WeightSpec, split_layer

TINY = (
    LayerSpec("conv1", "conv", (3, 2, 3, 3), pool="max"),
    LayerSpec("conv2", "conv", (4, 3, 2, 2)),
    LayerSpec("fc1", "dense", (5, 16)),
    LayerSpec("fc2", "dense", (3, 5)),
)
COUNT = 4
seeds = st.integers(0, 2**31 - 1)
examples = hypothesis.settings(max_examples=5, deadline=None)
apply = jax.jit(symmetry.apply, static_argnums=0)


def random_vectors(spec, seed, *lead):
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, 0.5, (*lead, spec.num_params)).astype(np.float32)


def disguise(spec, vectors, seed):
    """The same functions, their neurons reordered, flipped and scaled at random."""
    rng = np.random.default_rng(seed)
    permutations, scales = [], []
    for layer, sign, scale in zip(
        spec.layers[:-1], symmetry.sign_symmetric(spec), symmetry.scale_symmetric(spec), strict=True
    ):
        shape = len(vectors), layer.num_neurons
        permutations.append(np.argsort(rng.random(shape), axis=1).astype(np.int32))
        signs = rng.choice([-1, 1], shape) if sign else np.ones(shape)
        scales.append((signs * np.exp(0.7 * scale * rng.normal(size=shape))).astype(np.float32))
    return np.asarray(apply(spec, Transform(tuple(permutations), tuple(scales)), vectors))


def balanced(spec, vectors):
    return np.asarray(apply(spec, alignment.balance(spec, vectors), vectors))


def layers_of(spec):
    return zip(spec.layers, spec.slices, strict=True)


def distances(vectors, reference):
    return np.linalg.norm(vectors.astype(np.float64) - reference, axis=-1)


def specs():
    tiny = [WeightSpec(TINY, activation) for activation in ("tanh", "relu", "gelu")]
    zoo = [zoo_cnn_spec(1, activation) for activation in ("tanh", "relu")]
    return pytest.mark.parametrize(
        "spec", tiny + zoo, ids=["tanh", "relu", "gelu", "zoo-tanh", "zoo-relu"]
    )


@specs()
@examples
@hypothesis.given(seed=seeds)
def test_align_recovers_a_disguised_network(spec, seed):
    vector = random_vectors(spec, seed)
    copies = disguise(spec, np.tile(vector, (COUNT, 1)), seed)
    assert distances(copies, vector).min() > 1
    aligned, transform = alignment.align(spec, copies, vector)
    assert aligned.dtype == transform.scales[0].dtype == np.float32
    assert transform.permutations[0].dtype == np.int32
    np.testing.assert_allclose(aligned, np.tile(vector, (COUNT, 1)), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(apply(spec, transform, copies), aligned)


@specs()
@examples
@hypothesis.given(seed=seeds)
def test_align_recovers_noisy_copies(spec, seed):
    """Noise of a fifth of the weights, in the balanced form, must not change the matching."""
    vector = balanced(spec, random_vectors(spec, seed, 1))[0]
    noisy = vector + 0.2 * random_vectors(spec, seed + 1, COUNT)
    aligned, _ = alignment.align(spec, disguise(spec, noisy, seed), vector)
    np.testing.assert_allclose(aligned, balanced(spec, noisy), rtol=1e-3, atol=1e-4)


@specs()
@examples
@hypothesis.given(seed=seeds)
@hypothesis.example(seed=938199)  # of these, a gelu network begins from where it was
def test_unrelated_networks_come_closer_whatever_their_disguise(spec, seed):
    vectors, reference = random_vectors(spec, seed, COUNT), random_vectors(spec, seed + 1)
    vectors, reference = balanced(spec, vectors), balanced(spec, reference[None])[0]
    aligned, _ = alignment.align(spec, vectors, reference)
    assert np.all(distances(aligned, reference) < distances(vectors, reference))
    disguised = disguise(spec, vectors, seed)
    again, _ = alignment.align(spec, disguised, reference)
    # Where the fresh start leads farther away than a network was, it begins from where it was.
    starts = balanced(spec, disguised), vectors
    ends = np.maximum(distances(again, reference), distances(aligned, reference))
    fresh = ends < np.min([distances(start, reference) for start in starts], axis=0)
    np.testing.assert_allclose(again[fresh], aligned[fresh], rtol=1e-3, atol=1e-4)


def test_networks_never_move_away():
    """Weak first layers mislead the fresh start; later sweeps cannot leave its optimum."""
    spec = WeightSpec(tuple(LayerSpec(f"fc{i}", "dense", (2, 2)) for i in range(3)), "gelu")

    def network(first, second, third):
        parts = [part for weights in (first, second, third) for part in (weights, np.zeros(2))]
        return np.concatenate([part.ravel() for part in parts]).astype(np.float32)

    eye = np.eye(2)
    reference, other = network(0.1 * eye, 2 * eye, eye), network(0.1 * eye[::-1], 2 * eye, eye)
    aligned, _ = alignment.align(spec, other[None], reference)
    np.testing.assert_array_equal(aligned[0], other)


@specs()
def test_pairs_and_blocks_align_as_one_by_one(spec, monkeypatch):
    vectors, references = random_vectors(spec, 0, 7), random_vectors(spec, 1, 7)
    pairs, transform = alignment.align_pairs(spec, vectors, references)
    singles = [alignment.align(spec, v[None], r)[0][0] 
               for v, r in zip(vectors, references, strict=True)]  # fmt: skip
    np.testing.assert_allclose(pairs, singles, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(apply(spec, transform, vectors), pairs)
    one = alignment.align(spec, vectors, references[0])[0]
    steps = np.stack([0.5 * vectors, vectors], axis=1)
    monkeypatch.setattr(alignment, "_BLOCK", 3)
    np.testing.assert_allclose(
        alignment.align_pairs(spec, vectors, references)[0], pairs, rtol=1e-6, atol=1e-7
    )
    trajectories = alignment.align_trajectories(spec, steps, references[0])
    np.testing.assert_allclose(trajectories[:, 1], one, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(trajectories[:, 0], 0.5 * one, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [0, 1, 5, 64, 70])
def test_transformed_equals_apply(count):
    spec = WeightSpec(TINY, "tanh")
    keys = jax.random.split(jax.random.key(0), count)
    transforms = jax.vmap(lambda key: symmetry.random_transform(key, spec))(keys)
    for shape in ((count,), (count, 2)):
        vectors = random_vectors(spec, 0, *shape)
        found = alignment.transformed(spec, transforms, vectors)
        np.testing.assert_array_equal(found, apply(spec, transforms, vectors))


def test_align_finds_the_optimum_of_one_hidden_layer():
    """Against all 4! permutations and 2^4 signs."""
    layers = (LayerSpec("fc1", "dense", (4, 3)), LayerSpec("fc2", "dense", (2, 4)))
    spec = WeightSpec(layers, "tanh")
    vectors, reference = random_vectors(spec, 0, 5), random_vectors(spec, 1)
    elements = itertools.product(
        itertools.permutations(range(4)), itertools.product((-1, 1), repeat=4)
    )
    permutations, signs = zip(*elements, strict=True)
    group = Transform((np.array(permutations, np.int32),), (np.array(signs, np.float32),))
    aligned, _ = alignment.align(spec, vectors, reference)
    for vector, found in zip(vectors, aligned, strict=True):
        orbit = np.asarray(apply(spec, group, np.tile(vector, (len(signs), 1))))
        best = distances(orbit, reference).min()
        np.testing.assert_allclose(distances(found, reference), best, rtol=1e-6)


def test_transforms_align_the_other_snapshots():
    spec = zoo_cnn_spec(1, "tanh")
    base = random_vectors(spec, 0)
    trajectories = np.stack([0.1 * base, 0.5 * base, base])  # [snapshots, D]
    disguised = np.stack(
        [disguise(spec, np.tile(snapshot, (COUNT, 1)), 7) for snapshot in trajectories], axis=1
    )
    _, transform = alignment.align(spec, disguised[:, -1], base)
    assert [field.shape for field in transform.permutations] == [(COUNT, n) for n in (8, 6, 4, 20)]
    aligned = apply(spec, transform, disguised)
    np.testing.assert_array_equal(aligned, np.tile(trajectories, (COUNT, 1, 1)))


def test_balanced_neurons_have_equal_norms_in_and_out():
    spec = zoo_cnn_spec(1, "relu")
    vectors = random_vectors(spec, 0, COUNT)
    dead = vectors.copy()
    dead[:, 25:50] = dead[:, 201] = 0  # nothing enters neuron 1 of conv1
    for networks in (vectors, dead):
        transform = alignment.balance(spec, networks)
        result = balanced(spec, networks)
        assert np.all(np.linalg.norm(result, axis=1) < np.linalg.norm(networks, axis=1))
        assert all(np.all(scale > 0) and np.all(np.isfinite(scale)) for scale in transform.scales)
        weights, bias = zip(
            *(split_layer(layer, result[:, part]) for layer, part in layers_of(spec)), strict=True
        )
        incoming = [
            np.sqrt(np.sum(w.reshape(*b.shape, -1) ** 2, axis=2) + b**2)
            for w, b in zip(weights, bias, strict=True)
        ]
        outgoing = [
            np.sqrt(np.sum(w.reshape(*w.shape[:2], n, -1) ** 2, axis=(1, 3)))
            for w, n in zip(weights[1:], (8, 6, 4, 20), strict=True)
        ]
        alive = np.ones(8, bool)
        alive[1] = networks is vectors
        for i, (a, b) in enumerate(zip(incoming[:-1], outgoing, strict=True)):
            keep = alive if i == 0 else slice(None)
            np.testing.assert_allclose(a[:, keep], b[:, keep], rtol=1e-4)
    np.testing.assert_array_equal(transform.scales[0][:, 1], np.ones(COUNT))
    unscaled = alignment.balance(zoo_cnn_spec(1, "tanh"), vectors)
    assert all(np.all(scale == 1) for scale in unscaled.scales)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_find_reference_recovers_a_planted_network(activation):
    """Noisy disguised copies: the reference is their base, the score its share of the norm."""
    spec = zoo_cnn_spec(1, activation)
    base = balanced(spec, random_vectors(spec, 0, 1))[0]
    noise = 0.3 * np.std(base)
    copies = base + noise * np.random.default_rng(1).normal(size=(40, len(base)))
    found = alignment.find_reference(
        spec, disguise(spec, copies.astype(np.float32), 3), seed=0, restarts=3
    )
    assert found.reference.dtype == np.float32
    closest, _ = alignment.align(spec, found.reference[None], base)
    tolerance = 1.5 * noise / np.sqrt(40)
    assert np.sqrt(np.mean((closest[0] - base) ** 2)) < tolerance
    assert found.score == pytest.approx((1 + 0.3**2 / 40) / (1 + 0.3**2), abs=0.01)


def test_running_statistics_say_nothing_of_how_close_networks_are():
    """Unrelated networks with equal variances, far larger than their weights, have little in
    common; and none ends farther away by what is learned."""
    layers = (
        LayerSpec("a", "dense", (6, 9), bias=False, norm="batch"),
        LayerSpec("b", "dense", (3, 6)),
    )
    spec = WeightSpec(layers, "tanh", (3, 3))
    vectors = random_vectors(spec, 0, 60)
    learned = np.ones(spec.num_params, bool)
    learned[layers[0].num_weights :][: 4 * 6] = np.repeat(
        [name not in ("mean", "var") for name in layers[0].values], 6
    )
    assert (~learned).sum() == 12
    vectors[:, ~learned] = 100
    plain = alignment.find_reference(spec, np.where(learned, vectors, 0), seed=0)
    found = alignment.find_reference(spec, vectors, seed=0)
    assert found.score == pytest.approx(plain.score, rel=1e-5)
    assert found.score < 0.5
    vectors[:, ~learned] = np.random.default_rng(1).uniform(0, 100, (60, 12))
    aligned, _ = alignment.align(spec, vectors, vectors[0])
    before, after = (
        distances(v[:, learned], vectors[0][learned]) for v in (vectors, np.asarray(aligned))
    )
    assert (after <= before + 1e-5).all()
    assert after[1:].mean() < 0.95 * before[1:].mean()


def test_find_reference_moves_and_restarts():
    spec = WeightSpec(TINY, "tanh")
    vectors = random_vectors(spec, 0, 30)
    short = alignment.find_reference(spec, vectors, seed=0, restarts=1, iterations=1)
    moved = alignment.find_reference(spec, vectors, seed=0, restarts=1, iterations=8)
    best = alignment.find_reference(spec, vectors, seed=0, restarts=30, iterations=8)
    unaligned = np.sum(vectors.mean(axis=0) ** 2) / np.mean(np.sum(vectors**2, axis=1))
    assert 0 < unaligned < short.score < moved.score < best.score < 1
    again = alignment.find_reference(spec, vectors, seed=0, restarts=1, iterations=8)
    np.testing.assert_array_equal(again.reference, moved.reference)


def test_align_without_networks_or_hidden_layers():
    spec = WeightSpec(TINY, "relu")
    nothing, transform = alignment.align(spec, random_vectors(spec, 0, 0), random_vectors(spec, 1))
    assert nothing.shape == (0, spec.num_params)
    assert transform.permutations[0].shape == (0, 3)
    linear = WeightSpec((LayerSpec("fc", "dense", (2, 3)),), "tanh")
    vectors = random_vectors(linear, 0, COUNT)
    aligned, _ = alignment.align(linear, vectors, vectors[0])
    np.testing.assert_array_equal(aligned, vectors)


def test_errors_say_what_is_wrong():
    spec = WeightSpec(TINY, "tanh")
    vectors = random_vectors(spec, 0, COUNT)
    with pytest.raises(HyperJaxError, match=r"a reference with 1 axes.*got shape"):
        alignment.align(spec, vectors, vectors)
    with pytest.raises(HyperJaxError, match=r"vectors with 2 axes, the last of 212 values"):
        alignment.align(spec, vectors[:, :-1], vectors[0])
    with pytest.raises(HyperJaxError, match="at least one vector"):
        alignment.find_reference(spec, vectors[:0], seed=0)
    with pytest.raises(HyperJaxError, match="restart"):
        alignment.find_reference(spec, vectors, seed=0, restarts=0)
    vectors[1, 5] = np.nan
    with pytest.raises(HyperJaxError, match="finite"):
        alignment.align(spec, vectors, vectors[0])


def fisher(spec, vectors, seed):
    """Mean squared gradients float32[N, D] of the losses of single examples, the same for all."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(12, *spec.image_size, spec.channels)).astype(np.float32)
    labels, apply_fn = rng.integers(0, spec.num_classes, 12), evaluation.network(spec).apply

    def loss(vector, image, label):
        return -jax.nn.log_softmax(apply_fn(vector, image[None])[0])[label]

    each = jax.vmap(jax.grad(loss), (None, 0, 0))
    return np.asarray(
        jax.jit(jax.vmap(lambda v: jnp.square(each(v, images, labels)).mean(0)))(vectors)
    )


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_second_moments_go_with_the_weights(activation):
    """Squared gradients of disguised networks, aligned, are those of the networks themselves."""
    first, third = LayerSpec("conv1", "conv", (3, 2, 3, 3)), LayerSpec("fc1", "dense", (5, 100))
    layers = (first, TINY[1], third, TINY[3])
    spec = WeightSpec(layers, activation, (8, 8))
    truth = balanced(spec, random_vectors(spec, 3, 2))
    moved = disguise(spec, truth, 4)
    assert np.abs(moved - truth).max() > 0.1
    wanted, moments = fisher(spec, truth, 5), fisher(spec, moved, 5)
    for row in range(2):
        steps = np.stack([moved[row] / 2, moved[row]])[None]
        aligned, found = alignment.align_moments(
            spec, steps, np.stack([2 * moments[row], moments[row]])[None], truth[row]
        )
        np.testing.assert_allclose(aligned[0, 1], truth[row], atol=1e-5)
        np.testing.assert_allclose(found[0, 1], wanted[row], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found[0, 0], 2 * wanted[row], rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(
            aligned, alignment.align_trajectories(spec, steps, truth[row])
        )
