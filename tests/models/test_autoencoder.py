import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import hyperrep, weights
from hyperjax.config import ArchitectureConfig, AutoencoderConfig, LossConfig, OptimizationConfig
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.autoencoder import Attention, Autoencoder, Block, Dropout
from hyperjax.weights import LayerSpec, WeightSpec

SPEC = WeightSpec(
    (
        LayerSpec("c", "conv", (3, 1, 2, 2), pool="max"),
        LayerSpec("d", "dense", (4, 12)),
        LayerSpec("e", "dense", (2, 4)),
    ),
    "tanh",
)  # 77 parameters, 9 tokens
TINY = ArchitectureConfig(
    dim=16, heads=2, mlp_dim=24, blocks=1, latent=8, dropout=0.1, projection_layers=1,
    projection_hidden=6, projection_dim=4, linear_path=False,
)  # fmt: skip
COMPRESSIONS = ("token", "linear")


def with_(**changes):
    return dataclasses.replace(TINY, **changes)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(5, SPEC.num_params)).astype(np.float32)


def random_params(module, seed=0):
    """Parameters of which none is zero, drawn without the module's own initialisers."""
    sample = jnp.zeros((1, SPEC.num_params))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), sample, train=False)["params"])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    params["encoder"]["bottleneck"]["kernel"] /= 4  # far from the ends of tanh
    return params


# --- the same computation in NumPy, float64 -------------------------------------------------


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def attention(x, p):
    """Two heads of 8; the kernel of `kv` holds the keys of both, then the values."""

    def heads(x):
        return x.reshape(*x.shape[:2], 2, 8).swapaxes(1, 2)

    q, k, v = map(heads, (dense(x, p["q"]), *np.split(dense(x, p["kv"]), 2, axis=-1)))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(8)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return dense((shares @ v).swapaxes(1, 2).reshape(x.shape), p["out"])


def block(x, p):
    x = x + attention(layer_norm(x, p["norm_attention"]), p["attention"])
    hidden = np.maximum(dense(layer_norm(x, p["norm_mlp"]), p["mlp_in"]), 0)
    return x + dense(hidden, p["mlp_out"])


def encode(vectors, p, compression):
    tokens = weights.tokenize(SPEC, vectors)
    parts = [dense(np.asarray(t), p[f"embed_{n}"]) for n, t in zip(SPEC.names, tokens, strict=True)]
    x = np.concatenate(parts, 1)
    if compression == "token":
        x = np.concatenate([np.repeat(p["compression_token"], len(x), 0), x], 1)
    x = block(x + p["positions"], p["block_0"])
    pooled = {"token": x[:, 0], "linear": x.reshape(len(x), -1)}
    linear = vectors @ p["linear"]["kernel"] if "linear" in p else 0
    return np.tanh(dense(pooled[compression], p["bottleneck"]) + linear)


def decode(latents, p):
    x = dense(latents, p["expand"]).reshape(len(latents), 9, 16) + p["positions"]
    x = block(x, p["block_0"])
    parts = []
    for layer, first in zip(SPEC.layers, (0, 3, 7), strict=True):
        tokens = dense(x[:, first : first + layer.num_neurons], p[f"unembed_{layer.name}"])
        parts += [tokens[:, :, :-1].reshape(len(x), -1), tokens[:, :, -1]]
    linear = latents @ p["linear"]["kernel"] if "linear" in p else 0
    return np.concatenate(parts, 1) + linear


@pytest.mark.parametrize(
    ("compression", "linear_path"), [*((c, False) for c in COMPRESSIONS), ("token", True)]
)
def test_equals_the_same_computation_in_numpy(vectors, compression, linear_path):
    module = Autoencoder(with_(compression=compression, linear_path=linear_path), SPEC)
    params = random_params(module)
    if linear_path:
        params["encoder"]["linear"]["kernel"] /= 4
    apply = jax.jit(lambda params, x: module.apply({"params": params}, x, train=False))
    z, out, projections = apply(params, vectors)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    expected = encode(vectors.astype(np.float64), wide["encoder"], compression)
    np.testing.assert_allclose(z, expected, atol=1e-4)
    np.testing.assert_allclose(out, decode(expected, wide["decoder"]), atol=1e-3)
    head = wide["head"]
    hidden = np.maximum(layer_norm(dense(expected, head["hidden_0"]), head["norm_0"]), 0)
    np.testing.assert_allclose(projections, dense(hidden, head["out"]), atol=1e-3)
    assert (z.shape, out.shape, projections.shape) == ((5, 8), (5, 77), (5, 4))
    assert 0.2 < np.abs(z).max() <= 1  # in float32 the tanh saturates


