"""Figure 4: all samplers as decoded, against training from scratch."""

from hyperjax import samplers
from hyperjax.analysis import comparisons, statistics
from hyperjax.analysis.comparisons import AsDecoded
from hyperjax.app.context import Context
from hyperjax.app.populations import drawn, from_scratch, sources
from hyperjax.paper.common import compared_epoch, effects_table, percent, steps
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table

NOVELTY = (
    "Novelty: distance to the nearest train model, whatever the order, signs and scales of its "
    "neurons, in units of that distance among train models; 0 replays them, 1 is as new as a "
    "network that was trained by itself."
)


def run(context: Context) -> AsDecoded:
    trained = context.trained
    epoch = compared_epoch(trained.zoo)
    populations = {label: drawn(context, label) for label in sources(context)}
    return comparisons.as_decoded(
        populations,
        from_scratch(context, epochs=[epoch]),
        epoch,
        trained.train_models,
        trained.task,
        bootstrap=trained.config.evaluation.bootstrap,
        seed=trained.config.seed,
    )


def section(context: Context, result: AsDecoded) -> Section:
    scratch = f"B_T, epoch {result.scratch_epoch}"
    boxes = {name: 100 * row.accuracy for name, row in result.populations.items()}
    against = statistics.against(result.comparisons, "B_T")
    return Section(
        "fig4",
        "All samplers as decoded (Figure 4)",
        text=(
            "No step of training has been taken. B_T are the zoo's test members, trained from "
            f"scratch for {result.scratch_epoch} epochs. {NOVELTY}",
            steps(context, list(context.trained.pair)),
        ),
        tables=(
            _table(result, scratch),
            effects_table(
                "against_b_t",
                f"Against {scratch}",
                ("population",),
                {(name,): comparison for name, comparison in against.items()},
                note="Positive: above B_T. Two-sided, Holm-corrected over all pairs of "
                "populations; all pairs are in fig4.json.",
            ),
            *_reports(context),
            Table(
                "samplers",
                "Samplers",
                ("name", "what it draws"),
                tuple(samplers.describe().items()),
            ),
        ),
        figures=(
            Figure(
                "epoch0",
                "Populations as decoded",
                plots.population_boxes(
                    boxes | {scratch: 100 * result.scratch},
                    "test accuracy (%)",
                    highlights=[*without_autoencoder(context), scratch],
                ),
                alt="Test accuracy of every population before fine-tuning, and of B_T",
                note="Without an autoencoder: in the second colour.",
            ),
        ),
        overview=tuple(
            (name, len(r.accuracy), *percent(r.accuracy), 100 * r.disagreement, r.novelty)
            for name, r in result.populations.items()
        ),
        data=result._asdict(),
    )


def without_autoencoder(context: Context) -> list[str]:
    """Labels of the populations that are drawn without one."""
    return [label for label, source in sources(context).items() if label == source.sampler]


def _table(result: AsDecoded, scratch: str) -> Table:
    rows = [(scratch, len(result.scratch), percent(result.scratch), *[None] * 5)]
    for name, row in result.populations.items():
        middle = (100 * x for x in (row.summary.median, *row.summary.mean_ci))
        rows.append((name, len(row.accuracy), percent(row.accuracy), *middle,
                     100 * row.disagreement, row.novelty))  # fmt: skip
    return Table(
        "accuracy",
        "As decoded",
        ("population", "models", "test accuracy (%)", "median (%)", "from (%)", "to (%)",
         "disagreement (%)", "novelty"),
        tuple(rows),
        note="mean ± standard deviation over models; from, to: 95 % bootstrap interval of the mean",
    )  # fmt: skip


def _reports(context: Context) -> tuple[Table, ...]:
    """What samplers recorded of their fits and draws."""
    rows = []
    for label in sources(context):
        found = drawn(context, label).info.get("report", {})
        rows += [(label, name, value) for name, value in found.items()]
    if not rows:
        return ()
    note = "clipped: share of values outside the latents' range; coverage and spread: of samples "
    note += "of a GAN among the anchors, small where it has collapsed to a few modes."
    return (Table("reports", "What samplers say of their samples",
                  ("population", "figure", "value"), tuple(rows), note=note),)  # fmt: skip
