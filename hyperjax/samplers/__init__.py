"""Samplers: densities fitted on a population, in latent space or on its weights.

    sampler = joint(0.4)                     # or get_sampler("joint30", config.samplers)
    state = sampler.fit(fit_key, latents, validation_accuracy)
    new_latents = sampler.sample(sample_key, state, 100)

A name that ends in 30 is the sampler before it, fitted on the best anchors only
(`config.best_fraction`, 30 % by default). "subsample:joint30" and "bootstrap:joint30" choose
among what a sampler draws, by a score (`hyperjax.samplers.selection`); "refine:joint30" goes
through a denoiser, "repair:joint30" mends it, "polish:joint30" does both in turn
(`hyperjax.samplers.diffusion`); they can be nested.
To add a sampler, write a function that returns `make(fit, sample, ...)`, and `register` it.
"""

from collections.abc import Callable

from hyperjax.config import SamplersConfig
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.samplers.base import Sampler, Tools, best, make, named
from hyperjax.samplers.baselines import aligned_mean, average, average_nearest, noise, pca
from hyperjax.samplers.counterfactual import counterfactual
from hyperjax.samplers.diffusion import diffusion, polish, refine, repair
from hyperjax.samplers.gan import gan
from hyperjax.samplers.joint import joint
from hyperjax.samplers.kde import kde, kde_anchor
from hyperjax.samplers.neigh import neigh
from hyperjax.samplers.prior import prior
from hyperjax.samplers.selection import Score, bootstrap, subsample
from hyperjax.samplers.uniform import uniform
from hyperjax.types import Array
from hyperjax.weights import WeightSpec

__all__ = [
    "Sampler",
    "Score",
    "Tools",
    "aligned_mean",
    "average",
    "average_nearest",
    "best",
    "bootstrap",
    "check",
    "counterfactual",
    "describe",
    "diffusion",
    "gan",
    "get_sampler",
    "is_repaired",
    "is_selected",
    "joint",
    "kde",
    "kde_anchor",
    "make",
    "names",
    "needs_denoiser",
    "neigh",
    "noise",
    "pca",
    "polish",
    "prior",
    "refine",
    "register",
    "repair",
    "subsample",
    "uniform",
]

Build = Callable[[SamplersConfig, WeightSpec | None], Sampler]
Wrap = Callable[[Sampler, Tools, SamplersConfig], Sampler]


def _best(build: Build) -> Build:
    return lambda config, spec: best(build(config, spec), config.best_fraction)


def _score(sampler: Sampler, tools: Tools) -> Score:
    """Of what `sampler` draws."""
    score = tools.score or _no_score
    if sampler.drawn == "weights" or tools.decode is None:
        return score
    return lambda samples: score(tools.decode(samples))


def _subsample(sampler: Sampler, tools: Tools, config: SamplersConfig) -> Sampler:
    return subsample(sampler, _score(sampler, tools), config.subsample_factor)


def _bootstrap(sampler: Sampler, tools: Tools, config: SamplersConfig) -> Sampler:
    return bootstrap(
        sampler,
        _score(sampler, tools),
        rounds=config.bootstrap_rounds,
        draws=config.bootstrap_draws,
        fraction=config.best_fraction,
        anchors_of=(tools.encode or _no_encoder) if sampler.drawn != sampler.space else None,
    )


def _refine(sampler: Sampler, tools: Tools, config: SamplersConfig) -> Sampler:
    networks = tools.decode or _no_decoder
    return refine(sampler, tools.denoiser or _no_denoiser, config.diffusion, networks)


def _repair(sampler: Sampler, tools: Tools, config: SamplersConfig) -> Sampler:
    return repair(sampler, tools.repair or _no_repair, tools.decode or _no_decoder)


def _polish(sampler: Sampler, tools: Tools, config: SamplersConfig) -> Sampler:
    given = tools.denoiser or _no_denoiser, tools.repair or _no_repair
    return polish(sampler, *given, config.diffusion, tools.decode or _no_decoder)


