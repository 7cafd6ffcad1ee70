"""`evaluate.py`: populations, experiments, and the report."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperjax import samplers as samplers_lib
from hyperjax import zoo
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.experiments import fig2, tab1
from hyperjax.io import files, report, workdir
from hyperjax.io.progress import console
from hyperjax.tasks import hyperreps, sample
from hyperjax.tasks.populations import Recipe, make_population
from hyperjax.tasks.streams import Stream, root_key
from hyperjax.tasks.train import Trained, load
from hyperjax.zoo import Zoo


class Source(NamedTuple):
    """A population of tab1: where its initial weights come from."""

    sampler: str
    hyperrep: str


class Request(NamedTuple):
    """What the user asked for."""

    folder: Path
    samplers: tuple[str, ...]
    num_samples: int


def _run_fig2(trained: Trained, request: Request) -> fig2.Fig2:
    return fig2.run(trained.hyperreps, trained.data, trained.lab)


def _run_tab1(trained: Trained, request: Request) -> tab1.Tab1:
    config = trained.config
    sources = population_sources(trained, request.samplers)
    recipes = {label: _recipe(trained, request, label, sources[label]) for label in sources}
    populations = {"B_T": from_scratch(trained)}
    for label, recipe in recipes.items():
        path = _path(request, recipe)
        populations[label] = make_population(
            path, recipe, config, trained.lab, f"population {label}"
        )
    return tab1.run(
        populations,
        trained.data.train[:, -1],
        trained.lab,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )


EXPERIMENTS: dict[str, tuple[str, Callable[[Trained, Request], Any]]] = {
    "fig2": ("weights and accuracy, original against reconstructed, ± LWLN", _run_fig2),
    "tab1": ("populations as decoded and fine-tuned, against training from scratch", _run_tab1),
}


def describe() -> dict[str, str]:
    return {name: description for name, (description, _) in EXPERIMENTS.items()}


def run(
    folder: Path,
    experiments: tuple[str, ...] = (),
    *,
    samplers: tuple[str, ...] = (),
    num_samples: int | None = None,
    data_dir: str = "",
) -> Path:
    """Run experiments and write the report; returns the path of its page."""
    _check(experiments, samplers, num_samples)
    from hyperjax.tasks import render  # Matplotlib: a mistake above need not wait for it

    trained = load(folder, data_dir)
    evaluation = trained.config.evaluation
    request = Request(
        folder,
        tuple(samplers) or evaluation.samplers or samplers_lib.names(),
        evaluation.num_samples if num_samples is None else num_samples,
    )
    start = time.monotonic()
    with workdir.lock(folder):
        results = {
            name: EXPERIMENTS[name][1](trained, request) for name in experiments or EXPERIMENTS
        }
        run_info = workdir.describe_run(workdir.command_line(), seed=trained.config.seed)
        seconds = time.monotonic() - start
        page = report.write_report(
            folder / "report",
            f"HyperJAX on {trained.config.dataset}",
            render.facts(trained, run_info, request.num_samples, seconds),
            render.sections(trained, results),
        )
        for name in EXPERIMENTS.keys() - results.keys():  # of an older report
            files.remove(folder / "report" / f"{name}.json", folder / "report" / name)
        workdir.add_to_manifest(folder, {**run_info, "seconds": round(seconds, 1)})
    render.print_summary(results)
    console.print(f"report: {page}")
    return page


def _check(experiments, samplers, num_samples: int | None) -> None:
    for name in experiments:
        if name not in EXPERIMENTS:
            raise unknown("experiment", name, EXPERIMENTS)
    for name in samplers:
        samplers_lib.check(name)
    if num_samples is not None and num_samples < 1:
        raise HyperJaxError(f"--num_samples={num_samples}: expected at least 1")


def population_sources(trained: Trained, names: tuple[str, ...]) -> dict[str, Source]:
    """Every sampler on the main hyper-representation (S_...), the weight-space baselines under
    their own names, and the KDE samplers on the twin without LWLN (B_...)."""
    spec = trained.zoo.spec
    main = hyperreps.main_name(trained.config)
    sources = {}
    for name in names:
        space = samplers_lib.get_sampler(name, trained.config.samplers, spec).space
        sources[f"S_{name}" if space == "latent" else name] = Source(name, main)
    for twin in trained.hyperreps:
        if twin != main:
            for name in ("kde30", "kde_anchor30"):
                if name in names:
                    sources[f"B_{name}"] = Source(name, twin)
    return sources


def from_scratch(trained: Trained) -> Zoo:
    """B_T: the zoo's test members over their whole training."""
    rows, models = trained.split.test, trained.zoo
    epochs = sorted({*trained.config.evaluation.epochs, 25, int(models.epochs[-1])})
    columns = zoo.snapshot_index(models, [e for e in epochs if e in models.epochs])
    return Zoo(
        spec=models.spec,
        weights=models.weights[rows[:, None], columns[None]],  # reads these snapshots alone
        epochs=np.asarray(models.epochs[columns]),
        members=np.asarray(models.members[rows]),
        metrics={k: np.asarray(v[rows][:, columns]) for k, v in models.metrics.items()},
        info={"kind": "B_T"},
    )


def _recipe(trained: Trained, request: Request, label: str, source: Source) -> Recipe:
    """A population to draw and to fine-tune with the zoo's hyper-parameters.

    Drawn before anything is fine-tuned, so that a sampler that cannot be fitted says so early.
    """
    config, seed, count = trained.config, trained.config.seed, request.num_samples
    key = jax.random.fold_in(root_key(seed, Stream.SAMPLES), seed)
    info = {
        "kind": "population",
        "label": label,
        **source._asdict(),
        "num_samples": count,
        "epochs": config.evaluation.epochs,
        "seed": seed,
        "samplers": dataclasses.asdict(config.samplers),
        "fingerprint": trained.images.fingerprint,
    }
    recipe = Recipe(
        members=np.arange(count),
        epochs=np.array(config.evaluation.epochs),
        key=root_key(seed, Stream.FINETUNING),
        start=None,
        info=info,
    )
    if _path(request, recipe).exists():
        return recipe
    start, report = sample.draw(trained, source.hyperrep, source.sampler, count, key)
    if report:
        workdir.log_metrics(request.folder, {"stage": "sampler", "population": label, **report})
    return recipe._replace(start=start)


def _path(request: Request, recipe: Recipe) -> Path:
    """Other settings, another file."""
    digest = hashlib.sha256(json.dumps(recipe.info).encode()).hexdigest()[:8]
    label = recipe.info["label"].replace(":", "-")
    name = f"{label}-n{recipe.info['num_samples']}-{digest}.safetensors"
    return request.folder / "populations" / name
