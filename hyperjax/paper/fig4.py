"""Figure 4: all samplers as decoded, against training from scratch."""

from hyperjax import samplers
from hyperjax.analysis import decoded
from hyperjax.analysis.decoded import Fig4
from hyperjax.app.context import Context
from hyperjax.app.populations import drawn, from_scratch, record, sources
from hyperjax.paper.common import percent
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table


def run(context: Context) -> Fig4:
    trained = context.trained
    scratch = from_scratch(context)
    populations = {label: drawn(context, label) for label in sources(context)}
    epoch = 25 if 25 in scratch.epochs else int(scratch.epochs[-1])
    return decoded.run(
        populations,
        scratch,
        epoch,
        trained.data.train[:, -1],
        trained.task,
        bootstrap=trained.config.evaluation.bootstrap,
        seed=trained.config.seed,
    )


def section(context: Context, result: Fig4) -> Section:
    scratch = f"B_T, epoch {result.scratch_epoch}"
    boxes = {name: 100 * row.accuracy for name, row in result.populations.items()}
    rows = [(scratch, len(result.scratch), percent(result.scratch), *[None] * 5)]
    for name, row in result.populations.items():
        middle = (100 * x for x in (row.summary.median, *row.summary.mean_ci))
        rows.append((name, len(row.accuracy), percent(row.accuracy), *middle,
                     100 * row.disagreement, row.novelty))  # fmt: skip
    against = [
        (b, -c.rank_biserial, 1 - c.cles, c.mwu_p, -c.cohens_d, c.welch_p)
        for a, b, c in result.comparisons
        if a == "B_T"
    ]
    return Section(
        "fig4",
        "All samplers as decoded (Figure 4)",
        text=(
            "No step of training has been taken. B_T are the zoo's test members, trained from "
            f"scratch for {result.scratch_epoch} epochs.",
        ),
        tables=(
            Table(
                "accuracy",
                "As decoded",
                ("population", "models", "test accuracy (%)", "median (%)", "from (%)", "to (%)",
                 "disagreement (%)", "novelty"),
                tuple(rows),
                note="mean ± standard deviation over models; from, to: 95 % bootstrap interval of "
                "the mean",
            ),
            Table(
                "against_b_t",
                f"Against {scratch}",
                ("population", "rank-biserial", "common-language effect", "p Mann-Whitney",
                 "Cohen's d", "p Welch"),
                tuple(against),
                note="Positive: above B_T. Two-sided, Holm-corrected over all pairs of "
                "populations; all pairs are in fig4.json.",
            ),
            *_reports(context),
            Table("samplers", "Samplers", ("name", "what it draws"),
                  tuple(samplers.describe().items())),
        ),
        figures=(
            Figure(
                "epoch0",
                "Populations as decoded",
                plots.population_boxes(
                    boxes | {scratch: 100 * result.scratch},
                    "test accuracy (%)",
                    highlights=[name for name in boxes if name[:2] not in ("S_", "B_")] + [scratch],
                ),
                alt="Test accuracy of every population before fine-tuning, and of B_T",
                note="Baselines in weight space and training from scratch in the second colour.",
            ),
        ),
        data=result._asdict(),
    )  # fmt: skip


def _reports(context: Context) -> tuple[Table, ...]:
    """What samplers recorded of their fits and draws."""
    rows = []
    for label in sources(context):
        found = record(context, drawn(context, label))
        rows += [(label, name, value) for name, value in found.get("report", {}).items()]
    if not rows:
        return ()
    note = "clipped: share of values outside the latents' range; coverage and spread: of samples "
    note += "of a GAN among the anchors, small where it has collapsed to a few modes."
    return (Table("reports", "What samplers say of their samples",
                  ("population", "figure", "value"), tuple(rows), note=note),)  # fmt: skip
