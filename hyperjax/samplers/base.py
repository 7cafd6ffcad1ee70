"""What a sampler is, what every sampler checks, and the choice of the best anchors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec


def nothing(state: Any, samples: Array) -> dict[str, float]:
    """The report of a sampler about which there is nothing to say."""
    return {}


class Sampler(NamedTuple):
    """A density on latents or on weights: pure functions, like Optax's and BlackJAX's.

    Attributes:
      fit: `fit(key, anchors f32[N, Z], quality f32[N] = None) -> state`. Runs on the host, once.
        `quality` is the validation accuracy of each anchor's model, NaN where unknown; only
        the `...30` samplers look at it. The state is a pytree of arrays, except where a
        sampler's own docstring says that it lives on the host.
      sample: `sample(key, state, n) -> f32[n, Z]`. Pure; compiled once for each `n`, except
        on the host.
      space: what the anchors are, "latent" or "weights" (aligned vectors).
      description: one line, for `--help` and for reports.
      report: `report(state, samples) -> {name: float}`, what is worth recording with samples
        that `sample` drew from that state.
      draws: what the samples are, where they are not what the anchors are.
    """

    fit: Callable[[Key, Array, Array], Any]
    sample: Callable[[Key, Any, int], Array]
    space: str
    description: str
    report: Callable[[Any, Array], dict[str, float]] = nothing
    draws: str = ""

    @property
    def drawn(self) -> str:
        """What the samples are, "latent" or "weights"."""
        return self.draws or self.space


class Tools(NamedTuple):
    """What samplers may need beside anchors; asked for only by those that need it.

    Attributes:
      score: `score(networks f32[n, D]) -> f32[n]`, higher is better; of samples of latents as they
        are where there is no `decode`.
      decode: latents -> weight vectors.
      encode: aligned weight vectors -> latents.
      denoiser: gives the `hyperjax.diffusion.Denoiser`.
      repair: aligned weight vectors -> weight vectors, see `hyperjax.population.repair`.
    """

    score: Callable[[Array], Array] | None = None
    decode: Callable[[Array], Array] | None = None
    encode: Callable[[Array], Array] | None = None
    denoiser: Callable[[], Any] | None = None
    repair: Callable[[Array], Array] | None = None


def make(
    fit: Callable[[Key, np.ndarray, np.ndarray], Any],
    sample: Callable[[Key, Any, int], Array],
    space: str,
    description: str,
    report: Callable[[Any, Array], dict[str, float]] = nothing,
) -> Sampler:
    """A sampler whose arguments are checked: anchors [N, Z] that are finite, a quality of each
    (none is NaN for all), at least one sample. Otherwise they raise HyperJaxError.

    >>> sampler = hj.samplers.make(
    ...     lambda key, anchors, quality: anchors.mean(axis=0),
    ...     lambda key, mean, n: jnp.broadcast_to(mean, (n, len(mean))),
    ...     "latent",
    ...     "the mean",
    ... )
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """

    def checked_fit(key, anchors, quality=None):
        anchors = np.asarray(anchors, np.float32)
        if quality is None:
            quality = np.full(anchors.shape[:1], np.nan)
        quality = np.asarray(quality, np.float32)
        _check_anchors(anchors, quality)
        return fit(key, anchors, quality)

    def checked_sample(key, state, n):
        if n < 1:
            raise HyperJaxError(f"cannot draw {n} samples, expected at least 1")
        return sample(key, state, n)

    return Sampler(checked_fit, checked_sample, space, description, report)


def best(sampler: Sampler, fraction: float) -> Sampler:
    """`sampler`, fitted on the best `fraction` of the anchors only (paper section 3.2).

    An anchor is kept if its quality reaches the (1 - fraction) quantile, with linear
    interpolation, of all anchors whose quality is known; ties at the threshold all stay. The
    published code ranks by test accuracy; callers here pass validation accuracy, so that no
    figure is tuned on the test set. Fitting raises HyperJaxError if no quality is known.

    >>> sampler = hj.samplers.best(hj.samplers.joint(0.4), 0.5)
    >>> sampler.sample(key, sampler.fit(key, latents, quality), 5).shape
    (5, 8)
    """

    def fit(key, anchors, quality):
        quality = np.asarray(quality, np.float64)
        known = ~np.isnan(quality)
        if not known.any():
            raise HyperJaxError(
                f"cannot choose the best {100 * fraction:g} % of {len(quality)} anchors: "
                "the quality of every one is NaN"
            )
        threshold = np.quantile(quality[known], 1 - fraction)
        keep = known & (quality >= threshold)
        return sampler.fit(key, anchors[keep], quality[keep])

    description = f"{sampler.description}; fitted on the best {100 * fraction:g} % of the anchors"
    return make(fit, sampler.sample, sampler.space, description, sampler.report)


def named(sampler: Sampler, name: str, spec: WeightSpec | None) -> Sampler:
    """`sampler`, whose errors start with its name, and whose anchors have to fit a spec."""

    def fit(key, anchors, quality=None):
        try:
            if sampler.space == "weights":
                _check_length(np.asarray(anchors), spec)
            return sampler.fit(key, anchors, quality)
        except HyperJaxError as error:
            raise HyperJaxError(f"sampler {name}: {error}") from error

    def sample(key, state, n):
        try:
            return sampler.sample(key, state, n)
        except HyperJaxError as error:
            raise HyperJaxError(f"sampler {name}: {error}") from error

    return sampler._replace(fit=fit, sample=sample)


def at_least_two(anchors: Array) -> None:
    """Raises HyperJaxError if there is one anchor only: it has no covariance."""
    if len(anchors) < 2:
        raise HyperJaxError("one anchor has no covariance; expected at least 2 anchors")


def tanh_bound(anchors: Array) -> float:
    """The largest absolute value that a latent may have: 1 if no anchor has a larger one.

    This is the range of the tanh bottleneck; the decoder has seen nothing beyond. Anchors that
    leave it (architecture.tanh=False) show that there is no such range: infinity.
    """
    return 1.0 if np.abs(anchors).max() <= 1 else np.inf


def draw(key: Key, anchors: Array, n: int) -> Array:
    """`n` rows of `anchors`, uniformly and with replacement."""
    return anchors[jax.random.randint(key, (n,), 0, len(anchors))]


def _check_anchors(anchors: np.ndarray, quality: np.ndarray) -> None:
    if anchors.ndim != 2:
        raise HyperJaxError(f"anchors have shape {anchors.shape}, expected (anchors, values)")
    if anchors.size == 0:
        raise HyperJaxError(f"there are no anchors (shape {anchors.shape}), expected at least 1")
    if quality.shape != anchors.shape[:1]:
        raise HyperJaxError(
            f"quality has shape {quality.shape}, expected {anchors.shape[:1]}: one value an anchor"
        )
    bad = np.sum(~np.isfinite(anchors).all(axis=1))
    if bad:
        raise HyperJaxError(f"{bad} of {len(anchors)} anchors hold NaN or infinite values")


def _check_length(anchors: np.ndarray, spec: WeightSpec) -> None:
    if anchors.ndim == 2 and anchors.shape[1] != spec.num_params:
        raise HyperJaxError(
            f"anchors have {anchors.shape[1]} values; this architecture "
            f"({', '.join(spec.names)}) has {spec.num_params}"
        )