_BUILD: dict[str, Build] = {
    "uniform": lambda c, spec: uniform(),
    "counterfactual": lambda c, spec: counterfactual(c.kde_bandwidth, c.counterfactual_fraction),
    "kde": lambda c, spec: kde(c.kde_bandwidth),
    "kde_anchor": lambda c, spec: kde_anchor(c.kde_bandwidth),
    "neigh": lambda c, spec: neigh(c.neigh),
    "gan": lambda c, spec: gan(c.gan),
    "joint": lambda c, spec: joint(c.joint_bandwidth),
    "prior": lambda c, spec: prior(),
    "aligned_mean": lambda c, spec: aligned_mean(),
    "average": lambda c, spec: average(c.average_of),
    "average_nearest": lambda c, spec: average_nearest(),
    "noise": lambda c, spec: noise(c.noise_scale, spec),
    "pca": lambda c, spec: pca(c.pca_components),
}
_ALSO_BEST = ("kde", "kde_anchor", "neigh", "gan", "joint")  # NAME30, behind NAME
_REGISTRY: dict[str, Build] = {
    name + suffix: _best(build) if suffix else build
    for name, build in _BUILD.items()
    for suffix in (("", "30") if name in _ALSO_BEST else ("",))
}
_OF_VAES = ("prior",)
_OF_DENOISERS: dict[str, Callable[[SamplersConfig, Tools], Sampler]] = {
    "diffusion": lambda c, tools: diffusion(tools.denoiser or _no_denoiser, c.diffusion),
    "diffusion30": lambda c, tools: diffusion(
        tools.denoiser or _no_denoiser, c.diffusion, c.best_fraction
    ),
}
_WRAPPERS: dict[str, Wrap] = {
    "subsample": _subsample,
    "bootstrap": _bootstrap,
    "refine": _refine,
    "repair": _repair,
    "polish": _polish,
}


def register(name: str, build: Build) -> None:
    """Add a sampler to those that are known by name, for the rest of the process.

    Args:
      name: an identifier, as in Python; one that is taken is refused.
      build: `build(config: SamplersConfig, spec: WeightSpec | None) -> Sampler`.

    >>> hj.samplers.register("sharp", lambda config, spec: hj.samplers.joint(0.1))
    >>> "sharp" in hj.samplers.names()
    True
    """
    if not name.isidentifier():
        raise HyperJaxError(f"sampler {name!r}: expected an identifier, as in Python")
    if name in _REGISTRY or name in _WRAPPERS or name in _OF_DENOISERS:
        raise HyperJaxError(f"there is a sampler {name} already")
    _REGISTRY[name] = build


def names(*, vae: bool = False, denoiser: bool = False) -> tuple[str, ...]:
    """Names of all samplers that need no `Tools`, in the registry's order; with `vae`, also of
    those that draw from the latents of a variational autoencoder only, with `denoiser` of those
    that draw by one.

    >>> hj.samplers.names()[:4]
    ('uniform', 'counterfactual', 'kde', 'kde30')
    """
    fitted = tuple(name for name in _REGISTRY if vae or name not in _OF_VAES)
    return fitted + (tuple(_OF_DENOISERS) if denoiser else ())


def check(name: str, *, vae: bool = True) -> None:
    """Raises HyperJaxError if `get_sampler` knows no sampler of that name, or without `vae`, if it
    is one of VAEs only.

    >>> hj.samplers.check("subsample:joint30")
    """
    *wrappers, inner = name.split(":")
    every = names(vae=True, denoiser=True)
    if inner not in every or not set(wrappers) <= _WRAPPERS.keys():
        known = (*every, *(f"{wrapper}:NAME" for wrapper in _WRAPPERS))
        raise unknown("sampler", name, known)
    if inner in _OF_VAES and not vae:
        raise HyperJaxError(
            f"sampler {name} draws from the prior of a variational autoencoder; this "
            "hyper-representation is none: sample.py --hyperrep=vae draws from the one that "
            "train.py makes with vae among autoencoder.variants"
        )


