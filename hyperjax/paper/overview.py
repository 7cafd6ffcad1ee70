"""The head of the report: what it was made with and on, and all populations side by side."""

from collections.abc import Sequence

from hyperjax.app.context import Context
from hyperjax.app.run import Run
from hyperjax.app.train import chosen
from hyperjax.errors import HyperJaxError
from hyperjax.paper.common import HYPERREPS
from hyperjax.paper.fig4 import NOVELTY
from hyperjax.report.page import Section
from hyperjax.report.tables import Cell, Spread, Table


def facts(context: Context, run_info: dict) -> dict[str, str]:
    """What the report's figures were made with and on, as of the last command."""
    trained = context.trained
    config, parts = trained.config, trained.split
    device = f"{len(run_info['devices'])} x {run_info['devices'][0]} ({run_info['cores']} cores)"
    versions, models = run_info["versions"], trained.zoo
    return {
        **_images(trained),
        "zoo": f"{len(models.members)} members, {models.epochs[-1]} epochs; split by member "
        f"{len(parts.train)} / {len(parts.val)} / {len(parts.test)}; "
        f"{len(models.members) - sum(map(len, parts))} left out (diverged)",
        "autoencoder": _architecture(trained),
        **{f"{HYPERREPS[name]}, used as of": _chosen(trained, name) for name in trained.hyperreps},
        "samples": f"{context.num_samples} per population",
        "seed": str(config.seed),
        "hardware": device,
        "software": f"hyperjax {versions['hyperjax']} ({run_info['commit'] or 'no commit known'}), "
        f"jax {versions['jax']}, Python {run_info['python']}",
        "last command": run_info["command"],
        "date": run_info["time"],
    }


def _images(trained: Run) -> dict[str, str]:
    if not trained.has_images:
        return {"data set": f"none; networks of {trained.config.zoo.path}"}
    data, count = trained.images, trained.images.num_images
    return {
        "data set": f"{data.name} ({data.source}, fingerprint {data.fingerprint})",
        "images": f"{count['train']} train, {count['val']} validation, {count['test']} test",
    }


def _architecture(trained: Run) -> str:
    c = trained.config.autoencoder.architecture
    kind = "attention" if c.network == "tokens" else "messages along the networks' edges"
    kind += " beside fixed principal components" if c.linear_path else ""
    return f"{kind}, latent {c.latent}"


def _chosen(trained: Run, name: str) -> str:
    try:
        return chosen(trained.hyperreps[name].config, trained.hyperreps.info(name)["best_step"])
    except HyperJaxError as error:  # no reason to lose what other experiments found
        return str(error)


def section(rows: Sequence[Sequence[str | float | None]]) -> Section:
    """Every population as decoded, in one table: name, models, mean and standard deviation of the
    accuracy, disagreement, novelty."""
    return Section(
        "overview",
        "Side by side",
        text=(
            "Accuracy on test images of the zoo, of reconstructions, of the weight-space "
            "baselines and of each sampler as decoded, before any step of training. "
            "Disagreement is the mean share of test images on which two models of a "
            f"population differ: a population that collapsed to one model has 0. {NOVELTY} The "
            "best 30 % of train models are chosen by accuracy on validation "
            "images; subsample and bootstrap choose by it among what they draw.",
            "kde draws every latent dimension independently (the paper's text); kde_anchor "
            "draws one train model and adds one shared scalar of noise (the published "
            "code): it replays train models. B_ are samples of the autoencoder without "
            "layer-wise loss normalisation (LWLN).",
        ),
        tables=(_table(rows),),
    )


def _table(rows: Sequence[Sequence[str | float | None]]) -> Table:
    cells: list[tuple[Cell, ...]] = [
        (name, models, Spread(_number(mean), _number(std)), differ, novelty)
        for name, models, mean, std, differ, novelty in rows
    ]
    return Table(
        "side_by_side",
        "As decoded",
        ("population", "models", "test accuracy (%)", "disagreement (%)", "novelty"),
        tuple(cells),
        note="mean ± standard deviation over models",
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
