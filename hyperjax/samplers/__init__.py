"""Samplers: densities fitted on a population, in latent space or on its weights.

    sampler = get_sampler("joint30", config.samplers)
    state = sampler.fit(fit_key, latents, validation_accuracy)
    new_latents = sampler.sample(sample_key, state, 100)

A name that ends in 30 is the sampler before it, fitted on the best anchors only
(`config.best_fraction`, 30 % by default). "subsample:joint30" and "bootstrap:joint30" choose
among what a sampler draws, by a score (`hyperjax.samplers.selection`); they can be nested. To
add a sampler, write a function that returns a `Sampler` and give it a line in the registry
below.
"""

from collections.abc import Callable

from hyperjax.config import SamplersConfig
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.samplers import (
    baselines,
    counterfactual,
    gan,
    joint,
    kde,
    neigh,
    prior,
    selection,
    uniform,
)
from hyperjax.samplers.base import Sampler, best, checked
from hyperjax.samplers.selection import Score
from hyperjax.types import Array
from hyperjax.weights import WeightSpec

__all__ = ["Sampler", "Score", "best", "check", "describe", "get_sampler", "names"]

Build = Callable[[SamplersConfig, WeightSpec | None], Sampler]
Wrap = Callable[[Sampler, Score, SamplersConfig], Sampler]


def _best(build: Build) -> Build:
    return lambda config, spec: best(build(config, spec), config.best_fraction)


def _kde(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return kde.kde(config.kde_bandwidth)


def _kde_anchor(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return kde.kde_anchor(config.kde_bandwidth)


def _joint(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return joint.joint(config.joint_bandwidth)


def _neigh(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return neigh.neigh(config.neigh)


def _gan(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return gan.gan(config.gan)


def _counterfactual(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return counterfactual.counterfactual(config.kde_bandwidth, config.counterfactual_fraction)


def _subsample(sampler: Sampler, score: Score, config: SamplersConfig) -> Sampler:
    return selection.subsample(sampler, score, config.subsample_factor)


def _bootstrap(sampler: Sampler, score: Score, config: SamplersConfig) -> Sampler:
    return selection.bootstrap(
        sampler,
        score,
        rounds=config.bootstrap_rounds,
        draws=config.bootstrap_draws,
        fraction=config.best_fraction,
    )


_REGISTRY: dict[str, Build] = {
    "uniform": lambda config, spec: uniform.uniform(),
    "counterfactual": _counterfactual,
    "kde": _kde,
    "kde30": _best(_kde),
    "kde_anchor": _kde_anchor,
    "kde_anchor30": _best(_kde_anchor),
    "neigh": _neigh,
    "neigh30": _best(_neigh),
    "gan": _gan,
    "gan30": _best(_gan),
    "joint": _joint,
    "joint30": _best(_joint),
    "prior": lambda config, spec: prior.prior(),
    "aligned_mean": lambda config, spec: baselines.aligned_mean(),
    "average": lambda config, spec: baselines.average(config.average_of),
    "noise": lambda config, spec: baselines.noise(config.noise_scale, spec),
    "pca": lambda config, spec: baselines.pca(config.pca_components),
}
_OF_VAES = ("prior",)
_WRAPPERS: dict[str, Wrap] = {"subsample": _subsample, "bootstrap": _bootstrap}


def names(*, vae: bool = False) -> tuple[str, ...]:
    """Names of all samplers that need no score, in the registry's order; with `vae`, also of those
    that draw from the latents of a variational autoencoder only."""
    return tuple(name for name in _REGISTRY if vae or name not in _OF_VAES)


def check(name: str, *, vae: bool = True) -> None:
    """Raises HyperJaxError if `get_sampler` knows no sampler of that name, or without `vae`, if it
    is one of VAEs only."""
    *wrappers, inner = name.split(":")
    if inner not in _REGISTRY or not set(wrappers) <= _WRAPPERS.keys():
        known = (*names(vae=True), *(f"{wrapper}:NAME" for wrapper in _WRAPPERS))
        raise unknown("sampler", name, known)
    if inner in _OF_VAES and not vae:
        raise HyperJaxError(
            f"sampler {name} draws from the prior of a variational autoencoder; this "
            "hyper-representation is none (autoencoder.kl is 0): sample.py --hyperrep=vae draws "
            "from the one that evaluate.py --experiments=vae trains"
        )


def describe() -> dict[str, str]:
    """One line on each sampler, with the default settings."""
    config = SamplersConfig()
    lines = {name: build(config, None).description for name, build in _REGISTRY.items()}
    base = Sampler(None, None, "", "any sampler NAME")
    for name, wrap in _WRAPPERS.items():
        lines[f"{name}:NAME"] = wrap(base, _no_score, config).description
    return lines


def get_sampler(
    name: str, config: SamplersConfig, spec: WeightSpec | None = None, score: Score | None = None
) -> Sampler:
    """The sampler of that name.

    Args:
      name: one of `names(vae=True)`, after any number of "subsample:" and "bootstrap:".
      config: the settings of all samplers.
      spec: needed where `space` is "weights", ignored elsewhere.
      score: `score(samples f32[n, Z]) -> f32[n]`, higher is better, of what is in `space`;
        needed by the time that "subsample:" and "bootstrap:" fit or sample, ignored elsewhere.

    Raises HyperJaxError for an unknown name or a missing spec. The sampler's `fit` raises it
    for anchors that are none, too few, of the wrong shape or not finite, and for quality of
    the wrong length; its `sample` raises it for n < 1; either for a score that is missing,
    of the wrong shape or mostly NaN.
    """
    check(name)
    *wrappers, inner = name.split(":")
    sampler = _REGISTRY[inner](config, spec)
    if sampler.space == "weights" and spec is None:
        raise HyperJaxError(f"sampler {name} draws weights: it needs their WeightSpec")
    for wrapper in reversed(wrappers):
        sampler = _WRAPPERS[wrapper](sampler, score or _no_score, config)
    return checked(sampler, name, spec)


def _no_score(samples: Array) -> Array:
    raise HyperJaxError("it chooses by a score, and get_sampler was given none")
