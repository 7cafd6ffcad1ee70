"""What the sections of several experiments share."""

from collections.abc import Mapping, Sequence

import numpy as np

from hyperjax.analysis import statistics
from hyperjax.analysis.statistics import Comparison
from hyperjax.app.context import Context
from hyperjax.app.train import chosen
from hyperjax.config import Config
from hyperjax.report import plots
from hyperjax.report.tables import Spread, Table
from hyperjax.types import Array
from hyperjax.zoo import Zoo

HYPERREPS = {"lwln": "with LWLN", "no_lwln": "without LWLN", "vae": "VAE"}
PARTS = {"train": "train members", "heldout": "held-out members"}


def spread(values: Array) -> Spread:
    """Mean and standard deviation of the values that are finite."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    if not len(finite):
        return Spread(float("nan"), float("nan"))
    return Spread(float(np.mean(finite)), float(np.std(finite)))


def percent(accuracy: np.ndarray) -> Spread:
    """The same in percent."""
    return Spread(*(100 * part for part in spread(accuracy)))


def band(x: Array, values: Sequence[Array], config: Config) -> plots.Series:
    """Means of the values f[N] at each x, with their 95 % bootstrap intervals."""
    resamples, seed = config.evaluation.bootstrap, config.seed
    all_of = [statistics.summarize(at, bootstrap=resamples, seed=seed) for at in values]
    low, high = (np.array([s.mean_ci[end] for s in all_of]) for end in (0, 1))
    return np.asarray(x), np.array([s.mean for s in all_of]), low, high


def effects_table(
    name: str,
    title: str,
    columns: Sequence[str],
    rows: Mapping[tuple[str | int, ...], Comparison],
    note: str,
) -> Table:
    """Comparisons, each with what names it in the first `columns`. Positive: the first is above."""
    return Table(
        name,
        title,
        (*columns, "rank-biserial", "common-language effect", "p Mann-Whitney", "Cohen's d",
         "p Welch"),
        tuple(
            (*key, c.rank_biserial, c.cles, c.mwu_p, c.cohens_d, c.welch_p)
            for key, c in rows.items()
        ),
        note=note,
    )  # fmt: skip


def compared_epoch(models: Zoo) -> int:
    """Epochs after which training from scratch is compared: the paper's 25, or all there are."""
    return 25 if 25 in models.epochs else int(models.epochs[-1])


def steps(context: Context, names: Sequence[str]) -> str:
    """Which step of each autoencoder its figures are of, in a sentence."""
    hyperreps, words = context.trained.hyperreps, []
    for name in names:
        step = hyperreps.info(name)["best_step"]
        words.append(f"{HYPERREPS[name]}, {chosen(hyperreps[name].config, step)}")
    return f"Figures are of these steps of training: {'; '.join(words)}."
