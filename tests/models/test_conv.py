import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.errors import HyperJaxError
from hyperjax.models import conv

SHAPES = [  # inputs CxHxWxN, kernel height x width x C x O
    ((1, 9, 9, 4), (5, 5, 1, 3)),
    ((3, 6, 5, 2), (2, 3, 3, 4)),
    ((2, 4, 4, 1), (4, 4, 2, 1)),
    ((2, 3, 4, 3), (1, 1, 2, 5)),
]


def random_case(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def direct(x, kernel):
    """Cross-correlation from its definition, in float64."""
    (_, h, w, n), (kh, kw, _, o) = x.shape, kernel.shape
    out = np.zeros((o, h - kh + 1, w - kw + 1, n))
    for i, j in np.ndindex(out.shape[1:3]):
        window = x[:, i : i + kh, j : j + kw].astype(np.float64)
        out[:, i, j] = np.einsum("chwn,hwco->on", window, kernel)
    return out


@pytest.mark.parametrize("form", conv.FORMS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_every_form_equals_the_definition(form, shapes):
    x, kernel = random_case(shapes)
    result = conv.conv2d(x, kernel, form=form)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, direct(x, kernel), atol=2e-5)


@pytest.mark.parametrize("shapes", SHAPES[:2])
def test_gradients_equal_those_of_xla(shapes):
    x, kernel = random_case(shapes)
    cotangent = np.random.default_rng(1).normal(size=direct(x, kernel).shape).astype(np.float32)

    def gradients(form):
        _, pull = jax.vjp(lambda x, k: conv.conv2d(x, k, form=form), x, kernel)
        return pull(cotangent)

    grad_x, grad_kernel = gradients("patches")
    other_x, other_kernel = gradients("xla")
    np.testing.assert_allclose(grad_x, other_x, atol=2e-5)
    np.testing.assert_allclose(grad_kernel, other_kernel, atol=2e-5)
    # and those of the definition: the output is linear in one entry of the kernel
    unit = np.zeros_like(kernel)
    unit[1, 0, 0, 1] = 1
    np.testing.assert_allclose(
        grad_kernel[1, 0, 0, 1], np.sum(direct(x, unit) * cotangent), rtol=1e-4
    )


def test_members_can_be_mapped():
    x, kernel = random_case([(1, 6, 6, 2), (3, 2, 2, 1, 4)])
    out = jax.vmap(lambda k: conv.conv2d(x, k, form="patches"))(kernel)
    np.testing.assert_allclose(out[2], direct(x, kernel[2]), atol=2e-5)
    grads = jax.vmap(jax.grad(lambda k: jnp.sum(conv.conv2d(x, k, form="patches") ** 2)))(kernel)
    alone = jax.grad(lambda k: jnp.sum(conv.conv2d(x, k, form="xla") ** 2))(kernel[2])
    np.testing.assert_allclose(grads[2], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["patches", "xla"])
@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (3, 0), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("shapes", SHAPES)
def test_strides_and_padding(shapes, stride, padding, form):
    """By every second output, say, of the definition on a padded input; and their gradients."""
    x, kernel = random_case(shapes)
    rims = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    expected = direct(np.pad(x, rims), kernel)[:, ::stride, ::stride]
    settings = {"stride": stride, "padding": padding}
    found, pull = jax.vjp(lambda x, k: conv.conv2d(x, k, form=form, **settings), x, kernel)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    cotangent = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    grad_x, grad_kernel = pull(cotangent)
    for number in range(3):  # along directions, by linearity
        dx, dk = random_case(shapes, seed=2 + number)
        of_x = direct(np.pad(dx, rims), kernel)[:, ::stride, ::stride]
        of_kernel = direct(np.pad(x, rims), dk)[:, ::stride, ::stride]
        np.testing.assert_allclose(
            np.vdot(grad_x, dx), np.vdot(cotangent, of_x), rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(
            np.vdot(grad_kernel, dk), np.vdot(cotangent, of_kernel), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize("window", [1, 2, 3, 0])
@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (4, 6), (7, 5)])
def test_pooling_equals_numpy(kind, window, rows, columns):
    """What no window covers is dropped; window 0 takes all."""
    (x,) = random_case([(2, rows, columns, 3)])
    down, across = (window, window) if window else (rows, columns)
    expected = np.stack([
        [
            getattr(x[:, i : i + down, j : j + across], kind)((1, 2))
            for j in range(0, columns - across + 1, across)
        ]
        for i in range(0, rows - down + 1, down)
    ]).transpose(2, 0, 1, 3)  # fmt: skip
    np.testing.assert_allclose(conv.pool(x, kind, window), expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_max_pool_goes_to_the_largest():
    x = np.random.default_rng(0).permutation(64).reshape(2, 4, 4, 2).astype(np.float32)
    grad = jax.grad(lambda x: jnp.sum(conv.pool(x, "max", 2)))(x)
    largest = x == np.repeat(np.repeat(np.asarray(conv.pool(x, "max", 2)), 2, 1), 2, 2)
    np.testing.assert_array_equal(grad, largest)


def test_names():
    for backend in ("cpu", "gpu", "tpu"):
        assert conv.default_form(backend) in conv.FORMS
    with pytest.raises(HyperJaxError, match=r"'winograd'.*patches, tiles, xla"):
        conv.conv2d(*random_case(SHAPES[0]), form="winograd")


# --- pooling ------------------------------------------------------------------------------

POOLED = [  # inputs CxHxWxN, kernel: those of the zoo CNN, then odd sizes of their own
    ((1, 28, 28, 3), (5, 5, 1, 8)),
    ((3, 12, 12, 2), (5, 5, 3, 2)),
    ((2, 6, 8, 1), (3, 1, 2, 4)),
    ((2, 7, 10, 2), (3, 5, 2, 3)),  # an odd number of outputs: the last row is in no window
    ((2, 5, 7, 2), (2, 4, 2, 3)),  # an even kernel: the form "tiles" falls back to patches
]


def direct_pool(x):
    """2 x 2 max-pooling from its definition, and which of the four positions is the first."""
    o, h, w, n = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    windows = x.reshape(o, h // 2, 2, w // 2, 2, n).transpose(0, 1, 3, 5, 2, 4)
    windows = windows.reshape(o, h // 2, w // 2, n, 4)
    return windows.max(-1), windows.argmax(-1)


@pytest.mark.parametrize("form", conv.FORMS)
@pytest.mark.parametrize("shapes", POOLED)
def test_convolution_with_pooling_equals_the_definition(form, shapes):
    x, kernel = random_case(shapes)
    result = conv.conv2d_pool(x, kernel, form=form)
    np.testing.assert_allclose(result, direct_pool(direct(x, kernel))[0], atol=5e-5)


@pytest.mark.parametrize("form", ["tiles", "patches"])
@pytest.mark.parametrize("shapes", POOLED[:4])
def test_gradients_of_pooling_equal_those_of_the_definition(form, shapes):
    x, kernel = random_case(shapes)
    full = direct(x, kernel)
    pooled, winner = direct_pool(full)
    cotangent = np.random.default_rng(1).normal(size=pooled.shape).astype(np.float32)
    spread = np.zeros(full.shape, np.float32)  # the cotangent of what went into the pooling
    for index in np.ndindex(pooled.shape):
        row, col = divmod(winner[index], 2)
        spread[index[0], 2 * index[1] + row, 2 * index[2] + col, index[3]] = cotangent[index]
    _, pull = jax.vjp(lambda x, k: conv.conv2d_pool(x, k, form=form), x, kernel)
    _, pull_conv = jax.vjp(lambda x, k: conv.conv2d(x, k, form="xla"), x, kernel)
    for ours, expected in zip(pull(cotangent), pull_conv(spread), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (12, 12)])
def test_the_gradient_of_a_global_maximum(rows, columns):
    """To the first of equal ones, however many positions there are."""
    x = np.zeros((2, rows, columns, 1), np.float32)
    x[1, -1, -2:] = 1
    grad = jax.jit(jax.grad(lambda x: conv.pool(x, "max", 0).sum()))(x)
    expected = np.zeros_like(x)
    expected[0, 0, 0] = expected[1, -1, -2] = 1
    np.testing.assert_array_equal(grad, expected)


def test_the_gradient_of_a_tie_goes_to_the_first_maximum():
    """As in PyTorch. Empty borders of images tie all the time."""
    x = np.zeros((1, 2, 2, 3), np.float32)
    x[0, :, :, 1] = [[0, 5], [5, 5]]
    x[0, :, :, 2] = [[0, 1], [2, 2]]
    grad = jax.grad(lambda x: conv.pool(x, "max", 2).sum())(x)
    np.testing.assert_array_equal(grad[0, :, :, 0], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(grad[0, :, :, 1], [[0, 1], [0, 0]])
    np.testing.assert_array_equal(grad[0, :, :, 2], [[0, 0], [1, 0]])


def test_computed_once_changes_nothing():
    x = np.float32([[[[1.5, -2, np.inf, np.nan]]]])
    for value in (x, x[..., ::-1], np.zeros((2, 1, 1, 3), np.float32)):
        np.testing.assert_array_equal(jax.jit(conv.computed_once)(value), value)
    rows = np.float32(np.random.default_rng(0).normal(size=(3, 2, 1, 1, 4)))
    np.testing.assert_array_equal(jax.vmap(conv.computed_once)(rows), rows)
    weighed = jax.grad(lambda x: jnp.sum(rows[0] * conv.computed_once(x)))(rows[1])
    np.testing.assert_array_equal(weighed, rows[0])
