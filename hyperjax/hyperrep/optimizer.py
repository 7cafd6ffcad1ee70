"""Optimisers of autoencoders and denoisers."""

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hyperjax.config import OptimizationConfig
from hyperjax.types import Params


def optimizer(config: OptimizationConfig, mesh: Mesh | None = None) -> optax.GradientTransformation:
    """AdamW, or Muon for the matrices inside and AdamW for the rest, with linear warm-up, then
    constant or cosine decay; gradient norm clipped. With a mesh, of one axis "batch", its devices
    share Muon's work, if they are of one process."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        # a run shorter than its warm-up never comes to the decay, which optax wants all the same
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(config.steps, warmup + 1))
    else:
        rate = optax.linear_schedule(0.0 if warmup else peak, peak, max(warmup, 1))
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.optimizer == "muon":
        trained = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            adam_weight_decay=config.weight_decay,
            consistent_rms=0.2,  # steps as large as Adam's, so that one rate suits both
            muon_weight_dimension_numbers=_dimensions,
        )
        trained = _by_shape(trained, mesh)
        step = optax.partition({True: trained, False: optax.set_to_zero()}, _trained)
    else:
        step = optax.adamw(rate, weight_decay=config.weight_decay, mask=_trained)
    return optax.chain(*clip, step)


def _trained(params: Params) -> Params:
    """Which parameters are trained, and decay: all but the linear path."""
    return jax.tree.map_with_path(
        lambda path, _: not any(entry.key.startswith("linear") for entry in path), params
    )


def _is_matrix(path: tuple, leaf: Any) -> bool:
    """Whether Muon takes it: a matrix inside, between hidden features; no bias of one row."""
    inside = any(str(entry.key).startswith(("round_", "block_")) for entry in path)
    return inside and leaf.ndim == 2 and min(leaf.shape) > 1


def _by_shape(tx: optax.GradientTransformation, mesh: Mesh | None) -> optax.GradientTransformation:
    """`tx` on {"stacks": the matrices, those of one shape in one array [k, n, m], "others": all
    else}: each device orthogonalises its share of a stack, where they divide it, and not all of
    them all matrices."""

    def gather(tree: Params) -> dict[str, Any]:
        stacks, others = defaultdict(list), {}
        for path, leaf in jax.tree.leaves_with_path(tree):
            if _is_matrix(path, leaf):
                stacks["x".join(map(str, leaf.shape))].append(leaf)
            else:
                others[jax.tree_util.keystr(path)] = leaf
        joined = {shape: _spread(jnp.stack(leaves), mesh) for shape, leaves in stacks.items()}
        return {"stacks": joined, "others": others}

    def scatter(gathered: dict[str, Any], like: Params) -> Params:
        stacks = {shape: iter(_whole(x, mesh)) for shape, x in gathered["stacks"].items()}

        def one(path: tuple, leaf: Any) -> Any:
            if _is_matrix(path, leaf):
                return next(stacks["x".join(map(str, leaf.shape))])
            return gathered["others"][jax.tree_util.keystr(path)]

        return jax.tree.map_with_path(one, like)

    def init(params: Params) -> Any:
        return tx.init(gather(params))

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        updates, state = tx.update(gather(grads), state, gather(params))
        return scatter(updates, grads), state

    return optax.GradientTransformation(init, update)


def _dimensions(gathered: dict[str, Any]) -> dict[str, Any]:
    """What Muon takes of `_by_shape`'s trees, and along which axes."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    stacks, others = (dict.fromkeys(gathered[part]) for part in ("stacks", "others"))
    return {"stacks": dict.fromkeys(stacks, matrix), "others": others}


def _spread(stack: jax.Array, mesh: Mesh | None) -> jax.Array:
    """A stack over the devices of one process: two processes on CPUs of one host took longer to
    send to each other what they computed than to compute all of it."""
    if mesh is None or mesh.is_multi_process or len(stack) % mesh.size:
        return stack
    return lax.with_sharding_constraint(stack, NamedSharding(mesh, P("batch")))


def _whole(stack: jax.Array, mesh: Mesh | None) -> jax.Array:
    """And again on each of them."""
    if mesh is None or mesh.is_multi_process:
        return stack
    return lax.with_sharding_constraint(stack, NamedSharding(mesh, P()))
