"""From a zoo to a denoiser of its weights, without folders or images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import distributed, weights
from hyperjax.config import DenoiserConfig, WeightDataConfig
from hyperjax.diffusion import denoiser_training as training
from hyperjax.diffusion.denoiser import Denoiser
from hyperjax.diffusion.denoiser_training import Data, Trainer
from hyperjax.diffusion.wiener import Wiener
from hyperjax.hyperrep import weight_data
from hyperjax.hyperrep.fit import split_for_fit
from hyperjax.hyperrep.losses import slot_scale
from hyperjax.hyperrep.training import STEPS_PER_CALL, place, run_steps
from hyperjax.types import Array, Key, Params
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo


class Prepared(NamedTuple):
    """All that the training of a denoiser needs, of a population."""

    trainer: Trainer
    scale: np.ndarray  # float32[layers]
    wiener: Wiener  # of all train members
    data: Data
    judged: Callable[[Params], dict[str, float]]
    val: np.ndarray  # float32[V, D], in units of `scale`


def prepare(
    config: DenoiserConfig,
    spec: WeightSpec,
    train: Array,
    val: Array,
    quality: Array,
    seed: int,
) -> Prepared:
    """Scales, Wiener denoisers and folds of aligned members.

    Args:
      train: float32[M, E, D], of which the last `config.snapshots` are used.
      val: float32[V, E, D], of which the last is used.
      quality: float[M, E] of the train members, NaN where unknown.
      seed: of the split into folds.
    """
    each = min(config.snapshots, train.shape[1])
    seen = train[:, -each:]
    scale = weights.layer_std(spec, seen)
    unit = np.asarray(slot_scale(spec, scale))
    held_out = np.asarray(val[:, -1], np.float32) / unit[None]
    trainer = training.make_trainer(config, spec)
    wiener = training.whole(config, spec, seen, unit)
    folds = training.folded(config, spec, seen, unit, quality[:, -each:], seed)
    known = np.asarray(seen[: -(-len(val) // each)], np.float32).reshape(-1, spec.num_params)
    judged = training.judge(trainer, wiener, known[: len(val)] / unit[None], held_out)
    return Prepared(trainer, scale, wiener, folds, judged, held_out)


def steps(prepared: Prepared, begun: training.Progress) -> Any:
    """The training itself, see `hyperrep.training.run_steps`."""

    trainer, data = prepared.trainer, prepared.data
    give = training.members_of(trainer, begun.state.key, data)
    unit, folds = place(trainer, (data.unit, data.wieners))

    def some(state, step, count):
        drawn = give(step, STEPS_PER_CALL)
        return training.train_steps(trainer, state, drawn, unit, folds, jnp.int32(count))

    return run_steps(prepared.trainer, begun, some, prepared.judged, "denoiser")


def fit_denoiser(
    members: Zoo,
    config: DenoiserConfig,
    key: Key,
    *,
    validation: Zoo | None = None,
    reference: Array | None = None,
    on_eval: Callable[[dict[str, float]], Any] | None = None,
) -> Denoiser:
    """Train a denoiser on the weights of a zoo, on its last snapshots (`config.snapshots`).

    Args:
      members: train members; those that have diverged are left out. Aligned here.
      key: of parameters, batches and noise.
      validation: members by whose error the best step is chosen, and that nothing is fitted to.
        None: 15 % of `members`, at random.
      reference: what members are aligned to, float32[D]; None: found now.
      on_eval: told what came out of every validation, as a dictionary.

    Raises HyperJaxError if there are too few members, or the training diverges.

    >>> fitted = hj.fit_denoiser(zoo, config.denoiser, key)
    >>> fitted.reference.shape
    (2464,)
    """
    key_split, key_train = jax.random.split(key)
    seed = int(jax.random.bits(key_split))
    together, parts = split_for_fit(members, validation, seed)
    last = together.epochs[-config.snapshots :]
    seen = WeightDataConfig(epochs_seen=tuple(int(epoch) for epoch in last))
    if reference is None:
        reference = weight_data.find_reference(seen, together, parts, seed)
    data = weight_data.load(seen, together, parts, np.asarray(reference))
    prepared = prepare(config, members.spec, data.train, data.val, data.quality, seed)
    progress = training.begin(prepared.trainer, key_train)
    for progress, _, record in steps(prepared, progress):  # noqa: B007, B020
        if record is not None and on_eval is not None:
            on_eval(record)
    best = jax.device_put(distributed.fetch(progress.best))
    return Denoiser(
        config, members.spec, best, prepared.wiener, prepared.scale, np.asarray(reference)
    )
