"""Samplers that look at what the drawn models can do (SANE, Schürholt et al., arXiv 2406.09997).

Both wrap any sampler and take a score, `score(samples f32[n, Z]) -> f32[n]`, higher is better,
NaN is worst. It is for the caller to say what is good: samplers know no images. A score must
never look at test images, or the test accuracy of its choice says nothing.
"""

import math
from collections.abc import Callable

import jax
import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.samplers.base import Sampler, make
from hyperjax.types import Array

Score = Callable[[Array], Array]


def subsample(sampler: Sampler, score: Score, factor: int) -> Sampler:
    """Draw `factor` times as many samples as asked for, and keep the best, best first.

    The score runs on the host; `sample` cannot be jitted. It raises HyperJaxError if the score
    of fewer samples than asked for is a number.

    >>> sampler = hj.samplers.subsample(hj.samplers.uniform(), lambda z: z.sum(axis=1), 4)
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """

    def sample(key, state, n):
        drawn = sampler.sample(key, state, factor * n)
        return drawn[_ranked(score, drawn, n)]

    description = f"{sampler.description}; the best of {factor} times as many, by score"
    made = make(sampler.fit, sample, sampler.space, description, sampler.report)
    return made._replace(draws=sampler.draws)


def bootstrap(
    sampler: Sampler,
    score: Score,
    *,
    rounds: int,
    draws: int,
    fraction: float,
    anchors_of: Callable[[Array], Array] | None = None,
) -> Sampler:
    """Refit `sampler` for some rounds on the best `fraction` of `draws` of its own samples.

    `anchors_of` makes anchors of samples, where they are of another space.

    Fitting raises HyperJaxError if the score of fewer samples than that is a number, if the
    sampler fits nothing to anchors, and whatever it raises itself for so many anchors.

    >>> sampler = hj.samplers.bootstrap(
    ...     hj.samplers.joint(0.4), lambda z: z.sum(axis=1), rounds=2, draws=10, fraction=0.5
    ... )
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    kept = math.ceil(fraction * draws)

    def fit(key, anchors, quality=None):
        first_key, rounds_key = jax.random.split(key)
        state = sampler.fit(first_key, anchors, quality)
        if not jax.tree.leaves(state):
            raise HyperJaxError(
                f"bootstrap refits a sampler to what it drew, and this one fits nothing to anchors "
                f"({sampler.description}); subsample chooses among its draws"
            )
        for round_key in jax.random.split(rounds_key, rounds):
            draw_key, fit_key = jax.random.split(round_key)
            drawn = sampler.sample(draw_key, state, draws)
            chosen = np.asarray(drawn)[_ranked(score, drawn, kept)]
            chosen = anchors_of(chosen) if anchors_of else chosen
            # Of equal quality, so that a `...30` sampler does not choose among the chosen.
            state = sampler.fit(fit_key, chosen, np.ones(kept, np.float32))
        return state

    description = (
        f"{sampler.description}; refitted {rounds} times on the best {kept} of {draws} samples, "
        "by score"
    )
    return sampler._replace(fit=fit, description=description)


def _ranked(score: Score, samples: Array, count: int) -> np.ndarray:
    """Rows of the `count` best samples, best first; the first drawn where they are equal."""
    scores = np.asarray(score(samples), np.float64)
    if scores.shape != (len(samples),):
        raise HyperJaxError(
            f"the score of {len(samples)} samples has shape {scores.shape}, "
            f"expected ({len(samples)},)"
        )
    known = int(np.sum(~np.isnan(scores)))
    if known < count:
        raise HyperJaxError(
            f"the score of {len(samples) - known} of {len(samples)} samples is NaN: cannot keep "
            f"the best {count}"
        )
    return np.argsort(-scores, kind="stable")[:count]  # NaN comes last
