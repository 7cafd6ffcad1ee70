"""The tables and figures of the paper, and audits beyond it, by name. Each module here has

    run(context) -> result            gathers populations and calls hyperjax.analysis
    section(context, result)          words, tables and pictures for the report

and is imported when it is needed: pictures take a second to import.
"""

import importlib
from types import ModuleType

DESCRIPTIONS = {
    "fig2": "weights and accuracy, original against reconstructed, with and without LWLN",
    "fig3": "noise on latents, and lines between them: robust and smooth?",
    "fig4": "all samplers as decoded, against training from scratch",
    "tab1": "populations as decoded and fine-tuned, against training from scratch",
    "fig5": "ensembles of sampled and of trained models",
    "fig6": "originals and their reconstructions while they are fine-tuned",
    "tab2": "transfer to other data sets, with the curves of figure 7 (needs --targets)",
    "tab3": "models decoded from the latents of another zoo's models (needs --targets)",
    "tab4": "sampled weights in architectures that the autoencoder has not seen",
    "figD": "geometry of the latents: norms, angles, PCA and UMAP pictures",
    "vae": "a variational autoencoder in place of the regularised one (needs a workdir with it)",
    "novelty": "accuracy against novelty: do samples go beyond noise and averages, or replay?",
    "denoiser": "what the denoiser of weights knows of unseen networks (needs a workdir with it)",
    "scaling": "denoisers and samples of more and more train members (hours, if asked for)",
    "probes": "what can be read linearly off latents and off weights",
    "cost": "seconds and operations of every stage, and when sampling pays off",
}
AUDITS = ("novelty", "denoiser", "probes", "cost", "scaling")  # beyond the paper
NEED_TARGETS = ("tab2", "tab3")  # experiments that are about another data set
NEED_VAE = ("vae",)
HOURS = ("scaling",)  # only if asked for
NEED_DENOISER = ("denoiser",)
IMAGELESS = ("fig2", "figD", "denoiser")  # the others need the images of the networks
NEED_CNN = ("tab4",)  # which hands the weights of the paper's network on to others


def load(name: str) -> ModuleType:
    """The module of an experiment of `DESCRIPTIONS`."""
    module = f"audit_{name}" if name in AUDITS else name.lower()
    return importlib.import_module(f"hyperjax.paper.{module}")
