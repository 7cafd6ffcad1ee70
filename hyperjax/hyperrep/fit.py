"""From a zoo to a hyper-representation, without folders or images; and how one is judged."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hyperjax import config_rules, distributed, zoo
from hyperjax.config import AutoencoderConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import losses, training, weight_data
from hyperjax.hyperrep.model import HyperRep, bound, reconstruct, statistics
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.types import Key
from hyperjax.zoo import Split, Zoo

_VALIDATION = 0.15  # of the members, where none are given


def fit_hyperrep(
    members: Zoo,
    config: AutoencoderConfig,
    key: Key,
    *,
    validation: Zoo | None = None,
    on_eval: Callable[[dict[str, float]], Any] | None = None,
) -> HyperRep:
    """Train an autoencoder on the weights of a zoo (paper section 3), on all its snapshots.

    Args:
      members: train members; those that have diverged are left out.
      config: `config.data.epochs_seen` is not used: select snapshots by `Zoo.select`.
      key: of parameters, batches and augmentations.
      validation: members by whose loss the best step is chosen, and that nothing is fitted to.
        None: 15 % of `members`, at random.
      on_eval: told what came out of every validation, as a dictionary.

    Raises HyperJaxError if there are too few members, the training diverges, or settings
    contradict each other.

    >>> hr = hj.fit_hyperrep(zoo, config.autoencoder, jax.random.key(0))
    >>> hr.spec.num_params
    2464
    """
    config_rules.check_asked(config)
    key_split, key_train = jax.random.split(key)
    seed = int(jax.random.bits(key_split))
    together, parts = split_for_fit(members, validation, seed)
    data_config = dataclasses.replace(
        config.data, epochs_seen=tuple(int(epoch) for epoch in together.epochs)
    )
    config = dataclasses.replace(config, data=data_config)
    reference = weight_data.find_reference(data_config, together, parts, seed)
    data = weight_data.load(data_config, together, parts, reference)
    trainer = training.make_trainer(config, members.spec)
    stats = statistics(config.data, members.spec, data.train_vectors)
    placed_stats = training.place(trainer, stats)
    start = training.begin(trainer, key_train, placed_stats)
    start = training.fit_linear(trainer, start, stats, data.train_vectors)

    def judged(params) -> dict[str, float]:
        return validate(HyperRep(config, members.spec, params, placed_stats, reference), data)

    progress = start
    steps = training.run(trainer, start, data.train_vectors, placed_stats, judged)
    for progress, _, record in steps:  # noqa: B007
        if record is not None and on_eval is not None:
            on_eval(record)
    best = jax.device_put(distributed.fetch(progress.best))  # bound to no device, as those read
    return HyperRep(config, members.spec, best, stats, reference)


def split_for_fit(members: Zoo, validation: Zoo | None, seed: int) -> tuple[Zoo, Split]:
    """Train and validation members in one zoo, and their rows."""
    if validation is None:
        rows = np.flatnonzero(zoo.valid_members(members))
        rows = np.random.default_rng(seed).permutation(rows)
        count = max(1, round(_VALIDATION * len(rows)))
        train, val, together = np.sort(rows[count:]), np.sort(rows[:count]), members
    else:
        together = zoo.concatenate(members, validation)
        rows = np.flatnonzero(zoo.valid_members(together))
        train, val = rows[rows < len(members.members)], rows[rows >= len(members.members)]
    if not len(train) or not len(val):
        raise HyperJaxError(
            f"{len(train)} train and {len(val)} validation members with finite weights; expected "
            "at least one of each"
        )
    return together, Split(train, val, train[:0])


def validate(hyperrep: HyperRep, data: WeightData, task: Task | None = None) -> dict[str, float]:
    """R² and loss of reconstructions, of train and of validation members, of each the first
    `training.eval_models`; with a task also their accuracy on its validation images.

    The loss is the reconstruction's. A VAE's is of a sample of each posterior, its KL penalty
    included: up to a factor, the negative evidence lower bound.
    """
    c, spec, stats = hyperrep.config, hyperrep.spec, hyperrep.statistics
    layer_std = np.asarray(stats.layer_std)
    count = c.training.eval_models
    mean = np.asarray(stats.mean) if c.data.center else data.train_vectors.mean(0)
    results = {}
    for part, members in (("train", data.train), ("val", data.val)):
        members = members[: max(1, count)] if count else members
        vectors = members.reshape(-1, spec.num_params)
        outputs = reconstruct(hyperrep, vectors, aligned=True)
        r2 = losses.r_squared(spec, outputs, vectors, mean, layer_std)
        results |= {f"{part}_r2_{layer}": value for layer, value in r2.items()}
        if c.architecture.variational:  # the same noise at every validation
            of_part = bound(hyperrep, vectors, jax.random.key(0))
            results |= {f"{part}_loss": of_part.loss, f"{part}_kl": float(of_part.nats.sum())}
        else:
            scale = layer_std if c.loss.lwln else np.ones_like(layer_std)
            loss, _ = losses.reconstruction(spec, outputs, vectors, scale)
            results[f"{part}_loss"] = float(loss)
        if count and task is not None:
            last = outputs.reshape(members.shape)[:, -1]
            accuracy = evaluation.evaluate(task, last, task.val).accuracy
            results[f"{part}_accuracy"] = float(np.mean(accuracy))
    return results
