"""Figure 5: ensembles of sampled and of trained models."""

import numpy as np

from hyperjax.analysis import ensembles
from hyperjax.analysis.ensembles import Ensembles
from hyperjax.app.context import Context
from hyperjax.app.populations import available, drawn, from_scratch, sources
from hyperjax.paper.common import band, percent
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table

_POPULATIONS = (
    "S_kde30", "S_kde_anchor30", "S_joint", "S_joint30", "B_kde30", "B_kde_anchor30", "average",
    "diffusion", "polish:diffusion", "subsample:polish:diffusion",
)  # fmt: skip


def run(context: Context) -> dict[str, Ensembles]:
    evaluation = context.trained.config.evaluation
    last = context.trained.config.autoencoder.data.epochs_seen[-1:]
    vectors = {"B_T": from_scratch(context, epochs=last).weights[:, 0]}
    labels = available(context, _POPULATIONS) or list(sources(context))
    for label in labels:
        vectors[label] = np.asarray(drawn(context, label).weights[:, 0])
    return ensembles.ensembles(
        vectors,
        context.trained.task,
        sizes=evaluation.ensemble_sizes,
        draws=evaluation.ensemble_draws,
        seed=context.trained.config.seed,
    )


def section(context: Context, result: dict[str, Ensembles]) -> Section:
    config = context.trained.config
    evaluation, epoch = config.evaluation, config.autoencoder.data.epochs_seen[-1]
    series, rows = {}, []
    shown = [size for size in (1, 2, 5, 10, 15) if size in evaluation.ensemble_sizes]
    for name, r in result.items():
        if len(r.sizes):
            series[name] = band(r.sizes, 100 * r.accuracy, config)
        by_size = dict(zip(r.sizes.tolist(), r.accuracy, strict=True))
        cells = [percent(by_size[size]) if size in by_size else None for size in shown]
        largest = r.accuracy[-1:].mean() if len(r.sizes) else np.nan
        gain = 100 * float(largest - r.single.mean())
        rows.append((name, len(r.single), percent(r.single), *cells, gain))
    return Section(
        "fig5",
        "Ensembles (Figure 5)",
        text=(
            f"An ensemble predicts by the mean probability of its models, drawn without "
            f"replacement from a population; {evaluation.ensemble_draws} ensembles of every size. "
            f"B_T are the zoo's test members after {epoch} epochs; the others are as decoded.",
        ),
        tables=(
            Table(
                "ensembles",
                "Test accuracy of ensembles",
                ("population", "models", "one model (%)", *(f"of {n} (%)" for n in shown),
                 "largest - one (points)"),
                tuple(rows),
                note="one model: mean ± standard deviation over models; else over ensembles, which "
                "share models, so that their spread shrinks with their size; largest: of these "
                "sizes, as far as a population has so many models.",
            ),
        ),
        figures=(
            Figure(
                "ensembles",
                "Accuracy against the number of models",
                plots.curves(series, "models in the ensemble", "test accuracy (%)"),
                alt="Mean test accuracy of ensembles against the number of their models",
                note="Bands: 95 % bootstrap interval of the mean over ensembles.",
            ),
        ),
        data={name: r._asdict() for name, r in result.items()},
    )  # fmt: skip
