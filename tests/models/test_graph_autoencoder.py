"""The autoencoder whose encoder and decoder send messages along a network's own edges."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyperrep_cases import DIM, KEY, LINEAR, SPEC, VECTORS, after_steps, changed, updates_of

from hyperjax import cost, hyperrep
from hyperjax.config import ArchitectureConfig, AutoencoderConfig, GraphConfig, OptimizationConfig
from hyperjax.hyperrep import HyperRep, losses, training
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.autoencoder import Autoencoder
from hyperjax.models.graph import Embed, Readout, Round

GRAPH = GraphConfig(
    edge_dim=8, edge_hidden=12, node_dim=8, node_hidden=12, heads=2, rounds=1, condition_dim=6
)
CONFIG = changed(LINEAR, architecture={"network": "graph", "graph": GRAPH, "dropout": 0.0})


def module_of(**changes):
    return Autoencoder(dataclasses.replace(CONFIG.architecture, **changes), SPEC)


def random_params(module):
    """Parameters of which none is zero."""
    sample = jnp.zeros((1, DIM))
    params = jax.jit(lambda: module.init(KEY, sample, train=False)["params"])()
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)


@functools.partial(jax.jit, static_argnums=0)
def applied(module, params, x):
    return module.apply({"params": params}, x, train=False)


@pytest.mark.parametrize("linear_path", [True, False])
def test_at_the_start_it_is_the_linear_path(linear_path):
    module, x = module_of(linear_path=linear_path), VECTORS[:5] / 20
    params = jax.jit(lambda: module.init(KEY, x, train=False)["params"])()
    if linear_path:
        rng = np.random.default_rng(1)
        for part in ("encoder", "decoder"):
            kernel = params[part]["linear"]["kernel"]
            params[part]["linear"]["kernel"] = rng.normal(0, 0.1, kernel.shape).astype(np.float32)
    z, out, _ = applied(module, params, x)
    if linear_path:
        encoder, decoder = (params[name]["linear"]["kernel"] for name in ("encoder", "decoder"))
        np.testing.assert_allclose(z, np.tanh(x @ encoder), atol=1e-5)
        np.testing.assert_allclose(out, z @ decoder, atol=1e-5)
    else:
        np.testing.assert_array_equal(out, 0)
        assert np.std(z, axis=0).min() > 1e-3


@pytest.mark.parametrize("output", ["latents", "reconstruction"])
def test_outputs_see_all_weights_of_their_own_model_only(output):
    module = module_of()
    params, x = random_params(module), VECTORS[:3] / 20

    @jax.jit
    def gradient(x):
        def of_one(x):
            latents, outputs, _ = module.apply({"params": params}, x, train=False)
            return jnp.sum(jnp.sin((latents if output == "latents" else outputs)[1]))

        return jax.grad(of_one)(x)

    grad = np.asarray(gradient(x))
    assert np.all(grad[1] != 0)
    np.testing.assert_array_equal(np.delete(grad, 1, 0), 0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_all_but_the_linear_path_is_trained(optimizer):
    config = changed(
        CONFIG, training={"optimizer": optimizer, "weight_decay": 1.0, "warmup_steps": 0}
    )
    trainer = hyperrep.make_trainer(config, SPEC)
    params = random_params(module_of())

    updates = updates_of(trainer, params)
    fixed = [("encoder", "linear"), ("encoder", "linear_decoder"), ("decoder", "linear")]
    for part, name in fixed:
        assert not updates[part].pop(name)["kernel"].any()
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_it_learns_what_principal_components_miss():
    """Weights that are a product of others: no linear map of few latents gives them."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(600, 4))
    quadratic = np.stack([factors[:, i] * factors[:, j] for i in range(4) for j in range(i)], 1)
    vectors = factors @ rng.normal(size=(4, DIM)) + 0.5 * quadratic @ rng.normal(size=(6, DIM))
    train, held_out = np.float32(vectors[:500]), np.float32(vectors[500:])
    config = changed(
        CONFIG,
        architecture={"latent": 4},
        loss={"beta": 1.0},
        data={"augment": dataclasses.replace(CONFIG.data.augment, mix=0.0, noise=0.0, erase=0.0)},
        training={"optimizer": "muon", "learning_rate": 1e-2},
    )
    stats = hyperrep.statistics(config.data, SPEC, train)
    trainer = hyperrep.make_trainer(config, SPEC)
    placed_stats = training.place(trainer, stats)
    begun = training.begin(trainer, KEY, placed_stats)
    start = training.fit_linear(trainer, begun, stats, train).state

    def r_squared(params):
        model = HyperRep(config, SPEC, params, stats, train[0])
        outputs = hyperrep.reconstruct(model, held_out, aligned=True)
        return losses.r_squared(SPEC, outputs, held_out, train.mean(0), stats.layer_std)["all"]

    components = r_squared(jax.device_get(start.params))
    state, _ = after_steps(trainer, start, train, placed_stats, 500)
    assert r_squared(jax.device_get(state.params)) > components + 0.1


