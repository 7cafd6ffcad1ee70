"""How well the denoiser of weights does on networks that it has not seen.

Its error there, relative to that of the Wiener denoiser, says what it has learnt of networks beyond
their second moments, without a sample or an image.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hyperjax.app.context import Context
from hyperjax.app.progress import bar
from hyperjax.app.run import Run
from hyperjax.app.train_denoiser import NAME
from hyperjax.diffusion.denoiser import Static
from hyperjax.diffusion.denoiser_training import LEVELS, ratios
from hyperjax.hyperrep.losses import slot_scale
from hyperjax.paper.common import PARTS
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.rng import experiment_key
from hyperjax.symmetry.nearest import evenly_spaced

_WIENER = "Wiener denoiser"


class Errors(NamedTuple):
    """Mean squared errors a weight, in units of layer variances, at each of the noise levels."""

    members: int
    wiener: np.ndarray  # float[levels]
    denoiser: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        return self.denoiser / self.wiener


class History(NamedTuple):
    """Of the training, f[validations]: ratios are means over the noise levels."""

    step: np.ndarray
    train: np.ndarray
    validation: np.ndarray


class Denoising(NamedTuple):
    levels: tuple[float, ...]  # in layer standard deviations
    errors: dict[str, Errors]  # of "train" and "heldout" members
    history: History
    info: dict[str, int | float]  # of the denoiser


def run(context: Context) -> Denoising:
    """Denoise last snapshots of test members, by which nothing was chosen, and of train members: at
    most 1,000 of each, evenly spaced. Noise is the same for both."""
    trained = context.trained
    denoiser, facts = trained.denoiser, trained.denoiser_info
    unit = np.asarray(slot_scale(denoiser.spec, denoiser.scale))[None]
    static, key = Static(denoiser.config.graph, denoiser.spec), _key(trained)
    members, errors = {"heldout": trained.data.test, "train": trained.data.train}, {}
    with bar("denoiser", len(members)) as advance:
        for part, all_of in members.items():
            vectors = all_of[evenly_spaced(len(all_of)), -1] / unit
            found = ratios(static, denoiser.params, denoiser.wiener, vectors, key)
            share, wiener = np.array([found[level] for level in LEVELS]).T
            errors[part] = Errors(len(vectors), wiener, share * wiener)
            advance(1, part)
    info = {
        "train vectors": int(facts["members"]),
        "steps": denoiser.config.training.steps,
        "best step": int(facts["best_step"]),
        "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(denoiser.params)),
        "weights of a network": denoiser.spec.num_params,
    }
    return Denoising(LEVELS, errors, history(trained.folder), info)


def _key(trained: Run) -> jax.Array:
    return experiment_key(trained.config.seed, "denoiser")


def history(folder: Path) -> History:
    """What the training has logged in metrics.jsonl; empty where that is not there."""
    path, rows = folder / "metrics.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line that a killed run was writing
        if record.get("stage") == NAME:
            rows[record["step"]] = record["train_ratio"], record["val_ratio"]
    return History(*np.array([(step, *rows[step]) for step in sorted(rows)]).reshape(-1, 3).T)


# --- what the report shows --------------------------------------------------------------


def section(context: Context, result: Denoising) -> Section:
    return Section(
        "denoiser",
        "What the denoiser knows of unseen networks (denoising audit)",
        text=(
            "Diffusion draws networks by a denoiser: the linear-optimal (Wiener) denoiser of the "
            "train members' mean and covariance, and what a network on their graph adds to it. "
            "The ratio is its mean squared error as a share of the Wiener denoiser's on the same "
            "noisy networks. 1: it knows nothing beyond second moments, and samples would be "
            "those of a Gaussian; the lower, the more structure it has found. No sample and no "
            "image has a part in it.",
            "What counts is the ratio on held-out members. Where that of train members is below, "
            "the denoiser has memorised some of them; if the one falls in training while the "
            "other rises, it does nothing else, and needs more members or fewer steps. The Wiener "
            "denoiser knows train members better than others, too: its own error on them is the "
            "lower the fewer there are, and the ratio on them the harder to lower.",
            _finding(result),
        ),
        tables=(_error_table(result), _info_table(result)),
        figures=(_level_figure(result), *_history_figures(result)),
        data=result._asdict(),
    )


def _finding(result: Denoising) -> str:
    held_out, train = (float(result.errors[part].ratio.mean()) for part in ("heldout", "train"))
    return (
        f"Here the mean ratio over {len(result.levels)} noise levels is {held_out:.3f} on "
        f"{result.errors['heldout'].members} held-out members (of the test split; the step was "
        f"chosen on others) and {train:.3f} on {result.errors['train'].members} train members."
    )


def _error_table(result: Denoising) -> Table:
    parts = [result.errors[part] for part in ("heldout", "train")]
    cells = np.array([column for e in parts for column in (e.wiener, e.denoiser, e.ratio)]).T
    rows = [
        (f"{level:g}", *map(float, row)) for level, row in zip(result.levels, cells, strict=True)
    ]
    means = [cell for e in parts for cell in (None, None, float(e.ratio.mean()))]
    return Table(
        "errors",
        "Errors by noise level",
        ("noise level", *(f"{of}, {what}" for of in ("held-out", "train")
                          for what in ("Wiener", "denoiser", "ratio"))),
        (*rows, ("mean", *means)),
        note="Mean squared errors a weight, in units of its layer's variance; noise levels in "
        "layer standard deviations. The denoiser is not told how good the networks are.",
    )  # fmt: skip


def _info_table(result: Denoising) -> Table:
    return Table(
        "facts",
        "The denoiser",
        ("fact", "number"),
        tuple(result.info.items()),
        note="train vectors: train members times the snapshots of each that it is shown; best "
        "step: of the least mean ratio on validation members, whose parameters are used.",
    )


def _curve(x: np.ndarray, y: np.ndarray) -> plots.Series:
    return x, y, np.full(len(x), np.nan), np.full(len(x), np.nan)


def _level_figure(result: Denoising) -> Figure:
    x = np.array(result.levels)
    series = {PARTS[part]: _curve(x, result.errors[part].ratio) for part in ("heldout", "train")}
    return Figure(
        "levels",
        "Ratio by noise level",
        plots.curves(
            series | {_WIENER: _curve(x, np.ones(len(x)))},
            "noise level (layer standard deviations)",
            "error / Wiener denoiser's",
            dashed=[_WIENER],
        ),
        alt="Ratio of the errors against the noise level, of held-out and of train members",
        note="The lower, the more it knows beyond second moments.",
    )


def _history_figures(result: Denoising) -> tuple[Figure, ...]:
    x, train, validation = result.history
    if not len(x):
        return ()
    series = {
        "validation members": _curve(x, validation),
        PARTS["train"]: _curve(x, train),
        _WIENER: _curve(x, np.ones(len(x))),
    }
    return (
        Figure(
            "training",
            "Ratio in training",
            plots.curves(series, "step", "error / Wiener denoiser's", dashed=[_WIENER]),
            alt="Mean ratio of the errors against the step of training, of validation and of "
            "train members",
            note="Mean over the noise levels. Used as of step "
            f"{result.info['best step']}, the best on validation members.",
        ),
    )
