"""Appendix E: a variational autoencoder in place of the regularised autoencoder."""

from typing import NamedTuple

import jax
import numpy as np

from hyperjax.analysis import comparisons, reconstruction, statistics
from hyperjax.analysis.comparisons import AsDecoded
from hyperjax.analysis.reconstruction import INACTIVE, Latents, Reconstructions
from hyperjax.app.context import Context
from hyperjax.app.populations import LATENT, WEIGHTS, Source, drawn, from_scratch
from hyperjax.app.run import VAE
from hyperjax.paper.common import (
    HYPERREPS,
    PARTS,
    compared_epoch,
    effects_table,
    percent,
    steps,
)
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.rng import experiment_key

_TEXT = (
    "The VAE is the main autoencoder with a Gaussian encoder, without the tanh, and with the KL "
    "divergence to N(0, 1) in its loss; architecture, data, augmentation and number of steps are "
    "the same, and the checkpoint is the one of least loss, now with the KL term, on validation "
    "members. The paper says of VAEs in this domain that it found them problematic, and gives no "
    "settings; these are ours.",
    "The weight of the KL term (autoencoder.loss.kl) is the variance of the noise that the decoder "
    "is said to have, in the units of the reconstruction's loss (with LWLN: a layer's variance). "
    "Every value makes the loss a true evidence lower bound, of another noise: with a smaller one "
    "latents say more of their network, and fit the prior less. The figures hold for the value "
    "above the tables only.",
    "V_prior needs nothing but the decoder: latents are drawn from N(0, 1). V_kde30 and V_joint "
    "are the samplers of the same names, fitted on the VAE's means. S_ are drawn from the main "
    "autoencoder, pca and aligned_mean from the weights alone. With a linear path a VAE's decoder "
    "starts as probabilistic principal components, so that pca is the baseline to look at: a "
    "V_prior that equals it owes nothing to the attention.",
)


class Vae(NamedTuple):
    reconstructions: Reconstructions  # of the main autoencoder and of the VAE, by (name, split)
    latents: dict[str, Latents]  # of the VAE, by split
    populations: AsDecoded


def run(context: Context) -> Vae:
    """Compare the VAE that train.py has made with the main autoencoder."""
    trained, config = context.trained, context.trained.config
    main, model = trained.main, trained.hyperreps[VAE]
    chosen = {f"S_{name}": Source(name, main, LATENT) for name in ("kde30", "joint")}
    chosen |= {f"V_{name}": Source(name, VAE, LATENT) for name in ("prior", "kde30", "joint")}
    chosen |= {name: Source(name, main, WEIGHTS) for name in ("pca", "aligned_mean")}
    keys = jax.random.split(experiment_key(config.seed, "vae"))
    members = {"train": trained.data.train, "heldout": trained.data.test}
    epoch = compared_epoch(trained.zoo)
    return Vae(
        reconstruction.reconstructions(
            {main: trained.hyperreps[main], VAE: model}, trained.data, trained.task
        ),
        {
            part: reconstruction.latents(model, weights.reshape(-1, weights.shape[-1]), key)
            for (part, weights), key in zip(members.items(), keys, strict=True)
        },
        comparisons.as_decoded(
            {label: drawn(context, label, source) for label, source in chosen.items()},
            from_scratch(context, epochs=[epoch]), epoch, trained.train_models, trained.task,
            bootstrap=config.evaluation.bootstrap, seed=config.seed,
        ),
    )  # fmt: skip


def section(context: Context, result: Vae) -> Section:
    main = context.trained.main
    names = {main: f"autoencoder, {HYPERREPS[main]}", VAE: "VAE"}
    found = statistics.against(result.populations.comparisons, "V_prior")
    return Section(
        "vae",
        "A variational autoencoder instead (appendix E)",
        text=(*_TEXT, _this_vae(context)),
        tables=(
            _reconstruction_table(result, names),
            _latent_table(result),
            _population_table(result),
            effects_table(
                "prior_against",
                "V_prior against the others",
                ("population",),
                {(name,): comparison.flipped() for name, comparison in found.items()},
                note="Positive: V_prior is more accurate. Two-sided, Holm-corrected over all "
                "pairs; all pairs are in vae.json. Copies of one network (aligned_mean) are no "
                "sample.",
            ),
        ),
        figures=(_nats_figure(result), _boxes(result)),
        data={
            "reconstructions": {
                f"{name}/{part}": {
                    "r2": r.r2,
                    "accuracy": r.accuracy,
                    "before": r.original_accuracy,
                }
                for (name, part), r in result.reconstructions.items()
            },
            "latents": result.latents,
            "populations": result.populations._asdict(),
        },
    )


