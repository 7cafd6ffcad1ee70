"""Figure 2: reconstruction, with and without LWLN."""

from hyperjax.analysis import reconstruction
from hyperjax.analysis.reconstruction import Reconstruction, Reconstructions
from hyperjax.app.context import Context
from hyperjax.paper.common import HYPERREPS, PARTS, percent, steps
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.weights import WeightSpec


def run(context: Context) -> Reconstructions:
    trained = context.trained
    task = trained.task if trained.has_images else None
    return reconstruction.reconstructions(trained.pair, trained.data, task)


def section(context: Context, result: Reconstructions) -> Section:
    spec = context.trained.zoo.spec
    layers = spec.names
    rows = [
        (
            f"{PARTS[part]}, {HYPERREPS[name]}",
            percent(r.accuracy),
            100 * float(r.original_accuracy.mean()),
            *(r.r2[key] for key in ("all", *layers)),
        )
        for (name, part), r in result.items()
    ]
    figures = []
    for part in PARTS:
        columns = {
            HYPERREPS[name]: _panels(r, spec) for (name, p), r in result.items() if p == part
        }
        figures.append(Figure(
            f"weights_{part}",
            f"Weights of {PARTS[part]}",
            plots.weight_histograms(columns),
            alt=f"Histograms per layer of original and reconstructed weights of {PARTS[part]}",
        ))  # fmt: skip
    return Section(
        "fig2",
        "Reconstruction, with and without layer-wise loss normalisation (Figure 2)",
        text=(
            "Members of the train split, which the autoencoder was trained on, and of the test "
            "split, which took no part in training or selection. R² is against the mean of the "
            "train members: 0 means no better than that mean, over all epochs that the "
            "autoencoder sees. Accuracy is that of the last of these epochs.",
            steps(context, list(context.trained.pair)),
        ),
        tables=(
            Table(
                "reconstruction",
                "Accuracy and R² of reconstructions",
                ("members", "accuracy (%)", "before (%)", "R² all", *(f"R² {n}" for n in layers)),
                tuple(rows),
            ),
        ),
        figures=tuple(figures),
        overview=_overview(context, result),
        data={
            f"{name}/{part}": {"r2": r.r2, "accuracy": r.accuracy, "before": r.original_accuracy}
            for (name, part), r in result.items()
        },
    )


def _panels(r: Reconstruction, spec: WeightSpec) -> dict[str, plots.Panel]:
    return {
        name: (r.original[:, part], r.reconstructed[:, part], r.r2[name])
        for name, part in zip(spec.names, spec.slices, strict=True)
    }


def _overview(context: Context, result: Reconstructions) -> tuple[tuple, ...]:
    rows = []
    for (name, part), r in result.items():
        if name == context.trained.main:
            label, count = f"zoo, {PARTS[part]}", len(r.original_accuracy)
            rows.append((label, count, *percent(r.original_accuracy), None, None))
    for (name, part), r in result.items():
        label = f"reconstructed {PARTS[part]}, {HYPERREPS[name]}"
        rows.append((label, len(r.accuracy), *percent(r.accuracy), 100 * r.disagreement, None))
    return tuple(rows)
