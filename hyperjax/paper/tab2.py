"""Table 2 and Figure 7: transfer to other data sets."""

from typing import NamedTuple

import numpy as np

from hyperjax.analysis import comparisons, statistics
from hyperjax.analysis.comparisons import OverEpochs
from hyperjax.app.context import Context, Target
from hyperjax.app.populations import available, drawn, finetuned, from_scratch, pretrained, sources
from hyperjax.paper.common import band, effects_table, percent
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table

_POPULATIONS = (
    "S_kde30", "S_neigh30", "S_gan30", "S_kde_anchor30", "S_joint30", "aligned_mean", "diffusion",
    "polish:diffusion",
)  # fmt: skip

# (source, target) -> population -> epochs 0, 1 and 50, of Table 2.
PUBLISHED = {
    ("svhn", "mnist"): {
        "B_T": ("10.0 ± 0.6", "20.6 ± 1.6", "91.1 ± 1.0"),
        "B_F": ("33.4 ± 5.4", "84.4 ± 7.4", "95.0 ± 0.8"),
        "S_kde30": ("31.8 ± 5.6", "86.9 ± 1.4", "95.5 ± 0.4"),
        "S_neigh30": ("10.7 ± 2.7", "79.2 ± 3.3", "95.5 ± 0.7"),
        "S_gan30": ("10.4 ± 2.4", "75.0 ± 6.3", "94.9 ± 0.7"),
    },
    ("stl10", "cifar10"): {
        "B_T": ("10.1 ± 1.3", "27.5 ± 2.1", "48.7 ± 1.4"),
        "B_F": ("15.3 ± 2.3", "29.4 ± 1.9", "49.2 ± 0.7"),
        "S_kde30": ("14.5 ± 1.9", "29.6 ± 2.0", "48.8 ± 0.9"),
        "S_neigh30": ("10.1 ± 2.1", "29.2 ± 1.9", "48.9 ± 0.7"),
        "S_gan30": ("10.2 ± 2.5", "28.6 ± 1.8", "48.8 ± 0.8"),
    },
}


class Transfer(NamedTuple):
    """To one data set."""

    source: str
    target: str
    compared: tuple[int, ...]  # epochs in the tables
    table: OverEpochs  # at all epochs


def labels(context: Context) -> list[str]:
    """The populations that are transferred, beside the zoo's own members."""
    return available(context, _POPULATIONS) or list(sources(context))


def run(context: Context) -> dict[str, Transfer]:
    """Fine-tune the source's populations on every target with the target's hyper-parameters."""
    for label in labels(context):
        drawn(context, label)
    return {target.name: _to(context, target) for target in context.targets}


def _to(context: Context, target: Target) -> Transfer:
    config, compared = target.config, target.config.evaluation.epochs
    epochs = tuple(range(compared[-1] + 1))  # figure 7 shows every one
    starts = {"B_F": pretrained(context)}
    starts |= {label: np.asarray(drawn(context, label).weights[:, 0]) for label in labels(context)}
    populations = {"B_T": from_scratch(context, target)}
    populations |= {
        label: finetuned(context, label, vectors, target, epochs)
        for label, vectors in starts.items()
    }
    table = comparisons.over_epochs(
        populations,
        sorted({*epochs, *map(int, populations["B_T"].epochs)}),
        target.task,
        bootstrap=config.evaluation.bootstrap,
        seed=context.trained.config.seed,
    )
    return Transfer(context.trained.config.dataset, target.name, compared, table)


def section(context: Context, result: dict[str, Transfer]) -> Section:
    tables, figures = [], []
    for transfer in result.values():
        tables += [_accuracy_table(transfer), _comparison_table(transfer)]
        figures.append(_curves(context, transfer))
    return Section(
        "tab2",
        "Transfer to other data sets (Table 2, Figure 7)",
        text=(
            f"Models of {context.trained.config.dataset} as starts for another data set: members "
            "of the zoo (B_F) and samples, fine-tuned with the target's own hyper-parameters and "
            "fresh optimiser states. B_T are trained on the target from scratch, by the target's "
            "initialisation. aligned_mean starts every model from one and the same network: what "
            "it gains is due to that start, not to sampling.",
        ),
        tables=tuple(tables),
        figures=tuple(figures),
        data={name: transfer._asdict() for name, transfer in result.items()},
    )


def _accuracy_table(transfer: Transfer) -> Table:
    last = max(transfer.table.populations["B_T"].accuracy)
    epochs = sorted({*transfer.compared, last})
    rows = [
        (name, len(next(iter(row.accuracy.values()))),
         *(percent(row.accuracy[e]) if e in row.accuracy else None for e in epochs))
        for name, row in transfer.table.populations.items()
    ]  # fmt: skip
    known = PUBLISHED.get((transfer.source, transfer.target), {})
    for name, cells in known.items():
        by_epoch = dict(zip((0, 1, 50), cells, strict=True))
        rows.append((f"{name} (paper)", None, *(by_epoch.get(e) for e in epochs)))
    return Table(
        f"accuracy_{transfer.target}",
        f"{transfer.source} to {transfer.target}: test accuracy by epoch",
        ("population", "models", *(f"epoch {e} (%)" for e in epochs)),
        tuple(rows),
        note="mean ± standard deviation over models"
        + ("" if known else "; the paper has no figures for this pair"),
    )


def _comparison_table(transfer: Transfer) -> Table:
    found = {
        (f"{name} against {base}", epoch): comparison
        for epoch in transfer.compared[1:]
        for base in ("B_T", "B_F")
        for name, comparison in statistics.against(transfer.table.comparisons[epoch], base).items()
        if name not in ("B_T", "B_F")
    }
    return effects_table(
        f"comparisons_{transfer.target}",
        f"{transfer.source} to {transfer.target}: samples against B_T and B_F",
        ("populations", "epoch"),
        found,
        note="Positive: above the baseline. Two-sided, Holm-corrected over all pairs of the epoch; "
        "all pairs are in tab2.json.",
    )


def _curves(context: Context, transfer: Transfer) -> Figure:
    series, last = {}, transfer.compared[-1]
    for name, row in transfer.table.populations.items():
        epochs = [epoch for epoch in sorted(row.accuracy) if epoch <= last]
        values = [100 * row.accuracy[epoch] for epoch in epochs]
        series[name] = band(np.array(epochs), values, context.trained.config)
    return Figure(
        f"curves_{transfer.target}",
        f"{transfer.source} to {transfer.target}",
        plots.curves(series, "epoch", "test accuracy (%)"),
        alt=f"Test accuracy on {transfer.target} against epochs of fine-tuning",
        note="Bands: 95 % bootstrap interval of the mean.",
    )