def _this_vae(context: Context) -> str:
    """What is particular to the VAE of this workdir."""
    c = context.trained.config.autoencoder
    text = f"Here autoencoder.loss.kl is {c.loss.kl:g}. "
    text += steps(context, [context.trained.main, VAE])
    if c.architecture.variational:
        text += " The main autoencoder is a VAE itself."
    return text


def _reconstruction_table(result: Vae, names: dict[str, str]) -> Table:
    rows = [
        (
            f"{PARTS[part]}, {names[name]}",
            percent(r.accuracy),
            100 * float(r.original_accuracy.mean()),
            100 * r.disagreement,
            r.r2["all"],
        )
        for (name, part), r in result.reconstructions.items()
    ]
    return Table(
        "reconstruction",
        "Reconstructions",
        ("members", "accuracy (%)", "before (%)", "disagreement (%)", "R²"),
        tuple(rows),
        note="mean ± standard deviation over models, on test images; held-out members are those "
        "of the test split. Disagreement is that of the reconstructions among each other. A VAE "
        "decodes the mean of its posterior.",
    )


def _latent_table(result: Vae) -> Table:
    rows = [
        (
            PARTS[part],
            float(r.nats.sum()),
            float(r.nats.mean()),
            100 * r.inactive,
            r.variance,
            r.loss,
            r.reconstruction,
        )
        for part, r in result.latents.items()
    ]
    return Table(
        "latents",
        "Latents of the VAE",
        ("members", "KL (nats)", "KL per latent", "inactive (%)", "variance", "loss",
         "reconstruction"),
        tuple(rows),
        note=f"Inactive: latents with a KL divergence below {INACTIVE:g} nats (posterior "
        "collapse). Variance: of all networks' posteriors together, mean over active latents; 1 "
        "is the prior's, and with less, networks are encoded nearer to the mean than the prior "
        "draws them. Loss: the reconstruction's, from a sample of each posterior, + the KL "
        "term.",
    )  # fmt: skip


def _population_table(result: Vae) -> Table:
    fig4 = result.populations
    rows: list[tuple] = [
        (name, len(row.accuracy), percent(row.accuracy), 100 * row.disagreement, row.novelty)
        for name, row in fig4.populations.items()
    ]
    rows.append((f"B_T, epoch {fig4.scratch_epoch}", len(fig4.scratch), percent(fig4.scratch),
                 None, None))  # fmt: skip
    return Table(
        "populations",
        "As decoded",
        ("population", "models", "test accuracy (%)", "disagreement (%)", "novelty"),
        tuple(rows),
        note="mean ± standard deviation over models. Novelty: 0 replays train models, 1 is as far "
        "from them as they are from each other.",
    )


def _nats_figure(result: Vae) -> Figure:
    order = np.argsort(-result.latents["train"].nats)
    rank = np.arange(1, len(order) + 1)
    nothing = np.full(len(order), np.nan)  # no bands: a latent is no sample of a population
    series = {
        words: (rank, result.latents[part].nats[order], nothing, nothing)
        for part, words in PARTS.items()
    }
    return Figure(
        "nats",
        "How much each latent says",
        plots.curves(series, "latent, by its KL on train members", "KL divergence (nats)"),
        alt="KL divergence of each latent of the VAE from the prior, train and held-out members",
    )


def _boxes(result: Vae) -> Figure:
    fig4 = result.populations
    boxes = {name: 100 * row.accuracy for name, row in fig4.populations.items()}
    scratch = f"B_T, epoch {fig4.scratch_epoch}"
    return Figure(
        "populations",
        "Populations as decoded",
        plots.population_boxes(
            boxes | {scratch: 100 * fig4.scratch},
            "test accuracy (%)",
            highlights=[name for name in boxes if name.startswith("V_")],
        ),
        alt="Test accuracy of the VAE's populations and of others before fine-tuning, and of B_T",
        note="Those of the VAE in the second colour.",
    )
