"""The variational autoencoder against closed forms, Monte Carlo and scikit-learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.decomposition import PCA

from hyperjax import config as config_lib
from hyperjax import hyperrep
from hyperjax.analysis import posterior
from hyperjax.app import train_hyperrep
from hyperjax.config import AugmentConfig, AutoencoderConfig, Config
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.models.autoencoder import make_autoencoder
from hyperjax.store import hyperrep_file, workdir
from hyperjax.weights import LayerSpec, WeightSpec

SPEC = WeightSpec(
    (LayerSpec("c", "conv", (3, 1, 2, 2), pooled=True), LayerSpec("d", "dense", (4, 12))), "tanh"
)
SIZES, DIM = [15, 52], 67
PLAIN = AugmentConfig(erase=0.0)
BASE = AutoencoderConfig(
    dim=16, heads=2, mlp_dim=24, blocks=1, latent=6, dropout=0.0, projection_layers=1,
    projection_hidden=6, projection_dim=4, batch_size=32, learning_rate=3e-3, warmup_steps=0,
    schedule="constant", linear_path=False, augment=PLAIN, beta=1.0, tanh=False,
)  # fmt: skip
VAE = dataclasses.replace(BASE, kl=0.2)
LINEAR = dataclasses.replace(VAE, linear_path=True)
KEY = jax.random.key(0)


def make_vectors(count=100):
    """Three strong factors and noise, with layers of different scale."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, 3)) @ rng.normal(size=(3, DIM))
    values += 0.3 * rng.normal(size=(count, DIM))
    return np.float32(values * np.repeat([0.1, 5], SIZES) + np.repeat([0.5, -1], SIZES))


VECTORS = make_vectors()
STATS = hyperrep.statistics(BASE, SPEC, VECTORS)
UNITS = np.repeat(STATS.layer_std, SIZES)


@functools.cache
def started(config):
    """The state before training, not to be donated."""
    trainer = hyperrep.make_trainer(config, SPEC)
    state = hyperrep.init(trainer, KEY)
    if config.linear_path:
        state = hyperrep.principal_components(trainer, state, STATS, VECTORS)
    return trainer, state


def model_of(config, state):
    return HyperRep(config, SPEC, jax.tree.map(np.asarray, state.params), STATS, VECTORS[0])


@pytest.fixture(scope="module")
def random_model():
    """A VAE of which every parameter matters."""
    _, state = started(VAE)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: (leaf + rng.normal(0, 0.2, leaf.shape)).astype(np.float32), state.params
    )
    return HyperRep(VAE, SPEC, params, STATS, VECTORS[0])


# --- the divergence ---------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.3), (-0.7, 2.0)])
def test_divergence_equals_monte_carlo(mean, std):
    ours = float(losses.gaussian_kl(jnp.float32(mean), jnp.float32(2 * np.log(std))))
    posterior, prior = scipy.stats.norm(mean, std), scipy.stats.norm()
    x = posterior.rvs(200_000, random_state=0)
    ratios = posterior.logpdf(x) - prior.logpdf(x)
    assert ours == pytest.approx(ratios.mean(), abs=5 * ratios.std() / np.sqrt(len(x)) + 1e-6)
    exact = posterior.expect(lambda x: posterior.logpdf(x) - prior.logpdf(x))
    assert ours == pytest.approx(exact, abs=1e-5)


def test_divergence_is_never_negative_and_smooth():
    log_variance = jnp.float32([-40, -3e-4, 0, 3e-4, 10])
    values = losses.gaussian_kl(jnp.zeros(5), log_variance)
    wide = np.asarray(log_variance, np.float64)
    np.testing.assert_allclose(values, (np.expm1(wide) - wide) / 2, rtol=1e-2, atol=1e-12)
    assert np.all(np.asarray(values) >= 0)
    slope = jax.grad(lambda m, v: losses.gaussian_kl(m, v).sum(), (0, 1))
    by_mean, by_log = slope(jnp.float32([0.3]), jnp.float32([0.4]))
    np.testing.assert_allclose(by_mean, [0.3], rtol=1e-6)
    np.testing.assert_allclose(by_log, [(np.exp(0.4) - 1) / 2], rtol=1e-5)


# --- the module -------------------------------------------------------------------------------


def apply(model, vectors, **kwargs):
    module = make_autoencoder(model.config, SPEC)
    inputs = hyperrep.to_inputs(SPEC, STATS, vectors)
    return module.apply({"params": model.params}, inputs, **kwargs)