# --- what follows from the architecture -----------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_latents_see_all_weights_of_their_own_model_only(vectors, compression):
    module = Autoencoder(with_(compression=compression), SPEC)
    params = random_params(module)

    @jax.jit
    def gradient(x):
        return jax.grad(
            lambda x: jnp.sum(module.apply({"params": params}, x, method="encode")[2] ** 2)
        )(x)

    grad = np.asarray(gradient(vectors))
    assert np.all(grad[2] != 0)
    np.testing.assert_array_equal(np.delete(grad, 2, 0), 0)


def test_an_untrained_decoder_gives_zero(vectors):
    module = Autoencoder(TINY, SPEC)

    @jax.jit
    def run(key):
        params = module.init(key, vectors, train=False)["params"]
        return params, module.apply({"params": params}, vectors, train=False)

    params, (z, out, _) = run(jax.random.key(0))
    np.testing.assert_array_equal(out, 0)
    assert np.abs(z).max() < 1
    assert np.std(z, axis=0).min() > 1e-3  # while the latents already tell the models apart
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_beside_a_linear_path_the_attention_starts_at_zero(vectors):
    module = Autoencoder(with_(linear_path=True), SPEC)

    @jax.jit
    def run(key):
        params = module.init(key, vectors, train=False)["params"]
        return params, module.apply({"params": params}, vectors, train=False)

    params, (z, out, _) = run(jax.random.key(0))
    encoder, decoder = (params[name]["linear"]["kernel"] for name in ("encoder", "decoder"))
    np.testing.assert_allclose(z, np.tanh(vectors @ encoder), atol=1e-5)
    np.testing.assert_allclose(out, z @ decoder, atol=1e-5)


def test_without_tanh_latents_are_not_bounded(vectors):
    params = random_params(Autoencoder(TINY, SPEC))
    params["encoder"]["bottleneck"]["kernel"] *= 12
    z, raw = (
        Autoencoder(with_(tanh=tanh), SPEC).apply({"params": params}, vectors, method="encode")
        for tanh in (True, False)
    )
    assert np.abs(raw).max() > 1
    np.testing.assert_allclose(z, np.tanh(raw), atol=1e-5)


def test_bfloat16_stays_close(vectors):
    params = random_params(Autoencoder(TINY, SPEC))
    results = []
    for dtype in ("float32", "bfloat16"):
        module = Autoencoder(with_(dtype=dtype), SPEC)
        results.append(
            jax.jit(lambda x, m=module: m.apply({"params": params}, x, train=False))(vectors)
        )
    for full, half in zip(*results, strict=True):
        assert half.dtype == jnp.float32
        difference = np.linalg.norm(full - half) / np.linalg.norm(full)
        assert 0 < difference < 0.03


def test_the_softmax_is_float32_whatever_the_activations_are():
    """Tokens and kernels that are exact in bfloat16 and make the outputs the attention's shares:
    those of float64, rounded once."""
    tokens = 64
    eye, rng = np.eye(tokens, dtype=np.float32), np.random.default_rng(0)
    queries = rng.integers(-24, 25, (tokens, tokens)).astype(np.float32)
    params = {"q": queries, "kv": np.concatenate([eye, eye], axis=1), "out": eye}
    params = {
        name: {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}
        for name, kernel in params.items()
    }
    module = Attention(heads=1, dropout=0.0, dtype=jnp.bfloat16)
    shares = module.apply({"params": params}, eye[None], eye[None], train=False)[0]
    assert shares.dtype == jnp.bfloat16
    scores = queries.astype(np.float64) / np.sqrt(tokens)  # multiples of 1/8
    exact = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rounded = exact.astype(np.float32).astype(jnp.bfloat16)
    assert np.mean(np.asarray(shares) == rounded) > 0.999  # but for float32's own rounding
    np.testing.assert_allclose(np.asarray(shares, np.float64), exact, rtol=2**-8)
    coarse = jnp.exp(jnp.asarray(scores, jnp.bfloat16))  # what the test would not let pass
    coarse = coarse / coarse.sum(axis=1, keepdims=True)
    assert np.mean(np.asarray(coarse) == rounded) < 0.9


def test_dropout_acts_in_training_only(vectors):
    module = Autoencoder(with_(dropout=0.5), SPEC)
    params = random_params(module)

    @jax.jit
    def run(key):
        return module.apply({"params": params}, vectors, train=True, rngs={"dropout": key})[:2]

    (z, out), (other_z, other_out) = run(jax.random.key(0)), run(jax.random.key(1))
    assert not np.allclose(z, other_z, atol=1e-3)
    assert not np.allclose(out, other_out, atol=1e-3)


