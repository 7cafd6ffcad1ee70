"""`evaluate.py`: populations, experiments, and the report."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperjax import samplers as samplers_lib
from hyperjax import zoo
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.experiments import fig2, tab1
from hyperjax.io import report, workdir
from hyperjax.io.progress import console
from hyperjax.tasks import hyperreps, render, sample
from hyperjax.tasks.populations import Recipe, make_population
from hyperjax.tasks.streams import Stream, root_key
from hyperjax.tasks.train import Trained, load
from hyperjax.zoo import Zoo


class Member(NamedTuple):
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
    populations = {"B_T": from_scratch(trained)}
    for label, source in population_sources(trained, request.samplers).items():
        populations[label] = finetuned(trained, request, label, source)
    evaluation = trained.config.evaluation
    return tab1.run(
        populations, trained.lab, bootstrap=evaluation.bootstrap, seed=trained.config.seed
    )


EXPERIMENTS: dict[str, tuple[str, Callable[[Trained, Request], Any]]] = {
    "fig2": ("weights and accuracy, original against reconstructed, ± LWLN", _run_fig2),
    "tab1": ("populations as decoded and fine-tuned, against training from scratch", _run_tab1),
}


def describe() -> dict[str, str]:
    return {name: description for name, (description, _) in EXPERIMENTS.items()}


def run(
    folder: Path, experiments: tuple[str, ...] = (), *, samplers=(), num_samples: int = 0
) -> Path:
    """Run experiments and write the report; returns the path of its page."""
    _check(experiments, samplers, num_samples)
    trained = load(folder)
    evaluation = trained.config.evaluation
    request = Request(
        folder,
        tuple(samplers) or evaluation.samplers or samplers_lib.names(),
        num_samples or evaluation.num_samples,
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
        workdir.add_to_manifest(folder, {**run_info, "seconds": round(seconds, 1)})
    render.print_summary(results)
    console.print(f"report: {page}")
    return page


def _check(experiments, samplers, num_samples: int) -> None:
    for name in experiments:
        if name not in EXPERIMENTS:
            raise unknown("experiment", name, EXPERIMENTS)
    for name in samplers:
        if name not in samplers_lib.names():
            raise unknown("sampler", name, samplers_lib.names())
    if num_samples < 0:
        raise HyperJaxError(f"--num_samples={num_samples}: expected at least 1")


def population_sources(trained: Trained, names: tuple[str, ...]) -> dict[str, Member]:
    """Every sampler on the main hyper-representation (S_...), the weight-space baselines under
    their own names, and the KDE samplers on the twin without LWLN (B_...)."""
    spec = trained.zoo.spec
    main = hyperreps.main_name(trained.config)
    sources = {}
    for name in names:
        space = samplers_lib.get_sampler(name, trained.config.samplers, spec).space
        sources[f"S_{name}" if space == "latent" else name] = Member(name, main)
    for twin in trained.hyperreps:
        if twin != main:
            for name in ("kde30", "kde_anchor30"):
                if name in names:
                    sources[f"B_{name}"] = Member(name, twin)
    return sources


def from_scratch(trained: Trained) -> Zoo:
    """B_T: the zoo's test members over their whole training."""
    rows, models = trained.split.test, trained.zoo
    epochs = sorted({*trained.config.evaluation.epochs, 25, int(models.epochs[-1])})
    columns = zoo.snapshot_index(models, [e for e in epochs if e in models.epochs])
    return Zoo(
        spec=models.spec,
        weights=np.asarray(models.weights[rows][:, columns]),
        epochs=np.asarray(models.epochs[columns]),
        members=np.asarray(models.members[rows]),
        metrics={k: np.asarray(v[rows][:, columns]) for k, v in models.metrics.items()},
        info={"kind": "B_T"},
    )


def finetuned(trained: Trained, request: Request, label: str, source: Member) -> Zoo:
    """Draw a population and fine-tune it with the zoo's hyper-parameters, or read it."""
    config, seed = trained.config, trained.config.seed
    count = request.num_samples
    key = jax.random.fold_in(root_key(seed, Stream.SAMPLES), seed)
    info = {
        "kind": "population",
        "label": label,
        **source._asdict(),
        "num_samples": count,
        "seed": seed,
        "samplers": _settings(config),
        "fingerprint": trained.images.fingerprint,
    }
    path = request.folder / "populations" / f"{label}-n{count}-seed{seed}.safetensors"

    recipe = Recipe(
        members=np.arange(count),
        epochs=np.array(sorted(set(config.evaluation.epochs))),
        key=root_key(seed, Stream.FINETUNING),
        start=None
        if path.exists()
        else sample.draw(trained, source.hyperrep, source.sampler, count, key),
        info=info,
    )
    return make_population(path, recipe, config, trained.lab, f"population {label}")


def _settings(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(vars(config.samplers)))
