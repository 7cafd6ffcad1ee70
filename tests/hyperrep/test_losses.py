import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import r2_score

from hyperjax import weights
from hyperjax.hyperrep import losses
from hyperjax.weights import LayerSpec, WeightSpec

# two layers of 3 and 2 parameters, as in the check of the published code
SPEC = WeightSpec(
    (LayerSpec("first", "dense", (1, 2)), LayerSpec("second", "dense", (1, 1))), "tanh"
)
TARGET = np.float32([[1, 2, 3, 10, 20], [2, 3, 5, 30, 10], [0, 1, 1, 5, 5]])
PREDICTION = TARGET + np.float32([[0.5, -0.5, 0.1, 2, 1]])
ONES = np.ones(2, np.float32)


def test_layer_wise_normalisation_on_the_published_check():
    scale = weights.layer_std(SPEC, TARGET)
    loss, parts = losses.reconstruction(SPEC, PREDICTION, TARGET, scale)
    assert loss == pytest.approx(0.0557, abs=5e-5)
    np.testing.assert_allclose(parts, [0.0453, 0.0103], atol=5e-5)
    assert parts.shape == (2,)
    np.testing.assert_allclose(parts.sum(), loss, rtol=1e-6)


def test_without_normalisation_it_is_the_mean_squared_error():
    loss, parts = losses.reconstruction(SPEC, PREDICTION, TARGET, ONES)
    error = (PREDICTION - TARGET).astype(np.float64) ** 2
    np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)
    np.testing.assert_allclose(parts, [error[:, :3].sum() / 15, error[:, 3:].sum() / 15], rtol=1e-5)


def test_normalisation_gives_layers_of_any_scale_equal_weight():
    """Rescaling one layer's weights together with its coefficient changes nothing."""
    factor = np.float32([[1, 1, 1, 50, 50]])
    rescaled = losses.reconstruction(
        SPEC, PREDICTION * factor, TARGET * factor, np.float32([1.5, 9.8 * 50])
    )
    plain = losses.reconstruction(SPEC, PREDICTION, TARGET, np.float32([1.5, 9.8]))
    np.testing.assert_allclose(rescaled[1], plain[1], rtol=1e-5)


def test_slot_scale():
    scale = losses.slot_scale(SPEC, np.float32([2, 7]))
    np.testing.assert_array_equal(scale, [2, 2, 2, 7, 7])
    assert scale.dtype == jnp.float32


VIEW_I = np.float32([[1, 0], [0, 1], [1, 1]])
VIEW_J = np.float32([[1, 0.5], [-0.5, 1], [1, 0]])


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 1.464555), (1.0, 1.311589)])
def test_contrast_on_the_published_check(temperature, expected):
    assert losses.nt_xent(VIEW_I, VIEW_J, temperature) == pytest.approx(expected, abs=1e-5)


def test_contrast_equals_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 4)).astype(np.float32)
    z, total = np.concatenate([a, b]).astype(np.float64), 0.0
    for k in range(14):
        cosines = z @ z[k] / np.linalg.norm(z, axis=1) / np.linalg.norm(z[k])
        others = [j for j in range(14) if j != k]
        total += np.log(np.exp(cosines[others] / 0.3).sum()) - cosines[(k + 7) % 14] / 0.3
    assert losses.nt_xent(a, b, 0.3) == pytest.approx(total / 14, rel=1e-5)
    # symmetric in the views and blind to the lengths of the vectors
    lengths = rng.uniform(0.1, 9, (7, 1)).astype(np.float32)
    np.testing.assert_allclose(losses.nt_xent(b, a * lengths, 0.3), total / 14, rtol=1e-5)


def test_contrast_and_its_gradient_are_finite_at_the_edges():
    zero = np.zeros((2, 3), np.float32)
    assert losses.nt_xent(zero, zero, 1.0) == pytest.approx(np.log(3))
    assert losses.nt_xent(VIEW_I[:1], VIEW_J[:1], 0.1) == pytest.approx(0)  # no negatives
    view = VIEW_I.copy()
    view[1] = 0
    grad = np.asarray(jax.grad(lambda view: losses.nt_xent(view, VIEW_J, 0.1))(view))
    assert np.isfinite(grad).all()
    assert np.all(np.abs(grad[[0, 2]]).max(1) > 0)


def test_r_squared_equals_sklearn():
    """Per layer: the share of the total variance of all of its scalars that is explained."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(40, 5)).astype(np.float32) * np.float32([[1, 2, 3, 10, 20]])
    prediction = target + rng.normal(size=(40, 5)).astype(np.float32)
    scale = weights.layer_std(SPEC, target)
    result = losses.r_squared(SPEC, prediction, target, target.mean(0), scale)
    assert list(result) == ["all", "first", "second"]

    def r2(columns, factor=1.0):
        return r2_score(
            target[:, columns] / factor,
            prediction[:, columns] / factor,
            multioutput="variance_weighted",
        )

    assert result["first"] == pytest.approx(r2(slice(0, 3)), abs=1e-5)
    assert result["second"] == pytest.approx(r2(slice(3, 5)), abs=1e-5)
    assert result["all"] == pytest.approx(r2(slice(0, 5), np.repeat(scale, [3, 2])), abs=1e-5)
    assert result["first"] < 0.95 < result["second"]


def test_r_squared_is_measured_against_the_given_mean():
    mean = np.float32([1, 1, 1, 10, 10])
    result = losses.r_squared(SPEC, np.tile(mean, (3, 1)), TARGET, mean, ONES)
    assert result == {"all": 0.0, "first": 0.0, "second": 0.0}
    assert losses.r_squared(SPEC, TARGET, TARGET, mean, ONES)["all"] == 1
    error, base = ((PREDICTION - TARGET) ** 2).sum(0), ((mean[None] - TARGET) ** 2).sum(0)
    result = losses.r_squared(SPEC, PREDICTION, TARGET, mean, ONES)
    assert result["second"] == pytest.approx(1 - error[3:].sum() / base[3:].sum(), abs=1e-6)
