"""The head of the report: what it was made with and on, and all populations side by side."""

from collections.abc import Mapping
from typing import Any

from hyperjax.app.context import Context
from hyperjax.app.train import Trained
from hyperjax.paper.common import HYPERREPS, PARTS, percent
from hyperjax.report.page import Section
from hyperjax.report.tables import Cell, Table


def facts(context: Context, run_info: dict, seconds: float) -> dict[str, str]:
    """What the report's figures were made with and on."""
    trained = context.trained
    config, data, parts = trained.config, trained.images, trained.split
    device = f"{len(run_info['devices'])} x {run_info['devices'][0]} ({run_info['cores']} cores)"
    versions = run_info["versions"]
    return {
        "data set": f"{data.name} ({data.source}, fingerprint {data.fingerprint})",
        "images": f"{len(data.train.labels)} train, {len(data.val.labels)} validation, "
        f"{len(data.test.labels)} test",
        "zoo": f"{len(trained.zoo.members)} members, {config.zoo.epochs} epochs; split by member "
        f"{len(parts.train)} / {len(parts.val)} / {len(parts.test)}; "
        f"{len(trained.zoo.members) - sum(map(len, parts))} left out (diverged)",
        "hyper-representations": _chosen(trained),
        "samples": f"{context.num_samples} per population",
        "seed": str(config.seed),
        "hardware": device,
        "software": f"hyperjax {versions['hyperjax']}, jax {versions['jax']}, "
        f"Python {run_info['python']}",
        "command": run_info["command"],
        "evaluation time": f"{seconds:.0f} s",
        "date": run_info["time"],
    }


def _chosen(trained: Trained) -> str:
    """What the autoencoders are, in a line."""
    c = trained.config.autoencoder
    kind = "attention beside fixed principal components" if c.linear_path else "attention"
    return f"{', '.join(trained.hyperreps)}; {kind}, latent {c.latent}, {c.steps} steps"


def section(context: Context, results: Mapping[str, Any]) -> Section:
    """Every population as decoded, in one table."""
    return Section(
        "overview",
        "Side by side",
        text=(
            "Accuracy on test images of the zoo, of reconstructions, of the weight-space "
            "baselines and of each sampler as decoded, before any step of training. "
            "Disagreement is the mean share of test images on which two models of a "
            "population differ: a population that collapsed to one model has 0. Novelty is "
            "the mean distance to the nearest train model, in units of the same distance "
            "among train models: 0 is a replay of train models, 1 is as far as an unrelated "
            "member. The best 30 % of train models are chosen by accuracy on validation "
            "images; subsample and bootstrap choose by it among what they draw.",
            "kde draws every latent dimension independently (the paper's text); kde_anchor "
            "draws one train model and adds one shared scalar of noise (the published "
            "code): it replays train models. B_ are samples of the autoencoder without "
            "layer-wise loss normalisation (LWLN).",
        ),
        tables=(_table(context.trained, results),),
    )


def _table(trained: Trained, results: Mapping[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for (name, part), r in results.get("fig2", {}).items():
        if name == next(iter(trained.hyperreps)):
            originals = r.original_accuracy
            rows.append((f"zoo, {PARTS[part]}", len(originals), percent(originals), None, None))
    for (name, part), r in results.get("fig2", {}).items():
        label = f"reconstructed {PARTS[part]}, {HYPERREPS[name]}"
        rows.append((label, len(r.accuracy), percent(r.accuracy), 100 * r.disagreement, None))
    if "fig4" in results:
        for name, row in results["fig4"].populations.items():
            cells = (100 * row.disagreement, round(row.novelty, 3))
            rows.append((name, len(row.accuracy), percent(row.accuracy), *cells))
    return Table(
        "side_by_side",
        "As decoded",
        ("population", "models", "test accuracy (%)", "disagreement (%)", "novelty"),
        tuple(rows),
        note="mean ± standard deviation over models",
    )
