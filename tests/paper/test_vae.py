"""The variational autoencoder against closed forms, Monte Carlo and scikit-learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hyperrep_cases import after_steps, changed
from sklearn.decomposition import PCA

from hyperjax import config as config_lib
from hyperjax import hyperrep
from hyperjax.analysis import reconstruction as analysis
from hyperjax.app import run
from hyperjax.config import (
    ArchitectureConfig,
    AugmentConfig,
    AutoencoderConfig,
    Config,
    LossConfig,
    OptimizationConfig,
    WeightDataConfig,
)
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.hyperrep import model as model_lib
from hyperjax.hyperrep.training import loss_fn, optimizer
from hyperjax.models.autoencoder import Autoencoder
from hyperjax.store import hyperrep_file, workdir, zoo_file
from hyperjax.weights import LayerSpec, WeightSpec
from hyperjax.zoo import Zoo

SPEC = WeightSpec(
    (LayerSpec("c", "conv", (3, 1, 2, 2), pool="max"), LayerSpec("d", "dense", (4, 12))), "tanh"
)
SIZES, DIM = [15, 52], 67
PLAIN = AugmentConfig(erase=0.0)
BASE = AutoencoderConfig(
    architecture=ArchitectureConfig(
        dim=16, heads=2, mlp_dim=24, blocks=1, latent=6, dropout=0.0, tanh=False,
        linear_path=False, projection_layers=1, projection_hidden=6, projection_dim=4,
    ),
    data=WeightDataConfig(augment=PLAIN),
    loss=LossConfig(beta=1.0, kl=0.2),
    training=OptimizationConfig(
        batch_size=32, learning_rate=3e-3, warmup_steps=0, schedule="constant"
    ),
    variants=(),
)  # fmt: skip
VAE = changed(BASE, architecture={"variational": True})
LINEAR = changed(VAE, architecture={"linear_path": True})
KEY = jax.random.key(0)
ONE_DEVICE = jax.devices()[:1]


def make_vectors(count=100):
    """Three strong factors and noise, with layers of different scale."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, 3)) @ rng.normal(size=(3, DIM))
    values += 0.3 * rng.normal(size=(count, DIM))
    return np.float32(values * np.repeat([0.1, 5], SIZES) + np.repeat([0.5, -1], SIZES))


VECTORS = make_vectors()
STATS = hyperrep.statistics(BASE.data, SPEC, VECTORS)
UNITS = np.repeat(STATS.layer_std, SIZES)


@functools.cache
def started(config):
    """The state before training, not to be donated."""
    trainer = hyperrep.make_trainer(config, SPEC)
    state = hyperrep.init(trainer, KEY)
    if config.architecture.linear_path:
        params = hyperrep.principal_components(config, SPEC, state.params, STATS, VECTORS)
        state = state._replace(params=params)
    return trainer, state


def model_of(config, state):
    return HyperRep(config, SPEC, jax.tree.map(np.asarray, state.params), STATS, VECTORS[0])


@pytest.fixture(scope="module")
def random_model():
    """A VAE of which every parameter matters."""
    _, state = started(VAE)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: np.float32(leaf + rng.normal(0, 0.2, leaf.shape)), state.params
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
    module = Autoencoder(model.config.architecture, SPEC)
    inputs = model_lib.to_inputs(SPEC, STATS, vectors)
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
    mean, log_variance = hyperrep.posterior(random_model, VECTORS, aligned=True)
    np.testing.assert_array_equal(hyperrep.encode(random_model, VECTORS, aligned=True), mean)
    assert mean.shape == log_variance.shape == (100, 6)
    assert np.std(log_variance, axis=0).min() > 1e-3  # it depends on the network
    run = jax.jit(lambda x: apply(random_model, x, train=False))
    latents, outputs, projections = run(VECTORS)
    np.testing.assert_allclose(latents.mean, mean, atol=1e-5)
    decoded = model_lib.from_outputs(SPEC, STATS, outputs)
    expected = hyperrep.reconstruct(random_model, VECTORS, aligned=True)
    np.testing.assert_allclose(decoded, expected, atol=1e-3)
    assert projections.shape == (100, 4)


