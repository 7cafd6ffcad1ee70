"""The populations that experiments compare, each made once and kept in the workdir.

B_T is trained from scratch, B_F are members of the zoo, S_<sampler> are drawn from the main
hyper-representation and B_<sampler> from its twin without LWLN; the baselines in weight space
have their own names.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperjax import samplers as samplers_lib
from hyperjax.app import sample, train_hyperrep, trajectories
from hyperjax.app.context import Context, Target
from hyperjax.app.train_population import Recipe, make_population
from hyperjax.errors import unknown
from hyperjax.population.evaluation import Task
from hyperjax.rng import Stream, root_key
from hyperjax.store import workdir
from hyperjax.types import Array
from hyperjax.zoo import Zoo

_TEST_MEMBERS = 1000


class Source(NamedTuple):
    """Where a population's weights come from."""

    sampler: str
    hyperrep: str


def sources(context: Context) -> dict[str, Source]:
    """Every sampler that was asked for on the main hyper-representation (S_...), the weight-space
    baselines under their own names, and the KDE samplers on the twin without LWLN (B_...)."""
    trained, names = context.trained, context.samplers
    spec, main = trained.zoo.spec, train_hyperrep.main_name(trained.config)
    found = {}
    for name in names:
        space = samplers_lib.get_sampler(name, trained.config.samplers, spec).space
        found[f"S_{name}" if space == "latent" else name] = Source(name, main)
    for twin in trained.hyperreps:
        if twin == train_hyperrep.NO_LWLN != main:
            for name in ("kde30", "kde_anchor30"):
                if name in names:
                    found[f"B_{name}"] = Source(name, twin)
    return found


def available(context: Context, labels: Sequence[str]) -> list[str]:
    """Those of `labels` that the request covers, in that order."""
    return [label for label in labels if label in sources(context)]


def drawn(context: Context, label: str) -> Zoo:
    """The population `label` of `sources` as decoded, measured on all splits: epoch 0 alone."""
    known = sources(context)
    if label not in known:
        raise unknown("population", label, known)
    return drawn_from(context, label, known[label])


def drawn_from(context: Context, label: str, source: Source) -> Zoo:
    """The same from any source, under a label of its own."""
    trained, count = context.trained, context.num_samples
    config = trained.config
    info = {
        "kind": "population",
        "label": label,
        **source._asdict(),
        "num_samples": count,
        "seed": config.seed,
        "samplers": dataclasses.asdict(config.samplers),
        "fingerprint": trained.images.fingerprint,
        "decoder": _file_digest(workdir.hyperrep_path(context.folder, source.hyperrep)),
    }
    recipe = Recipe(np.arange(count), np.array([0]), root_key(config.seed, Stream.FINETUNING),
                    None, info)  # fmt: skip
    path = _path(context, label, info)
    if not path.exists():
        key = jax.random.fold_in(root_key(config.seed, Stream.SAMPLES), config.seed)
        start = time.monotonic()
        draw = sample.draw(trained, source.hyperrep, source.sampler, count, key)
        seconds = round(time.monotonic() - start, 3)
        workdir.log_metrics(
            context.folder,
            {"stage": "sampler", "population": label, "digest": digest(info), "models": count,
             "seconds": seconds, **workdir.hardware(), "report": draw.report},
        )  # fmt: skip
        recipe = recipe._replace(start=draw.vectors)
    return make_population(path, recipe, config, trained.task, f"population {label}")


def record(context: Context, models: Zoo) -> dict[str, Any]:
    """What was logged when a population was drawn; empty if that log is gone."""
    wanted = digest(models.info)
    for entry in reversed(workdir.read_metrics(context.folder, "sampler")):
        if entry.get("digest") == wanted:
            return entry
    return {}


def finetuned(
    context: Context,
    label: str,
    vectors: Array | None,
    target: Target,
    epochs: Sequence[int],
    task: Task | None = None,
) -> Zoo:
    """Networks float32[M, D] trained on a target with its hyper-parameters.

    Each member has a fresh optimiser state and its own order of images. Without `vectors`,
    `num_samples` members are initialised as the target's zoo is. `label` names the result, and
    with the context and the digest of the vectors it decides whether the file is already there:
    for networks of another architecture, which take a `task` of their own, it must name that.
    """
    config = target.config
    count = context.num_samples if vectors is None else len(vectors)
    start = None if vectors is None else np.ascontiguousarray(vectors, np.float32)
    info = {
        "kind": "finetuned",
        "label": label,
        "dataset": target.name,
        "fingerprint": target.fingerprint,
        "epochs": list(epochs),
        "seed": context.trained.config.seed,
        "training": dataclasses.asdict(config.zoo.training),
        "start": [count, config.zoo.init, config.zoo.activation]
        if start is None
        else hashlib.sha256(start.tobytes()).hexdigest()[:16],
    }
    recipe = Recipe(
        members=np.arange(count),
        epochs=np.array(epochs),
        key=root_key(context.trained.config.seed, Stream.FINETUNING),
        start=start,
        info=info,
    )
    return make_population(
        _path(context, f"{label}-{target.name}", info), recipe, config, task or target.task,
        f"{label} on {target.name}",
    )  # fmt: skip


def generated(context: Context, label: str) -> Zoo:
    """The population `label` of `sources`, fine-tuned for the epochs of the configuration."""
    start, epochs = drawn(context, label), context.trained.config.evaluation.epochs
    if tuple(epochs) == (0,):
        return start
    return finetuned(context, label, np.asarray(start.weights[:, 0]), context.home, epochs)


def from_scratch(context: Context, target: Target | None = None) -> Zoo:
    """B_T: a target's zoo's test members over their whole training, at most a thousand: more
    would say no more, and of a zoo larger than memory they would not fit either.

    Of a target that is only a configuration, `num_samples` members are trained now, until the
    last of the epochs that are compared and of those that an autoencoder would see.
    """
    target = target or context.home
    if target.models is None:
        last = target.config.autoencoder.epochs_seen[-1]
        epochs = sorted({*target.config.evaluation.epochs, last})
        return finetuned(context, "B_T", None, target, epochs)
    rows, models = target.split.test[:_TEST_MEMBERS], target.models
    return Zoo(
        spec=models.spec,
        weights=models.weights[rows],
        epochs=np.asarray(models.epochs),
        members=np.asarray(models.members[rows]),
        metrics={name: np.asarray(values[rows]) for name, values in models.metrics.items()},
        info={"kind": "B_T"},
    )


def pretrained(context: Context) -> np.ndarray:
    """B_F before fine-tuning: the zoo's train members at the last epoch that the autoencoder
    sees, as they were trained, float32[M, D], at most `num_samples`.

    Not aligned: a target's networks may have another activation, with other symmetries.
    """
    trained = context.trained
    rows, last = trained.split.train[: context.num_samples], trained.config.autoencoder.epochs_seen
    return trajectories.raw(trained, rows, last[-1:])[:, 0]


def _path(context: Context, label: str, info: dict[str, Any]) -> Path:
    """Other settings, another file."""
    name = f"{label.replace(':', '-')}-{digest(info)}.safetensors"
    return context.folder / "populations" / name


def digest(info: dict[str, Any]) -> str:
    """Of what a population was made from."""
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()[:8]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