def test_samples_follow_the_posterior(random_model):
    """Their mean and spread, seen through the decoder of a linear path."""
    _, state = started(LINEAR)
    model = model_of(LINEAR, state)
    vectors = np.repeat(VECTORS[:1], 4000, 0)
    run = jax.jit(lambda x, key: apply(model, x, train=True, rngs={"latent": key})[:2])
    (mean, log_variance), outputs = run(vectors, KEY)
    weights = np.asarray(model.params["decoder"]["linear"]["kernel"], np.float64)
    np.testing.assert_allclose(outputs.mean(0), mean[0] @ weights, atol=0.1)
    expected = weights.T @ np.diag(np.exp(log_variance[0])) @ weights
    np.testing.assert_allclose(np.cov(outputs.T), expected, atol=0.05 * expected.max())
    other = run(vectors, jax.random.key(1))[1]
    assert not np.allclose(outputs, other)


def test_encode_gives_the_mean_and_decodes_it(random_model):
    mean, log_variance = hyperrep.posterior(random_model, VECTORS)
    np.testing.assert_array_equal(hyperrep.encode(random_model, VECTORS), mean)
    assert mean.shape == log_variance.shape == (100, 6)
    assert np.std(log_variance, axis=0).min() > 1e-3  # it depends on the network
    run = jax.jit(lambda x: apply(random_model, x, train=False))
    latents, outputs, projections = run(VECTORS)
    np.testing.assert_allclose(latents.mean, mean, atol=1e-5)
    decoded = hyperrep.from_outputs(SPEC, STATS, outputs)
    np.testing.assert_allclose(decoded, hyperrep.reconstruct(random_model, VECTORS), atol=1e-3)
    assert projections.shape == (100, 4)


def test_projections_are_of_the_mean(random_model):
    run = jax.jit(lambda key: apply(random_model, VECTORS, train=True, rngs={"latent": key}))
    (_, out, first), (_, other_out, second) = run(KEY), run(jax.random.key(1))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(out, other_out)


def test_without_kl_nothing_changes():
    """The same tree of parameters and the same numbers, whatever the settings of a VAE."""
    trainer, state = started(BASE)
    warm = hyperrep.make_trainer(dataclasses.replace(BASE, kl_warmup=100), SPEC)
    assert "log_variance" not in state.params["encoder"]
    assert trainer.module == warm.module
    key_data = jax.random.key_data(KEY)
    programs = {
        str(jax.make_jaxpr(lambda p, k, t=t, step=step: hyperrep.loss_fn(
            t, p, STATS, VECTORS, jax.random.wrap_key_data(k), step))(state.params, key_data))
        for t in (trainer, warm)
        for step in (None, 3)
    }  # fmt: skip
    assert len(programs) == 1
    _, of_vae = started(VAE)
    params = jax.tree.map(lambda leaf: leaf, of_vae.params)
    assert params["encoder"].pop("log_variance")["kernel"].shape == (16, 6)
    shapes = jax.tree.map(jnp.shape, (params, state.params))
    assert shapes[0] == shapes[1]
    with pytest.raises(HyperJaxError, match=r"no VAE: its autoencoder\.kl is 0"):
        hyperrep.posterior(model_of(BASE, state), VECTORS)


def test_vaes_that_differ_in_weight_share_a_compilation():
    other = dataclasses.replace(VAE, kl=0.7, kl_warmup=3)
    assert make_autoencoder(VAE, SPEC) == make_autoencoder(other, SPEC)
    assert make_autoencoder(VAE, SPEC) != make_autoencoder(BASE, SPEC)


# --- the linear VAE in closed form ------------------------------------------------------------


