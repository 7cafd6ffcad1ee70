"""Train a hyper-representation into the workdir: validated, checkpointed, resumable."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import distributed, hyperrep
from hyperjax.app import progress
from hyperjax.config import AutoencoderConfig, Config, flat
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics, Trainer, TrainState, losses
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.rng import Stream, root_key
from hyperjax.store import checkpoint, files, hyperrep_file, workdir
from hyperjax.types import Params
from hyperjax.weights import WeightSpec

_STEPS_PER_CALL = 10  # between two updates of the progress bar
LWLN, NO_LWLN, VAE = "lwln", "no_lwln", "vae"


class Progress(NamedTuple):
    """All that a resumed run needs."""

    state: TrainState
    best: Params
    best_score: jax.Array  # float32
    best_step: jax.Array  # int32


def variants(config: Config) -> dict[str, AutoencoderConfig]:
    """The autoencoder of the configuration under its name and, if asked for, its twin."""
    main = config.autoencoder
    twin = dataclasses.replace(main, lwln=not main.lwln)
    both = [main, twin] if main.train_baseline else [main]
    return {LWLN if variant.lwln else NO_LWLN: variant for variant in both}


def main_name(config: Config) -> str:
    return next(iter(variants(config)))


def vae(config: Config) -> AutoencoderConfig:
    """The autoencoder of the configuration as a VAE (paper appendix E); train.py trains none."""
    return dataclasses.replace(config.autoencoder, kl=config.evaluation.vae_kl, tanh=False)


def read_vae(config: Config, spec: WeightSpec, folder: Path) -> HyperRep:
    """The VAE of a workdir. Raises HyperJaxError if it has none."""
    path = workdir.hyperrep_path(folder, VAE)
    if not path.exists():
        raise HyperJaxError(
            f"{folder} has no {path.relative_to(folder)}: the VAE is trained by "
            f"python evaluate.py --workdir={folder} --experiments=vae"
        )
    return read_checked(path, vae(config), spec)


def make_hyperrep(
    name: str, config: Config, data: WeightData, reference: np.ndarray, task: Task, folder: Path
) -> HyperRep:
    """Train the variant `name`, or read it if the workdir has it."""
    path = workdir.hyperrep_path(folder, name)
    variant, spec = (variants(config) | {VAE: vae(config)})[name], task.engine.spec
    if path.exists():
        files.remove(checkpoint_folder(folder, name))
        return read_checked(path, variant, spec)
    trainer = hyperrep.make_trainer(variant, spec)
    stats = hyperrep.statistics(variant, spec, data.train_vectors)
    result = _train(name, trainer, stats, config, data, task, folder)
    trained = HyperRep(variant, spec, jax.device_get(result.best), stats, reference)
    info = {
        "name": name,
        "seed": config.seed,
        "best_step": int(result.best_step),
        "best_score": float(result.best_score),
        "selected_by": variant.select,
        **validate(trained, data, task),
    }
    hyperrep_file.write(path, trained, info)
    files.remove(checkpoint_folder(folder, name))
    distributed.barrier(f"{path} is written")
    return trained


def read_checked(path: Path, variant: AutoencoderConfig, spec: WeightSpec) -> HyperRep:
    """Read a hyper-representation that must be of this configuration and architecture."""
    trained = hyperrep_file.read(path)[0]
    if trained.spec != spec:
        raise HyperJaxError(
            f"{path}: made for another architecture ({trained.spec.num_params} weights, "
            f"{trained.spec.activation}); expected {spec.num_params} weights, {spec.activation}"
        )
    if trained.config != variant:
        ours, theirs = (flat(dataclasses.asdict(c)) for c in (variant, trained.config))
        names = {"kl": "evaluation.vae_kl"} if path.stem == VAE else {}
        differing = [f"{names.get(field, f'autoencoder.{field}')}: {theirs[field]!r} there, "
                     f"{ours[field]!r} here"
                     for field in ours if ours[field] != theirs[field]]  # fmt: skip
        raise HyperJaxError(
            f"{path}: made with another configuration ({'; '.join(differing)}); delete it "
            "or restore"
        )
    return trained


def validate(trained: HyperRep, data: WeightData, task: Task) -> dict[str, float]:
    """R² and accuracy of reconstructions, of train and of held-out (validation) members.

    The loss is the reconstruction's. A VAE's is of a sample of each posterior, its KL penalty
    included: up to a factor, the negative evidence lower bound.
    """
    c, spec, stats = trained.config, trained.spec, trained.statistics
    mean = data.train_vectors.mean(0)
    results = {}
    for part, weights in (("train", data.train), ("heldout", data.val)):
        members = weights[: max(1, c.eval_models)] if c.eval_models else weights
        vectors = members.reshape(-1, spec.num_params)
        outputs = hyperrep.reconstruct(trained, vectors)
        r2 = losses.r_squared(spec, outputs, vectors, mean, stats.layer_std)
        results |= {f"{part}_r2_{layer}": value for layer, value in r2.items()}
        if c.kl:  # the same noise at every validation
            bound = hyperrep.bound(trained, vectors, jax.random.key(0))
            results |= {f"{part}_loss": bound.loss, f"{part}_kl": float(bound.nats.sum())}
        else:
            scale = stats.layer_std if c.lwln else np.ones_like(stats.layer_std)
            loss, _ = losses.reconstruction(spec, outputs, vectors, scale)
            results[f"{part}_loss"] = float(loss)
        if c.eval_models:
            last = outputs.reshape(members.shape)[:, -1]
            accuracy = evaluation.evaluate(task, last, task.val).accuracy
            results[f"{part}_accuracy"] = float(np.mean(accuracy))
    return results


def _train(
    name: str,
    trainer: Trainer,
    stats: Statistics,
    config: Config,
    data: WeightData,
    task: Task,
    folder: Path,
) -> Progress:
    c, stage, checkpoints = trainer.config, f"hyperrep/{name}", checkpoint_folder(folder, name)
    device_stats = jax.tree.map(jnp.asarray, stats)
    vectors = jnp.asarray(data.train_vectors)
    current, done = _start(trainer, config.seed, stats, data, checkpoints)
    workdir.forget_metrics(folder, stage, done if done else -1)
    saved = time.monotonic()

    def validated(state: TrainState, means: dict[str, float]) -> tuple[Progress, str]:
        model = HyperRep(c, trainer.spec, state.params, device_stats, np.zeros(0))
        scores = validate(model, data, task)
        workdir.log_metrics(folder, {"stage": stage, "step": int(state.step), **means, **scores})
        return _keep_best(c, current, state, scores), _note(scores)

    with progress.bar(f"hyper-representation {name}", c.steps, done) as advance:
        note = ""
        if not done:  # a linear path may be best as it starts
            current, note = validated(current.state, {})
        while done < c.steps:
            until = min((done // c.eval_every + 1) * c.eval_every, c.steps)
            state, sums = current.state, {}
            waiting: list[tuple[int, dict[str, jax.Array]]] = []  # at most one: the devices
            for begin in range(done, until, _STEPS_PER_CALL):  # work while its metrics are read
                count = min(_STEPS_PER_CALL, until - begin)
                state, metrics = hyperrep.train_steps(
                    trainer, state, vectors, device_stats, jnp.int32(count)
                )
                _add(sums, waiting)
                waiting = [(count, metrics)]
                advance(count, note)
            _add(sums, waiting)
            means = {f"train_{key}": total / (until - done) for key, total in sums.items()}
            if not np.isfinite(means["train_loss"]):
                raise HyperJaxError(
                    f"{stage} diverged before step {until}: its loss is {means['train_loss']}; "
                    "lower config field autoencoder.learning_rate or set autoencoder.clip_norm"
                )
            done = until
            current, note = validated(state, means)
            late = distributed.agree(time.monotonic() - saved >= config.checkpoint_seconds)
            if late and done < c.steps:
                checkpoint.save(checkpoints, done, current)
                saved = time.monotonic()
        advance(0, note)
    return current


def _add(sums: dict[str, float], metrics: list[tuple[int, dict[str, jax.Array]]]) -> None:
    """Wait for the mean metrics of some steps, and add them up."""
    for count, means in metrics:
        for key, value in jax.device_get(means).items():
            sums[key] = sums.get(key, 0.0) + count * float(value)


def _start(
    trainer: Trainer, seed: int, stats: Statistics, data: WeightData, checkpoints: Path
) -> tuple[Progress, int]:
    state = hyperrep.init(trainer, root_key(seed, Stream.HYPERREP))
    step = checkpoint.latest_step(checkpoints)
    if trainer.config.linear_path and step is None:
        state = hyperrep.principal_components(trainer, state, stats, data.train_vectors)
    copy = jax.tree.map(jnp.copy, state.params)  # the state itself is donated step by step
    zero = np.float32(-math.inf), np.int32(0)
    fresh = Progress(state, copy, *distributed.put(zero, state.step.sharding))
    return (fresh, 0) if step is None else (checkpoint.restore(checkpoints, step, fresh), step)


def _keep_best(
    c: AutoencoderConfig, current: Progress, state: TrainState, scores: dict[str, Any]
) -> Progress:
    score = {
        "loss": -scores["heldout_loss"],
        "accuracy": scores.get("heldout_accuracy", math.nan),
        "last": float(state.step),
    }[c.select]
    if score > float(current.best_score):
        best = jax.tree.map(jnp.copy, state.params)
        placed = distributed.put(np.float32(score), state.step.sharding)
        return Progress(state, best, placed, jnp.copy(state.step))
    return current._replace(state=state)


def _note(scores: dict[str, float]) -> str:
    text = f"R2 train {scores['train_r2_all']:.2f}, held-out {scores['heldout_r2_all']:.2f}"
    if "heldout_accuracy" in scores:
        text += (
            f"; accuracy train {100 * scores['train_accuracy']:.0f} %, "
            f"held-out {100 * scores['heldout_accuracy']:.0f} %"
        )
    return text


def checkpoint_folder(folder: Path, name: str) -> Path:
    return folder / "checkpoints" / f"hyperrep_{name}"
