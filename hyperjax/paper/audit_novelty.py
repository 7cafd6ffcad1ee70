"""Novelty audit: samples against train models, noise on them and averages of them.

Whatever goes through `repair:` or is chosen by validation accuracy is compared with baselines that
do so too: of poor networks the best of many are far better than most. What this file computes is
shown by `novelty_section`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from hyperjax import hyperrep, samplers
from hyperjax.analysis import novelty
from hyperjax.analysis.novelty import (
    KINDS,
    PLAIN,
    REPAIRED,
    SELECTED,
    SELECTED_REPAIRED,
    Novelty,
)
from hyperjax.app.context import Context
from hyperjax.app.populations import FILE, LATENT, TWIN, Source, drawn, score, sources
from hyperjax.app.progress import bar
from hyperjax.app.run import Run
from hyperjax.paper.novelty_section import AVERAGE, HELD_OUT, NOISE, REPAIRED_HELD_OUT, section
from hyperjax.population.repair import repair_all
from hyperjax.rng import experiment_key
from hyperjax.samplers import Sampler, baselines
from hyperjax.store import workdir, zoo_file

__all__ = ["run", "section"]

# Of each layer's standard deviation: close to each other where samples lie, since a frontier that
# is drawn as a line between two of them is too low.
_NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.6)
_AVERAGES = (2, 3, 4, 8, 16)  # train members; fewer where there are fewer
_KINDS = {  # by whether they are repaired, and selected
    (False, False): PLAIN,
    (True, False): REPAIRED,
    (False, True): SELECTED,
    (True, True): SELECTED_REPAIRED,
}
_MOST = 20_000  # reconstructions of one hyper-representation that are held


def run(context: Context) -> Novelty:
    """Audit all populations, and the held-out members as what a perfect sampler would give.

    Samples of latents are also compared with what their decoder makes of the train models: of every
    snapshot that the autoencoder saw, or of a zoo with more than 20,000 of these, of the members'
    last ones alone, so that they fit into memory. A replay of an earlier snapshot then lies a
    little farther from its reconstruction.
    """
    trained = context.trained
    known, members = sources(context), trained.data.test[: context.num_samples, -1]
    populations = {label: np.asarray(drawn(context, label).weights[:, 0]) for label in known}
    kinds = {label: kind_of(source) for label, source in known.items()}
    populations[HELD_OUT], kinds[HELD_OUT] = members, PLAIN
    if workdir.moments_path(trained.folder).exists():
        populations[REPAIRED_HELD_OUT] = _repaired(trained, members)
        kinds[REPAIRED_HELD_OUT] = REPAIRED
    asked, strengths = set(kinds.values()), _samplers(trained)
    with bar("novelty", len(populations) + 2 * len(asked) * len(strengths)) as advance:
        base = _baselines(context, strengths, [k for k in KINDS if k in asked], advance)
        return novelty.audit(
            populations,
            base,
            trained.train_models,
            trained.task,
            kinds=kinds,
            reconstructions=_reconstructions(trained, known),
            bootstrap=trained.config.evaluation.bootstrap,
            seed=trained.config.seed,
            advance=advance,
        )


def kind_of(source: Source) -> str:
    """Of which kind of baselines a population has to be more than."""
    name = _recorded(source.path) if source.kind == FILE else source.sampler
    return _KINDS[samplers.is_repaired(name), samplers.is_selected(name)]


def _recorded(path: Path) -> str:
    """The sampler of which a file says that it drew its networks; none where it says nothing."""
    return str(zoo_file.about(path)[1].get("sampler", ""))


def _repaired(trained: Run, vectors: np.ndarray) -> np.ndarray:
    return repair_all(trained.zoo.spec, trained.repair, vectors)


def _reconstructions(trained: Run, known: dict[str, Source]) -> dict[str, np.ndarray]:
    """Of the train models [T, E, D], for every population that was decoded; repaired where it was
    repaired, so that a repair hides no replay. Equal ones are one array."""
    members = trained.data.train
    if members.shape[0] * members.shape[1] > _MOST:
        members = members[:, -1:]
    made, found = {}, {}

    def of(name: str, repaired: bool) -> np.ndarray:
        if (name, repaired) not in made and repaired:
            plain = of(name, False)
            flat = _repaired(trained, plain.reshape(-1, plain.shape[-1]))
            made[name, True] = flat.reshape(plain.shape)
        elif (name, repaired) not in made:
            model = trained.hyperreps[name]
            made[name, False] = np.asarray(hyperrep.reconstruct(model, members, aligned=True))
        return made[name, repaired]

    for label, source in known.items():
        wrapped = source.kind != FILE and label != source.sampler  # latents that are drawn as such
        if source.kind in (LATENT, TWIN) or wrapped:
            found[label] = of(source.hyperrep, samplers.is_repaired(source.sampler))
    return found


def _samplers(trained: Run) -> dict[str, Sampler]:
    """Noise on train members and averages of them, of several strengths, from all train members
    and from the best."""
    config = trained.config.samplers
    anchors, quality = trained.data.train[:, -1], trained.data.quality[:, -1]
    best = 0
    if np.isfinite(quality).any():
        best = int(np.sum(quality >= np.nanquantile(quality, 1 - config.best_fraction)))
    made = _strengths(lambda scale: baselines.noise(scale, trained.zoo.spec))
    chosen = {name: sampler for name, (sampler, least) in made.items() if least <= len(anchors)}
    return chosen | {
        f"{name}, best {100 * config.best_fraction:g} %": samplers.best(one, config.best_fraction)
        for name, (one, least) in made.items()
        if least <= best
    }


def _baselines(
    context: Context, strengths: Mapping[str, Sampler], kinds: Sequence[str], advance: Callable
) -> dict[str, dict[str, np.ndarray]]:
    """By kind and name, as many networks float32[M, D] as a sampler draws. Those of the other kinds
    are made of the plain ones, or chosen from more of them."""
    trained = context.trained
    anchors, quality = trained.data.train[:, -1], trained.data.quality[:, -1]
    root, forms = experiment_key(trained.config.seed, "novelty"), _forms(trained)
    found = {kind: {} for kind in kinds}
    for number, (name, sampler) in enumerate(strengths.items()):
        key_fit, key_sample = jax.random.split(jax.random.fold_in(root, number))
        state = sampler.fit(key_fit, anchors, quality)
        for kind in kinds:
            of_kind = forms[kind](sampler)
            found[kind][name] = np.asarray(of_kind.sample(key_sample, state, context.num_samples))
            advance(1, f"drawing {name}")
    return found


def _forms(trained: Run) -> dict[str, Callable[[Sampler], Sampler]]:
    """What makes a sampler of weights one of each kind, with the same state of its fit."""

    def repaired(sampler: Sampler) -> Sampler:
        return samplers.repair(sampler, functools.partial(_repaired, trained))

    def selected(sampler: Sampler) -> Sampler:
        factor = trained.config.samplers.subsample_factor
        return samplers.subsample(sampler, functools.partial(score, trained), factor)

    return {
        PLAIN: lambda sampler: sampler,
        REPAIRED: repaired,
        SELECTED: selected,
        SELECTED_REPAIRED: lambda sampler: selected(repaired(sampler)),
    }


def _strengths(noise: Callable[[float], Sampler]) -> dict[str, tuple[Sampler, int]]:
    """By name, each with the least number of anchors that it takes."""
    made = {f"{NOISE} {scale:g}": (noise(scale), 1) for scale in _NOISE}
    made |= {f"{AVERAGE} of {n}": (baselines.average(n), n) for n in _AVERAGES}
    return made | {f"{AVERAGE} with nearest": (baselines.average_nearest(), 2)}