def test_the_linear_path_is_probabilistic_principal_components():
    """scikit-learn's maximum likelihood of the same noise has the same covariance; its latents'
    posterior is ours."""
    _, state = started(LINEAR)
    model = model_of(LINEAR, state)
    data = (VECTORS - VECTORS.mean(0)) / UNITS
    pca = PCA().fit(data.astype(np.float64))
    variances = pca.explained_variance_ * (len(data) - 1) / len(data)
    kept = int(np.sum(variances[:6] > 0.2))
    assert kept < 6  # some latents collapse
    weights = np.asarray(model.params["decoder"]["linear"]["kernel"], np.float64)
    axes = pca.components_[:kept]
    expected = axes.T @ np.diag(variances[:kept] - 0.2) @ axes
    np.testing.assert_allclose(weights.T @ weights, expected, atol=1e-3)
    # the posterior of the model x = W z + noise, by Bayes' rule
    mean, log_variance = hyperrep.posterior(model, VECTORS)
    covariance = np.linalg.inv(np.eye(6) + weights @ weights.T / 0.2)
    np.testing.assert_allclose(mean, data @ weights.T @ covariance / 0.2, atol=2e-3)
    np.testing.assert_allclose(np.exp(log_variance), np.tile(np.diag(covariance), (100, 1)),
                               rtol=1e-3)  # fmt: skip
    together = np.cov(mean.T, ddof=0) + covariance
    np.testing.assert_allclose(together, np.eye(6), atol=2e-3)  # the prior


def test_its_bound_is_the_likelihood():
    """At the optimum of a linear VAE the bound is tight: it equals the density of the data under
    N(0, W W' + s^2), which SciPy knows."""
    trainer, state = started(LINEAR)
    model = model_of(LINEAR, state)
    weights = np.asarray(model.params["decoder"]["linear"]["kernel"], np.float64)
    density = scipy.stats.multivariate_normal(
        np.zeros(DIM), weights.T @ weights + 0.2 * np.eye(DIM)
    )
    data = (VECTORS - VECTORS.mean(0)) / UNITS
    bounds = [hyperrep.bound(model, VECTORS, key) for key in jax.random.split(KEY, 20)]
    loss = np.mean([bound.loss for bound in bounds])
    constant = DIM / 2 * np.log(2 * np.pi * 0.2)
    assert -loss * DIM / 0.4 - constant == pytest.approx(density.logpdf(data).mean(), rel=2e-3)
    run = jax.jit(lambda p: hyperrep.loss_fn(trainer, p, STATS, VECTORS, KEY))
    in_training, metrics = run(state.params)
    assert in_training == pytest.approx(loss, rel=0.02)
    assert metrics["kl"] == pytest.approx(bounds[0].nats.sum(), rel=1e-4)
    assert bounds[0].reconstruction < bounds[0].loss
    assert bounds[0].reconstruction + 0.4 / DIM * bounds[0].nats.sum() == pytest.approx(
        bounds[0].loss, rel=1e-4
    )


def test_it_cannot_be_improved():
    """The closed form is a stationary point: the gradient of the latents' parameters vanishes."""
    trainer, state = started(LINEAR)

    def loss(bias, key):
        params = jax.tree.map(lambda leaf: leaf, state.params)
        params["encoder"]["log_variance"]["bias"] = bias
        return hyperrep.loss_fn(trainer, params, STATS, VECTORS, key)[0]

    bias = state.params["encoder"]["log_variance"]["bias"]
    keys = jax.random.split(KEY, 64)
    slope = jax.jit(lambda b: jax.vmap(jax.grad(loss), (None, 0))(b, keys))
    at_optimum = np.asarray(slope(bias))
    error = at_optimum.std(0) / 8
    assert np.all(np.abs(at_optimum.mean(0)) < 5 * error + 1e-6)
    above = np.asarray(slope(bias + 0.5)).mean(0)
    assert np.all(above[:3] > 5 * error[:3])  # a wider posterior costs more


# --- training ---------------------------------------------------------------------------------


def test_gradients_reach_every_parameter(random_model):
    config = dataclasses.replace(VAE, beta=0.9, dropout=0.1)
    trainer = hyperrep.make_trainer(config, SPEC)
    loss = lambda p: hyperrep.loss_fn(trainer, p, STATS, VECTORS, KEY)[0]  # noqa: E731
    grads = jax.jit(jax.grad(loss))(random_model.params)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.all(np.isfinite(grad))
        assert np.any(grad != 0), path


def state_at(model, step):
    params = jax.tree.map(jnp.array, model.params)  # a copy: training donates it
    opt_state = hyperrep.optimizer(model.config).init(params)
    return hyperrep.TrainState(params, opt_state, jnp.int32(step), jax.random.key(1))


