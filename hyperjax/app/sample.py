"""`sample.py`: draw new models from a trained workdir."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hyperjax import hyperrep, samplers, zoo
from hyperjax.app import train_hyperrep
from hyperjax.app.progress import console
from hyperjax.app.train import Trained, load
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.population import evaluation
from hyperjax.rng import Stream, root_key
from hyperjax.store import workdir, zoo_file
from hyperjax.types import Key
from hyperjax.zoo import Zoo


def run(
    folder: Path,
    sampler: str,
    num_samples: int,
    *,
    name: str = "",
    seed: int | None = None,
    output: Path | None = None,
    data_dir: str = "",
) -> Path:
    """Draw `num_samples` models, evaluate them once, and write them as a population file.

    `name` is the hyper-representation, "lwln", "no_lwln" or, if experiment `vae` has trained it,
    "vae"; by default the configuration's own.
    """
    check_request(sampler, num_samples, seed)
    trained = load(folder, data_dir)
    if name == train_hyperrep.VAE:
        model = train_hyperrep.read_vae(trained.config, trained.zoo.spec, folder)
        trained = trained._replace(hyperreps={**trained.hyperreps, name: model})
    name = name or train_hyperrep.main_name(trained.config)
    seed = trained.config.seed if seed is None else seed
    key = jax.random.fold_in(root_key(trained.config.seed, Stream.SAMPLES), seed)
    drawn = draw(trained, name, sampler, num_samples, key)
    population = _as_population(trained, drawn, name, sampler, seed)
    file = f"{sampler.replace(':', '-')}-{name}-n{num_samples}-seed{seed}.safetensors"
    path = output or folder / "samples" / file
    with workdir.lock(folder):
        zoo_file.write(path, population)
        entry = workdir.describe_run(workdir.command_line(), seed=seed, output=str(path))
        workdir.add_to_manifest(folder, entry)
    texts = []
    for part in ("val", "test"):
        accuracy = 100 * population.metrics[f"{part}_accuracy"]
        texts.append(f"{part} accuracy {np.mean(accuracy):.1f} ± {np.std(accuracy):.1f} %")
    console.print(f"{num_samples} models from {sampler} ({name}): {', '.join(texts)}, as decoded")
    console.print(f"written to {path}")
    return path


def check_request(sampler: str, num_samples: int, seed: int | None) -> None:
    """What can be refused before anything is loaded."""
    samplers.check(sampler)
    if num_samples < 1:
        raise HyperJaxError(f"--num_samples={num_samples}: expected at least 1")
    if seed is not None and not 0 <= seed < 2**32:
        raise HyperJaxError(f"--seed={seed}: expected at least 0 and less than 2**32")


class Draw(NamedTuple):
    """What a sampler drew."""

    samples: np.ndarray  # float32[N, latent] or, from a sampler on weights, float32[N, D]
    vectors: np.ndarray  # float32[N, D]: the samples, decoded
    anchors: np.ndarray  # float32[A, latent or D]: what the sampler was fitted on
    report: dict[str, float]  # what the sampler says of them


def draw(trained: Trained, name: str, sampler_name: str, count: int, key: Key) -> Draw:
    """`count` new networks from the sampler fitted on the train members.

    Samplers that choose by a score are given the accuracy on validation images.
    """
    if name not in trained.hyperreps:
        raise unknown("hyper-representation", name, trained.hyperreps)
    model, data = trained.hyperreps[name], trained.data
    samplers.check(sampler_name, vae=model.config.kl > 0)

    def decode(samples):
        in_weights = sampler.space == "weights"
        return np.asarray(samples) if in_weights else hyperrep.decode(model, np.asarray(samples))

    def score(samples):
        return evaluation.evaluate(trained.task, decode(samples), trained.task.val).accuracy

    sampler = samplers.get_sampler(sampler_name, trained.config.samplers, model.spec, score)
    key_fit, key_sample = jax.random.split(key)
    if sampler.space == "weights":
        # One snapshot a member: an average of two epochs of one member is no average of two.
        anchors, quality = data.train[:, -1], data.quality[:, -1]
    else:
        anchors, quality = hyperrep.encode(model, data.train_vectors), data.quality.reshape(-1)
    state = sampler.fit(key_fit, anchors, quality)
    samples = sampler.sample(key_sample, state, count)
    report = sampler.report(state, samples)
    return Draw(np.asarray(samples), decode(samples), np.asarray(anchors), report)


def _as_population(trained: Trained, drawn: Draw, name: str, sampler: str, seed: int) -> Zoo:
    vectors, metrics = drawn.vectors, {}
    for part in ("train", "val", "test"):
        result = evaluation.evaluate(trained.task, vectors, getattr(trained.task, part))
        metrics[f"{part}_loss"] = result.loss[:, None]
        metrics[f"{part}_accuracy"] = result.accuracy[:, None]
    return zoo.Zoo(
        spec=trained.zoo.spec,
        weights=vectors[:, None],
        epochs=np.zeros(1, np.int32),
        members=np.arange(len(vectors)),
        metrics=metrics,
        info={
            "kind": "samples",
            "sampler": sampler,
            "report": drawn.report,
            "hyperrep": name,
            "seed": seed,
            "dataset": trained.config.dataset,
            "fingerprint": trained.images.fingerprint,
        },
    )
