"""Running statistics measured again, against NumPy and SciPy one network at a time."""

import jax
import numpy as np
import pytest
from population_cases import random_vectors
from scipy.signal import correlate

from hyperjax import Images, update_batch_norm
from hyperjax.errors import HyperJaxError
from hyperjax.weights import LayerSpec, WeightSpec, flatten, unflatten

SPEC = WeightSpec(
    (
        LayerSpec("c1", "conv", (3, 2, 3, 3), bias=False, norm="batch", pool="max"),
        LayerSpec("d1", "dense", (5, 27), norm="batch"),
        LayerSpec("d2", "dense", (4, 5)),
    ),
    "relu",
    (8, 8),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 2)).astype(np.uint8)
IMAGES = Images(PIXELS, np.zeros(40, np.int32), np.float32([0.4, 0.5]), np.float32([0.3, 0.2]))


def networks(count, seed=0):
    """With scales and variances that are positive."""
    vectors = random_vectors(count, SPEC, seed=seed)
    tree = jax.tree.map(np.array, unflatten(SPEC, vectors))
    for layer in ("c1", "d1"):
        tree[layer]["var"] = np.abs(tree[layer]["var"]) + 0.1
    return np.array(flatten(SPEC, tree)), tree


def normalised(z, own, mean, var):
    shape = (1, -1) + (1,) * (z.ndim - 2)
    mean, var, scale, shift = (v.reshape(shape) for v in (mean, var, own["scale"], own["shift"]))
    return scale * (z - mean) / np.sqrt(var + 1e-5) + shift


def statistics(z):
    axes = (0, *range(2, z.ndim))
    return z.mean(axes), z.var(axes, ddof=1)


def expected(tree, member):
    """{layer: (mean, var)} in float64, layer by layer."""
    own = {
        layer: {name: np.asarray(leaf[member], np.float64) for name, leaf in leaves.items()}
        for layer, leaves in tree.items()
    }
    x = ((PIXELS / 255 - IMAGES.mean) / IMAGES.std).transpose(0, 3, 1, 2)
    kernels = own["c1"]["kernel"].transpose(3, 2, 0, 1)  # (out, in, height, width)
    z = np.array([[correlate(image, kernel, "valid")[0] for kernel in kernels] for image in x])
    found = {"c1": statistics(z)}
    z = normalised(z, own["c1"], *found["c1"])
    n, c, h, w = z.shape
    x = np.maximum(z.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5)), 0).reshape(n, -1)
    found["d1"] = statistics(x @ own["d1"]["kernel"] + own["d1"]["bias"])
    return found


@pytest.mark.parametrize("batch_size", [None, 2])
def test_statistics_equal_numpys(batch_size):
    vectors, tree = networks(3)
    updated = unflatten(SPEC, update_batch_norm(SPEC, vectors, IMAGES, batch_size=batch_size))
    for member in range(3):
        for layer, (mean, var) in expected(tree, member).items():
            np.testing.assert_allclose(updated[layer]["mean"][member], mean, atol=1e-5)
            np.testing.assert_allclose(updated[layer]["var"][member], var, rtol=1e-4)
    for layer, leaves in tree.items():  # and nothing else is touched
        for name in {"kernel", "bias", "scale", "shift"} & set(leaves):
            np.testing.assert_array_equal(updated[layer][name], leaves[name])


def test_old_statistics_do_not_matter():
    vectors, _ = networks(2)
    once = update_batch_norm(SPEC, vectors, IMAGES)
    np.testing.assert_array_equal(update_batch_norm(SPEC, once, IMAGES), once)


def test_a_network_that_is_not_finite_leaves_the_others_alone():
    vectors, _ = networks(3)
    vectors[1, 0] = np.nan
    updated = np.asarray(update_batch_norm(SPEC, vectors, IMAGES))
    assert np.isnan(updated[1]).sum() > 1
    np.testing.assert_array_equal(updated[[0, 2]], update_batch_norm(SPEC, vectors[[0, 2]], IMAGES))


def test_what_cannot_be_measured_is_refused():
    vectors, _ = networks(1)
    with pytest.raises(HyperJaxError, match="two or more"):
        update_batch_norm(SPEC, vectors, IMAGES._replace(pixels=PIXELS[:1]))
    with pytest.raises(HyperJaxError, match=r"\[n, 8, 8, 2\]"):
        update_batch_norm(SPEC, vectors, IMAGES._replace(pixels=PIXELS[:, :4]))
    plain = WeightSpec((LayerSpec("d1", "dense", (4, 128)),), "relu", (8, 8))
    with pytest.raises(HyperJaxError, match="no layer of d1 has batch normalisation"):
        update_batch_norm(plain, random_vectors(1, plain), IMAGES)