def test_projections_are_of_the_mean(random_model):
    run = jax.jit(lambda key: apply(random_model, VECTORS, train=True, rngs={"latent": key}))
    (_, out, first), (_, other_out, second) = run(KEY), run(jax.random.key(1))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(out, other_out)


def test_an_autoencoder_that_is_none_knows_nothing_of_a_vae():
    """The same tree of parameters and the same numbers, whatever the noise of a VAE."""
    trainer, state = started(BASE)
    noisy = hyperrep.make_trainer(changed(BASE, loss={"kl": 7.0}), SPEC)
    assert "log_variance" not in state.params["encoder"]
    assert trainer.module == noisy.module
    key_data = jax.random.key_data(KEY)
    programs = {
        str(jax.make_jaxpr(lambda p, k, t=t: loss_fn(
            t, p, STATS, VECTORS, jax.random.wrap_key_data(k)))(state.params, key_data))
        for t in (trainer, noisy)
    }  # fmt: skip
    assert len(programs) == 1
    _, of_vae = started(VAE)
    params = jax.tree.map(lambda leaf: leaf, of_vae.params)
    assert params["encoder"].pop("log_variance")["kernel"].shape == (16, 6)
    shapes = jax.tree.map(jnp.shape, (params, state.params))
    assert shapes[0] == shapes[1]
    with pytest.raises(HyperJaxError, match=r"is no VAE: its encoder gives no Gaussian"):
        hyperrep.posterior(model_of(BASE, state), VECTORS, aligned=True)


def test_vaes_that_differ_in_weight_share_a_compilation(random_model):
    other = dataclasses.replace(random_model, config=changed(VAE, loss={"kl": 0.7}))
    assert (
        hyperrep.make_trainer(VAE, SPEC).module == hyperrep.make_trainer(other.config, SPEC).module
    )
    assert hyperrep.make_trainer(VAE, SPEC).module != hyperrep.make_trainer(BASE, SPEC).module
    latents = hyperrep.encode(random_model, VECTORS, aligned=True)
    compiled = model_lib._encode._cache_size()
    np.testing.assert_array_equal(hyperrep.encode(other, VECTORS, aligned=True), latents)
    assert model_lib._encode._cache_size() == compiled > 0


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
    mean, log_variance = hyperrep.posterior(model, VECTORS, aligned=True)
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
    run = jax.jit(lambda p: loss_fn(trainer, p, STATS, VECTORS, KEY))
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
        return loss_fn(trainer, params, STATS, VECTORS, key)[0]

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
    config = changed(VAE, loss={"beta": 0.9}, architecture={"dropout": 0.1})
    trainer = hyperrep.make_trainer(config, SPEC)
    loss = lambda p: loss_fn(trainer, p, STATS, VECTORS, KEY)[0]  # noqa: E731
    grads = jax.jit(jax.grad(loss))(random_model.params)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.all(np.isfinite(grad))
        assert np.any(grad != 0), path


def state_at(model, step):
    params = jax.tree.map(jnp.array, model.params)  # a copy: training donates it
    opt_state = optimizer(model.config.training).init(params)
    return hyperrep.TrainState(params, opt_state, jnp.int32(step), jax.random.key(1))


def test_the_penalty_has_its_weight_from_the_first_step(random_model):
    trainer = hyperrep.make_trainer(VAE, SPEC, ONE_DEVICE)
    for step in (0, 5, 50):
        state = state_at(random_model, step)
        state, m = after_steps(trainer, state, VECTORS, STATS, 1)
        share = (m["loss"] - m["reconstruction"]) / (2 * 0.2 / DIM * m["kl"])
        assert share == pytest.approx(1, abs=2e-3)
    assert m.keys() == {"loss", "reconstruction", "kl", "grad_norm"}
    before = hyperrep.bound(random_model, VECTORS, KEY)
    state, _ = after_steps(trainer, state, VECTORS, STATS, 50)
    assert hyperrep.bound(model_of(VAE, state), VECTORS, KEY).loss < before.loss