def test_the_weight_rises_during_the_warm_up(random_model):
    config = dataclasses.replace(VAE, kl_warmup=10)
    trainer = hyperrep.make_trainer(config, SPEC)
    for step, expected in ((0, 0), (5, 0.5), (10, 1), (50, 1)):
        state = state_at(random_model, step)
        state, m = hyperrep.train_steps(trainer, state, VECTORS, STATS, jnp.int32(1))
        share = (m["loss"] - m["reconstruction"]) / (2 * 0.2 / DIM * m["kl"])
        assert share == pytest.approx(expected, abs=2e-3)
    assert m.keys() == {"loss", "reconstruction", "kl", "grad_norm"}
    before = hyperrep.bound(random_model, VECTORS, KEY)
    state, _ = hyperrep.train_steps(trainer, state, VECTORS, STATS, jnp.int32(50))
    assert hyperrep.bound(model_of(VAE, state), VECTORS, KEY).loss < before.loss


def test_too_much_noise_collapses_the_posterior(random_model):
    trainer = hyperrep.make_trainer(dataclasses.replace(VAE, kl=100.0), SPEC)
    state = state_at(random_model, 0)
    assert hyperrep.bound(random_model, VECTORS, KEY).nats.min() > 10 * posterior.INACTIVE
    state, _ = hyperrep.train_steps(trainer, state, VECTORS, STATS, jnp.int32(200))
    model = model_of(trainer.config, state)
    assert hyperrep.bound(model, VECTORS, KEY).nats.max() < posterior.INACTIVE


def test_latents_of_a_split():
    """Variance and share of inactive latents, of the closed form on its own train vectors."""
    _, state = started(LINEAR)
    result = posterior._latents(model_of(LINEAR, state), VECTORS, KEY)
    eigenvalues = PCA(6).fit((VECTORS - VECTORS.mean(0)) / UNITS).explained_variance_ * 0.99
    expected = np.where(eigenvalues > 0.2, np.log(eigenvalues / 0.2) / 2, 0)
    np.testing.assert_allclose(result.nats, expected, atol=2e-3)
    assert result.inactive == np.mean(expected < 0.01) > 0
    assert result.variance == pytest.approx(1, abs=5e-3)


# --- configurations and files -------------------------------------------------------------------


def test_bounded_latents_are_refused():
    tree = config_lib.to_dict(Config())
    tree["autoencoder"]["kl"] = 0.5
    with pytest.raises(HyperJaxError, match=r"autoencoder\.kl: got 0\.5.*autoencoder\.tanh=False"):
        config_lib.from_dict(tree)
    tree["autoencoder"]["tanh"] = False
    assert config_lib.from_dict(tree).autoencoder.kl == 0.5
    for field, value in (("kl", -1.0), ("kl_warmup", -1)):
        wrong = tree | {"autoencoder": tree["autoencoder"] | {field: value}}
        with pytest.raises(HyperJaxError, match=rf"autoencoder\.{field}: got -1"):
            config_lib.from_dict(wrong)
    wrong = tree | {"evaluation": tree["evaluation"] | {"vae_kl": 0.0}}
    with pytest.raises(HyperJaxError, match=r"evaluation\.vae_kl: got 0\.0, expected positive"):
        config_lib.from_dict(wrong)


def test_the_vae_of_a_workdir(tmp_path):
    evaluation = dataclasses.replace(Config().evaluation, vae_kl=0.2)
    main = dataclasses.replace(BASE, tanh=True)
    config = Config(autoencoder=main, evaluation=evaluation)
    assert train_hyperrep.VAE not in train_hyperrep.variants(config)
    variant = train_hyperrep.vae(config)
    assert variant == VAE
    with pytest.raises(HyperJaxError, match=r"has no hyperrep/vae\.safetensors.*experiments=vae"):
        train_hyperrep.read_vae(config, SPEC, tmp_path)
    _, state = started(variant)
    model = model_of(variant, state)
    hyperrep_file.write(workdir.hyperrep_path(tmp_path, train_hyperrep.VAE), model, {})
    read = train_hyperrep.read_vae(config, SPEC, tmp_path)
    np.testing.assert_array_equal(
        hyperrep.posterior(read, VECTORS).log_variance,
        hyperrep.posterior(model, VECTORS).log_variance,
    )
    other = dataclasses.replace(config.evaluation, vae_kl=0.7)
    with pytest.raises(HyperJaxError, match=r"\(evaluation\.vae_kl: .* there, 0\.7 here"):
        train_hyperrep.read_vae(dataclasses.replace(config, evaluation=other), SPEC, tmp_path)
