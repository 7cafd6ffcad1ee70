"""Samplers: densities fitted on a population, in latent space or on its weights.

    sampler = get_sampler("joint30", config.samplers)
    state = sampler.fit(fit_key, latents, validation_accuracy)
    new_latents = sampler.sample(sample_key, state, 100)

A name that ends in 30 is the sampler before it, fitted on the best anchors only
(`config.best_fraction`, 30 % by default). To add a sampler, write a function that returns a
`Sampler` and give it a line in the registry below.
"""

from collections.abc import Callable

from hyperjax.config import SamplersConfig
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.samplers import baselines, joint, kde, uniform
from hyperjax.samplers.base import Sampler, best, checked
from hyperjax.weights import WeightSpec

__all__ = ["Sampler", "best", "describe", "get_sampler", "names"]

Build = Callable[[SamplersConfig, WeightSpec | None], Sampler]


def _best(build: Build) -> Build:
    return lambda config, spec: best(build(config, spec), config.best_fraction)


def _kde(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return kde.kde(config.kde_bandwidth)


def _kde_anchor(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return kde.kde_anchor(config.kde_bandwidth)


def _joint(config: SamplersConfig, spec: WeightSpec | None) -> Sampler:
    return joint.joint(config.joint_bandwidth)


_REGISTRY: dict[str, Build] = {
    "uniform": lambda config, spec: uniform.uniform(),
    "kde": _kde,
    "kde30": _best(_kde),
    "kde_anchor": _kde_anchor,
    "kde_anchor30": _best(_kde_anchor),
    "joint": _joint,
    "joint30": _best(_joint),
    "aligned_mean": lambda config, spec: baselines.aligned_mean(),
    "average": lambda config, spec: baselines.average(config.average_of),
    "noise": lambda config, spec: baselines.noise(config.noise_scale, spec),
    "pca": lambda config, spec: baselines.pca(config.pca_components),
}


def names() -> tuple[str, ...]:
    """Names of all samplers, in the registry's order."""
    return tuple(_REGISTRY)


def describe() -> dict[str, str]:
    """One line on each sampler, with the default settings."""
    return {name: build(SamplersConfig(), None).description for name, build in _REGISTRY.items()}


def get_sampler(name: str, config: SamplersConfig, spec: WeightSpec | None = None) -> Sampler:
    """The sampler of that name; `spec` is needed where `space` is "weights", ignored elsewhere.

    Raises HyperJaxError for an unknown name or a missing spec. The sampler's `fit` raises it
    for anchors that are none, too few, of the wrong shape or not finite, and for quality of
    the wrong length; its `sample` raises it for n < 1.
    """
    if name not in _REGISTRY:
        raise unknown("sampler", name, names())
    sampler = _REGISTRY[name](config, spec)
    if sampler.space == "weights" and spec is None:
        raise HyperJaxError(f"sampler {name} draws weights: it needs their WeightSpec")
    return checked(sampler, name, spec)
