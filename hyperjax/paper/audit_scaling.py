"""Scaling: what a denoiser, and samples by it, gain from more train members.

Subsets of one zoo's train members, each with a denoiser of its own that is trained for equally many
steps. Held-out members are the same for all. Hours of work: only if asked for.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hyperjax import distributed
from hyperjax.analysis import metrics
from hyperjax.app import stage, train_denoiser
from hyperjax.app.context import Context
from hyperjax.app.populations import digest
from hyperjax.app.run import Run
from hyperjax.app.stage import Stage
from hyperjax.config import DenoiserConfig, override, to_dict
from hyperjax.diffusion import UNKNOWN, Denoiser, fit_denoiser, sampling
from hyperjax.diffusion import denoiser_training as training
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep.losses import slot_scale
from hyperjax.population import evaluation
from hyperjax.population.repair import fit_repair, repair_all
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.rng import experiment_key
from hyperjax.store import denoiser_file, files
from hyperjax.symmetry import nearest
from hyperjax.types import Array


class Sampled(NamedTuple):
    """A population by one denoiser: means over its networks."""

    accuracy: float  # on test images
    novelty: float  # against the train members of the subset
    parent_gap: float  # see `analysis.metrics.error_overlap`


class Point(NamedTuple):
    """What so many train members give."""

    members: int
    seed: int
    best_step: int
    held_out: dict[float, float]  # error as a share of the Wiener denoiser's, by noise level
    train: dict[float, float]
    wiener: dict[float, float]  # the Wiener denoiser's error on held-out members, a weight
    components_r2: float  # of held-out members on as many principal components as there are latents
    components_accuracy: float
    plain: Sampled
    repaired: Sampled


Result = list[Point]


def run(context: Context) -> Result:
    trained, evaluation_config = context.trained, context.trained.config.evaluation
    config = trained.config.denoiser
    if not config.training.steps:
        raise HyperJaxError(
            "scaling trains denoisers as config field denoiser says, and its training.steps is 0: "
            "make a workdir with more"
        )
    steps = evaluation_config.scaling_steps or config.training.steps
    config = override(trained.config, {"denoiser.training.steps": steps}).denoiser
    available = len(trained.split.train)
    sizes = sorted({min(size, available) for size in evaluation_config.scaling_members})
    points = []
    for size in sizes:
        seeds = evaluation_config.scaling_seeds if size <= available // 3 else 1
        points += [_point(context, config, size, seed) for seed in range(seeds)]
    return points


def _point(context: Context, config: DenoiserConfig, size: int, seed: int) -> Point:
    run = context.trained
    rows = np.random.default_rng([run.config.seed, seed]).permutation(len(run.split.train))[:size]
    train, quality = run.data.train[rows], run.data.quality[rows]
    denoiser, info = _denoiser(context.folder, run, config, train, quality, seed)
    unit = np.asarray(slot_scale(run.zoo.spec, denoiser.scale))[None]
    judged, noise = (train[:, -1] / unit, run.data.test[:, -1] / unit), jax.random.key(2)
    static = training.Static(config.graph, run.zoo.spec)
    of_train, of_held_out = (
        training.ratios(static, denoiser.params, denoiser.wiener, part[: len(judged[1])], noise)
        for part in judged
    )
    r2, accuracy = _components(run, train[:, -1])
    key = jax.random.fold_in(experiment_key(run.config.seed, "scaling"), seed)
    quantiles = np.full(context.num_samples, UNKNOWN, np.float32)
    drawn = sampling.sample(key, denoiser, run.config.samplers.diffusion, quantiles)
    fitted = fit_repair(run.zoo.spec, train[:, -1], run.repair.inputs)
    mended = repair_all(run.zoo.spec, fitted, drawn)
    models = nearest.train_models(run.zoo.spec, train[:, -1:], run.reference)
    plain, repaired = (_sampled(run, models, np.asarray(x)) for x in (drawn, mended))
    return Point(
        size, seed, info["best_step"],
        {level: ratio for level, (ratio, _) in of_held_out.items()},
        {level: ratio for level, (ratio, _) in of_train.items()},
        {level: error for level, (_, error) in of_held_out.items()},
        r2, accuracy, plain, repaired,
    )  # fmt: skip


def _denoiser(
    folder: Path, run: Run, config: DenoiserConfig, train: Array, quality: Array, seed: int
) -> tuple[Denoiser, dict]:
    """The denoiser of a subset, from its file, or trained now; resumable."""
    own = {"config": to_dict(config), "seed": [run.config.seed, seed], "members": len(train)}
    name = f"members{len(train)}-seed{seed}-{digest(own)}"
    path, checkpoints = folder / "scaling" / f"{name}.safetensors", folder / "checkpoints" / name
    if not distributed.exists(path):
        prepared = fit_denoiser.prepare(
            config, run.zoo.spec, train, run.data.val, quality, run.config.seed
        )
        key = jax.random.fold_in(experiment_key(run.config.seed, "scaling"), 1000 + seed)
        result = stage.train(
            Stage(
                f"scaling/{name}", f"denoiser of {len(train)} members, seed {seed}", folder,
                checkpoints, config.training.steps, run.config.checkpoint_seconds,
            ),
            lambda: training.begin(prepared.trainer, key),
            lambda begun: begun,
            lambda begun: fit_denoiser.steps(prepared, begun),
            train_denoiser.note,
        )  # fmt: skip
        best = distributed.fetch(result.best)
        made = Denoiser(config, run.zoo.spec, best, prepared.wiener, prepared.scale, run.reference)
        denoiser_file.write(path, made, own | {"best_step": int(result.best_step)})
        distributed.barrier(f"{path} is written")
    files.remove(checkpoints)
    files.remove_if_empty(checkpoints.parent)
    denoiser, info = denoiser_file.read(path)
    return jax.device_put(denoiser), info


def _components(run: Run, train: np.ndarray) -> tuple[float, float]:
    """R² and accuracy of held-out members on the train members' principal components, in units of
    layer standard deviations: what an autoencoder has to beat."""
    from hyperjax.diffusion import wiener
    from hyperjax.weights import layer_std

    spec = run.zoo.spec
    unit = np.asarray(slot_scale(spec, layer_std(spec, train)))[None]
    fitted = wiener.fit(train / unit, 0.0)
    axes = fitted.axes[: run.config.autoencoder.architecture.latent]
    offset = run.data.test[:, -1] / unit - fitted.mean[None]
    kept = (offset @ axes.T) @ axes
    r2 = 1 - np.sum((offset - kept) ** 2) / np.sum(offset**2)
    vectors = np.float32((kept + fitted.mean[None]) * unit)
    return float(r2), float(evaluation.evaluate(run.task, vectors, run.task.test).accuracy.mean())


def _sampled(run: Run, models: nearest.TrainModels, vectors: np.ndarray) -> Sampled:
    task, labels = run.task, np.asarray(run.task.test.labels)
    measured = evaluation.evaluate(task, vectors, task.test)
    of_train = evaluation.evaluate(task, models.vectors[:, -1], task.test).predictions
    overlap = metrics.error_overlap(
        metrics.error_bits(measured.predictions, labels),
        metrics.error_bits(of_train, labels)[:, None],
    )
    novelty = nearest.novelty(models, vectors)
    return Sampled(
        float(measured.accuracy.mean()),
        float(np.nanmean(novelty)),
        float(np.nanmean(overlap.parent_gap)),
    )


def section(context: Context, result: Result) -> Section:
    steps = context.trained.config.evaluation.scaling_steps
    return Section(
        "scaling",
        "What more train members give",
        text=(
            "Denoisers of subsets of the zoo's train members, each trained for "
            f"{steps or context.trained.config.denoiser.training.steps:,} steps, judged on members "
            "that none has seen. The ratio is the error as a share of the Wiener denoiser's of the "
            "same members: below 1 is structure beyond second order that carries over. Few members "
            "give a poor Wiener denoiser, so that errors compare between their numbers and ratios "
            "do not. Where the best step is the last one, more steps would help. Samples are novel "
            "with respect to their train members. Seeds differ in subset, noise and parameters.",
        ),
        tables=(_table(result),),
        figures=_figures(result),
        data={"points": [point._asdict() for point in result]},
    )


def _error(point: Point) -> float:
    """Of the denoiser on held-out members, at noise of one layer standard deviation."""
    return point.held_out[1.0] * point.wiener[1.0]


def _table(result: Result) -> Table:
    rows = [
        (
            p.members, p.seed, p.best_step, p.wiener[1.0], _error(p), p.held_out[1.0], p.train[1.0],
            p.components_r2, 100 * p.components_accuracy, 100 * p.plain.accuracy, p.plain.novelty,
            100 * p.repaired.accuracy, p.repaired.novelty, p.repaired.parent_gap,
        )
        for p in result
    ]  # fmt: skip
    return Table(
        "scaling",
        "Train members against what carries over",
        ("train members", "seed", "best step", "Wiener's error", "error", "ratio", "ratio, train",
         "components R²", "components (%)", "diffusion (%)", "novelty",
         "repaired (%)", "novelty, repaired", "parent gap, repaired"),
        tuple(rows),
        note="errors of a weight of held-out members, and the ratio of both, at noise of one layer "
        "standard deviation; components: held-out members on principal components",
    )  # fmt: skip


def _figures(result: Result) -> tuple[Figure, ...]:
    sizes = sorted({p.members for p in result})

    def series(value) -> plots.Series:
        found = [np.array([value(p) for p in result if p.members == size]) for size in sizes]
        ends = (np.array([end(x) for x in found]) for end in (np.mean, np.min, np.max))
        return np.asarray(sizes), *ends

    errors = {
        "denoiser": series(_error),
        "Wiener denoiser of the same members": series(lambda p: p.wiener[1.0]),
    }
    ratios = {
        "held-out members": series(lambda p: p.held_out[1.0]),
        "train members": series(lambda p: p.train[1.0]),
    }
    accuracy = {
        "diffusion": series(lambda p: 100 * p.plain.accuracy),
        "diffusion, repaired": series(lambda p: 100 * p.repaired.accuracy),
        "held-out members on principal components": series(lambda p: 100 * p.components_accuracy),
    }
    note = "Bands: least and largest of the seeds."
    return (
        Figure(
            "error",
            "Denoising error on held-out members",
            plots.curves(
                errors, "train members", "mean squared error of a weight",
                dashed=["Wiener denoiser of the same members"],
                linear_below=sizes[0], ticks=sizes,
            ),
            alt="Denoising error on held-out members, of the denoiser and of the Wiener denoiser, "
            "against the number of train members",
            note=f"At noise of one layer standard deviation, in its square. {note}",
        ),
        Figure(
            "ratio",
            "Error as a share of the Wiener denoiser's",
            plots.curves(
                ratios, "train members", "error / Wiener denoiser's",
                linear_below=sizes[0], ticks=sizes,
            ),
            alt="Ratio to the Wiener denoiser, on train and on held-out members, against the "
            "number of train members",
            note=f"At noise of one layer standard deviation. {note}",
        ),
        Figure(
            "accuracy",
            "Accuracy of samples against train members",
            plots.curves(
                accuracy, "train members", "test accuracy (%)",
                linear_below=sizes[0], ticks=sizes,
            ),
            alt="Test accuracy of samples against the number of train members",
            note=note,
        ),
    )  # fmt: skip