def test_dropout_acts_on_attention_and_on_residuals():
    """Residual dropout alone would give every scalar of the branch one of two values."""
    block = Block(heads=2, mlp_dim=8, dropout=0.5, dtype=jnp.float32)
    x = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
    params = block.init(jax.random.key(0), x, train=False)["params"]
    params["mlp_out"] = jax.tree.map(jnp.zeros_like, params["mlp_out"])

    @jax.jit
    def branch(key):
        return block.apply({"params": params}, x, train=True, rngs={"dropout": key}) - x

    values = np.asarray(jax.vmap(branch)(jax.random.split(jax.random.key(1), 40)))[:, 0, 2, 3]
    dropped = np.abs(values) < 1e-6
    assert 8 < dropped.sum() < 32
    assert len(np.unique(values[~dropped].round(4))) > 4


@pytest.mark.parametrize(("rate", "width"), [(0.1, 64), (0.5, 7), (0.9, 1)])
def test_dropout_keeps_the_mean(rate, width):
    """The share of zeros is the rate to the nearest 1/256; draws do not repeat."""
    x = np.ones((2_000, width), np.float32)
    out = np.asarray(Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
    share, deviation = round(256 * rate) / 256, np.sqrt(0.25 / x.size)
    assert (out == 0).mean() == pytest.approx(share, abs=5 * deviation)
    np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - share)], rtol=1e-6)
    if width > 1:
        for column in (1, min(4, width - 1)):  # of the same word, and of the next
            assert abs(np.corrcoef(out[:, 0], out[:, column])[0, 1]) < 0.1
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.001).apply({}, x, train=True), x)


def test_without_projection_layers_the_contrast_is_on_the_latents(vectors):
    module = Autoencoder(with_(projection_layers=0), SPEC)
    params = random_params(module)
    assert "head" not in params
    z, _, projections = module.apply({"params": params}, vectors, train=False)
    np.testing.assert_array_equal(z, projections)


# --- sizes ----------------------------------------------------------------------------------


def shapes_of(config, spec):
    module = Autoencoder(config, spec)
    sample = jnp.zeros((1, spec.num_params))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), sample, train=False)["params"])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6


def test_sizes_are_those_of_the_published_autoencoder():
    """2021's MNIST seed zoo: millions of parameters, as reported for the published code."""
    published = ArchitectureConfig(
        dim=800, heads=4, mlp_dim=900, blocks=2, latent=700, compression="token",
        projection_layers=4, projection_hidden=400, projection_dim=50, linear_path=False,
    )  # fmt: skip
    params = shapes_of(published, zoo_cnn_spec(1, "tanh"))
    assert count(params["encoder"]) == pytest.approx(8.87, abs=0.005)
    assert count(params["decoder"]) == pytest.approx(35.2, abs=0.05)
    assert count(params) == pytest.approx(44.9, abs=0.05)
    assert count(shapes_of(published, zoo_cnn_spec(3, "tanh"))) == pytest.approx(45.0, abs=0.05)
    linear = dataclasses.replace(published, compression="linear")
    assert count(shapes_of(linear, zoo_cnn_spec(1, "tanh"))) == pytest.approx(71.2, abs=0.05)


@pytest.mark.parametrize(("compression", "positions"), [("token", 49), ("linear", 48)])
def test_one_embedding_per_layer_and_one_position_per_token(compression, positions):
    config = with_(compression=compression)
    encoder = shapes_of(config, zoo_cnn_spec(1, "tanh"))["encoder"]
    assert encoder["positions"].shape == (1, positions, 16)
    sizes = [encoder[f"embed_{name}"]["kernel"].shape for name in zoo_cnn_spec(1, "tanh").names]
    assert sizes == [(size, 16) for size in (26, 201, 25, 37, 21)]


def test_modules_differ_by_architecture_only():
    module = Autoencoder(TINY, SPEC)
    trained_otherwise = AutoencoderConfig(
        architecture=with_(),
        loss=LossConfig(lwln=False, beta=0.5),
        training=OptimizationConfig(learning_rate=1.0, batch_size=3, steps=1),
    )
    other = hyperrep.make_trainer(trained_otherwise, SPEC).module
    assert other == module
    assert hash(other) == hash(module)
    for changes in (
        {"dim": 32}, {"tanh": False}, {"dtype": "bfloat16"}, {"projection_dim": 5},
        {"linear_path": True},
    ):  # fmt: skip
        assert Autoencoder(with_(**changes), SPEC) != module