def test_cost_equals_the_count_of_xla():
    spec, graph = zoo_cnn_spec(1, "tanh"), GraphConfig(rounds=2)
    c = ArchitectureConfig(
        network="graph", graph=graph, latent=64, dropout=0.0, projection_layers=1,
        projection_hidden=16, projection_dim=8,
    )  # fmt: skip
    config = AutoencoderConfig(architecture=c, training=OptimizationConfig(batch_size=2))
    module, vectors = Autoencoder(c, spec), jnp.zeros((4, spec.num_params))
    params = jax.eval_shape(lambda: module.init(KEY, vectors, train=False))["params"]

    def loss(params):
        return sum(jnp.sum(x**2) for x in module.apply({"params": params}, vectors, train=False))

    found = jax.jit(jax.grad(loss)).lower(params).cost_analysis()["flops"]
    assert cost.autoencoder_flops(config, spec) == pytest.approx(found, rel=0.15)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost.autoencoder_params(c, spec) == pytest.approx(weights, rel=0.05)


@pytest.mark.parametrize("linear_path", [True, False])
def test_latents_and_weights_are_linear_in_networks_of_networks(linear_path):
    """z = tanh(E (x + F(x, D tanh(E x)))) and y = D z + G(D z), from the modules of both graphs."""
    module = module_of(linear_path=linear_path)
    params, x = random_params(module), VECTORS[:4] / 20
    names = ("linear", "linear") if linear_path else ("to_latent", "from_latent")
    encode, decode = (
        lambda x, p=params[part][name]: x @ p["kernel"] + p.get("bias", np.zeros(1))[None]
        for part, name in zip(("encoder", "decoder"), names, strict=True)
    )
    # what training sets beside one another
    seen = [x]
    if linear_path:
        params["encoder"]["linear_decoder"] = params["decoder"]["linear"]
        seen.append(decode(np.tanh(encode(x))))

    @functools.partial(jax.jit, static_argnums=0)
    def of_graph(part, *vectors):
        given = {name: {"params": params[part][name]} for name in params[part]}
        graph = Embed(GRAPH, SPEC).apply(given["embed"], jnp.stack(vectors, axis=1))
        graph = Round(GRAPH, SPEC).apply(given["round_0"], graph)
        return Readout(GRAPH, SPEC).apply(given["readout"], graph)

    z, out, _ = applied(module, params, x)
    np.testing.assert_allclose(z, np.tanh(encode(x + of_graph("encoder", *seen))), atol=1e-4)
    linear = decode(z)
    np.testing.assert_allclose(out, linear + of_graph("decoder", linear), atol=1e-4)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    """On one device and on two, with a contrast over the whole batch."""
    config = changed(CONFIG, loss={"beta": 0.7}, training={"batch_size": 32})
    params = random_params(module_of())
    stats = hyperrep.statistics(config.data, SPEC, VECTORS)
    vectors = jnp.asarray(VECTORS[np.arange(32) % len(VECTORS)])

    @functools.partial(jax.jit, static_argnums=0)
    def grads(trainer, params):
        return training._grads(trainer, params, stats, vectors, KEY)

    one = hyperrep.make_trainer(config, SPEC, jax.devices()[:1])
    expected = jax.jit(jax.grad(training.loss_fn, argnums=1, has_aux=True), static_argnums=0)(
        one, params, stats, vectors, KEY
    )
    for devices, size in ((1, 4), (1, 64), (2, 2), (2, 64)):
        parts = dataclasses.replace(config, micro_batch=size)
        trainer = hyperrep.make_trainer(parts, SPEC, jax.devices()[:devices])
        assert trainer.mesh.size == devices
        found = grads(trainer, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
