"""Figure 6: originals and their reconstructions while they are fine-tuned."""

import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import comparisons
from hyperjax.analysis.comparisons import NOISY, ORIGINAL, RECONSTRUCTED, Convergence
from hyperjax.app.context import Context
from hyperjax.app.populations import finetuned
from hyperjax.paper.common import band, percent
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.rng import experiment_key


def run(context: Context) -> Convergence:
    trained = context.trained
    original = trained.data.test[: context.num_samples, -1]
    model = trained.hyperreps[trained.main]
    reconstructed = hyperrep.reconstruct(model, original, aligned=True)
    key = experiment_key(trained.config.seed, "fig6")
    starts = {
        ORIGINAL: original,
        RECONSTRUCTED: reconstructed,
        NOISY: comparisons.with_noise(original, reconstructed, key),
    }
    epochs = range(trained.config.evaluation.epochs[-1] + 1)
    return comparisons.convergence(
        {
            name: finetuned(context, f"fig6-{name.split()[-1]}", vectors, context.home,
                                    epochs)
            for name, vectors in starts.items()
        }
    )  # fmt: skip


def section(context: Context, result: Convergence) -> Section:
    config, epochs = context.trained.config, result.epochs
    seen = config.autoencoder.data.epochs_seen[-1]
    accuracy = {name: band(epochs, 100 * a, config) for name, a in result.accuracy.items()}
    distance = {name: band(epochs, d, config) for name, d in result.distance.items()}
    cosine = {name: band(epochs, c, config) for name, c in result.cosine.items()}
    rows = []
    for name, by_epoch in result.accuracy.items():
        for row, epoch in enumerate(epochs.tolist()):
            both = [
                float(np.nanmean(of[name][row])) if name in of else None
                for of in (result.distance, result.cosine)
            ]
            rows.append((name, epoch, percent(by_epoch[row]), *both))
    axis = "epoch of fine-tuning"
    return Section(
        "fig6",
        "Do reconstructed models become their originals? (Figure 6)",
        text=(
            f"Held-out members after {seen} epochs (original) and their reconstructions by the "
            "main hyper-representation, each pair fine-tuned on the same batches. The third "
            "population starts from the originals plus Gaussian noise, as far from them as the "
            "reconstructions are: what it does too is not due to the hyper-representation. "
            "Distance and cosine are between each network and its original at the same epoch.",
        ),
        tables=(
            Table(
                "finetuning",
                "By epoch of fine-tuning",
                ("population", "epoch", "test accuracy (%)", "distance to original", "cosine"),
                tuple(rows),
                note="mean over members (± standard deviation)",
            ),
        ),
        figures=(
            Figure("accuracy", "Test accuracy", plots.curves(accuracy, axis, "test accuracy (%)"),
                   alt="Test accuracy of originals and reconstructions while fine-tuned"),
            Figure("distance", "Distance to the original",
                   plots.curves(distance, axis, "Euclidean distance"),
                   alt="Distance between reconstructions and originals while fine-tuned"),
            Figure("cosine", "Angle to the original",
                   plots.curves(cosine, axis, "cosine"),
                   alt="Cosine between reconstructions and originals while fine-tuned"),
        ),
        data=result._asdict(),
    )  # fmt: skip
