"""The experiments by name. Each module here has

    run(context) -> result            gathers populations and calls hyperjax.experiments
    section(context, result)          words, tables and pictures for the report

and is imported when it is needed: pictures take a second to import.
"""

import importlib
from types import ModuleType

DESCRIPTIONS = {
    "fig2": "weights and accuracy, original against reconstructed, with and without LWLN",
    "fig4": "all samplers as decoded, against training from scratch",
    "tab1": "populations as decoded and fine-tuned, against training from scratch",
}


def load(name: str) -> ModuleType:
    """The module of an experiment of `DESCRIPTIONS`."""
    return importlib.import_module(f"hyperjax.tasks.experiments.{name.lower()}")