def needs_denoiser(name: str) -> bool:
    """Whether a sampler, wrapped or not, goes through a denoiser.

    >>> hj.samplers.needs_denoiser("repair:refine:kde")
    True
    """
    *wrappers, inner = name.split(":")
    return inner in _OF_DENOISERS or not {"refine", "polish"}.isdisjoint(wrappers)


def needs_quality(name: str) -> bool:
    """Whether a sampler, wrapped or not, goes by the quality of anchors.

    >>> hj.samplers.needs_quality("repair:kde30"), hj.samplers.needs_quality("kde")
    (True, False)
    """
    return name.split(":")[-1] in {f"{inner}30" for inner in (*_ALSO_BEST, "diffusion")}


def is_repaired(name: str) -> bool:
    """Whether what a sampler draws has been repaired.

    >>> hj.samplers.is_repaired("subsample:repair:kde"), hj.samplers.is_repaired("kde")
    (True, False)
    """
    return not {"repair", "polish"}.isdisjoint(name.split(":")[:-1])


def is_selected(name: str) -> bool:
    """Whether what a sampler draws has been chosen by a score.

    >>> hj.samplers.is_selected("repair:subsample:kde"), hj.samplers.is_selected("kde30")
    (True, False)
    """
    return not {"subsample", "bootstrap"}.isdisjoint(name.split(":")[:-1])


def describe() -> dict[str, str]:
    """One line on each sampler, with the default settings.

    >>> hj.samplers.describe()["uniform"]
    'uniform in (-1, 1), blind to the anchors'
    """
    config = SamplersConfig()
    lines = {name: build(config, None).description for name, build in _REGISTRY.items()}
    lines |= {name: build(config, Tools()).description for name, build in _OF_DENOISERS.items()}
    base = Sampler(_nothing, _nothing, "", "any sampler NAME")
    for name, wrap in _WRAPPERS.items():
        lines[f"{name}:NAME"] = wrap(base, Tools(), config).description
    return lines


def get_sampler(
    name: str,
    config: SamplersConfig,
    spec: WeightSpec | None = None,
    score: Score | None = None,
    tools: Tools | None = None,
) -> Sampler:
    """The sampler of that name.

    Args:
      name: one of `names(vae=True, denoiser=True)`, after any number of "subsample:",
        "bootstrap:", "refine:" and "repair:".
      config: the settings of all samplers.
      spec: needed where `space` is "weights", ignored elsewhere.
      score: short for `tools` with this score alone.
      tools: what wrappers and diffusion need; by the time that they fit or sample.

    Raises HyperJaxError for an unknown name or a missing spec. The sampler's `fit` raises it
    for anchors that are none, too few, of the wrong shape or not finite, and for quality of
    the wrong length; its `sample` raises it for n < 1; either for a tool that is missing, and for
    a score of the wrong shape or mostly NaN.

    >>> sampler = hj.samplers.get_sampler("kde30", config.samplers)
    >>> sampler.sample(key, sampler.fit(key, latents, quality), 5).shape
    (5, 8)
    """
    check(name)
    tools = tools or Tools(score=score)
    *wrappers, inner = name.split(":")
    if inner in _OF_DENOISERS:
        sampler = _OF_DENOISERS[inner](config, tools)
    else:
        sampler = _REGISTRY[inner](config, spec)
    if sampler.space == "weights" and spec is None:
        raise HyperJaxError(f"sampler {name} draws weights: it needs their WeightSpec")
    for wrapper in reversed(wrappers):
        sampler = _WRAPPERS[wrapper](sampler, tools, config)
    return named(sampler, name, spec)


def _nothing(*args):
    return None


def _no_score(samples: Array) -> Array:
    raise HyperJaxError("it chooses by a score, and get_sampler was given none")


def _no_decoder(latents: Array) -> Array:
    raise HyperJaxError("it needs networks, and get_sampler was given no decoder of latents")


def _no_encoder(vectors: Array) -> Array:
    raise HyperJaxError("it needs latents of networks, and get_sampler was given no encoder")


def _no_denoiser():
    raise HyperJaxError("it goes through a denoiser, and get_sampler was given none")


def _no_repair(vectors: Array) -> Array:
    raise HyperJaxError("it repairs networks, and get_sampler was given no repair")