def test_too_much_noise_collapses_the_posterior(random_model):
    trainer = hyperrep.make_trainer(changed(VAE, loss={"kl": 100.0}), SPEC, ONE_DEVICE)
    state = state_at(random_model, 0)
    assert hyperrep.bound(random_model, VECTORS, KEY).nats.min() > 10 * analysis.INACTIVE
    state, _ = after_steps(trainer, state, VECTORS, STATS, 200)
    model = model_of(trainer.config, state)
    assert hyperrep.bound(model, VECTORS, KEY).nats.max() < analysis.INACTIVE


def test_latents_of_a_split():
    """Variance and share of inactive latents, of the closed form on its own train vectors."""
    _, state = started(LINEAR)
    result = analysis.latents(model_of(LINEAR, state), VECTORS, KEY)
    eigenvalues = PCA(6).fit((VECTORS - VECTORS.mean(0)) / UNITS).explained_variance_ * 0.99
    expected = np.where(eigenvalues > 0.2, np.log(eigenvalues / 0.2) / 2, 0)
    np.testing.assert_allclose(result.nats, expected, atol=2e-3)
    assert result.inactive == np.mean(expected < 0.01) > 0
    assert result.variance == pytest.approx(1, abs=5e-3)


# --- configurations and files -------------------------------------------------------------------


def test_bounded_latents_are_refused():
    tree = config_lib.flat(config_lib.to_dict(Config()))
    tree["autoencoder.architecture.variational"] = True
    message = r"autoencoder\.architecture\.variational: .*expected tanh=False"
    with pytest.raises(HyperJaxError, match=message):
        config_lib.from_dict(config_lib.nested(tree))
    tree["autoencoder.architecture.tanh"] = False
    found = config_lib.from_dict(config_lib.nested(tree))
    assert found.autoencoder.architecture.variational
    for value in (0.0, -1.0):
        wrong = config_lib.nested(tree | {"autoencoder.loss.kl": value})
        with pytest.raises(HyperJaxError, match=rf"loss\.kl: got {value}, expected positive"):
            config_lib.from_dict(wrong)


def test_the_vae_of_a_workdir(tmp_path):
    """It is read if it is there, whether or not the configuration asks for it, and has to be of
    the noise that the configuration says."""
    main = changed(BASE, architecture={"tanh": True})
    config = Config(autoencoder=main)
    assert list(run.variants(config)) == ["lwln"]
    asked = Config(autoencoder=dataclasses.replace(main, variants=("vae",)))
    assert run.variants(asked) == {"lwln": main, "vae": VAE}
    message = r"has no hyperrep/vae\.safetensors; run train\.py.*"
    for made, change in ((config, r"variants=\('vae',\) to"), (asked, "--workdir to complete")):
        with pytest.raises(HyperJaxError, match=message + change):
            run.Run(tmp_path, made).hyperreps["vae"]
        assert ("vae" in run.Run(tmp_path, made).hyperreps) == (made is asked)
    model = model_of(VAE, started(VAE)[1])
    hyperrep_file.write(workdir.hyperrep_path(tmp_path, "vae"), model, {"best_step": 3})
    members = Zoo(SPEC, VECTORS[:3, None], np.array([0]), np.arange(3), {})
    zoo_file.write(workdir.zoo_path(tmp_path), members)
    for made in (config, asked):
        hyperreps = run.Run(tmp_path, made).hyperreps
        np.testing.assert_array_equal(
            hyperrep.posterior(hyperreps["vae"], VECTORS, aligned=True).log_variance,
            hyperrep.posterior(model, VECTORS, aligned=True).log_variance,
        )
        assert hyperreps.info("vae")["best_step"] == 3
    other = Config(autoencoder=changed(main, loss={"kl": 0.7}))
    with pytest.raises(HyperJaxError, match=r"\(autoencoder\.loss\.kl: 0\.2 there, 0\.7 here"):
        run.Run(tmp_path, other).hyperreps["vae"]
