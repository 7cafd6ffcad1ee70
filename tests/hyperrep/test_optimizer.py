"""Muon with the matrices of one shape together, on several devices: what Optax does to each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hyperrep_cases import TINY
from jax.sharding import Mesh

from hyperjax.hyperrep.optimizer import optimizer

CONFIG = dataclasses.replace(TINY.training, optimizer="muon", weight_decay=0.1, clip_norm=1.0)
SHAPES = {
    "round_0": {"up": {"kernel": (6, 8), "bias": (8,)}, "down": {"kernel": (8, 6)},
                "condition": (1, 8)},  # as wide as a batch: no matrix
    "round_1": {"up": {"kernel": (6, 8), "bias": (8,)}, "down": {"kernel": (8, 6)},
                "mix": {"kernel": (5, 5)}},
    "read": {"kernel": (8, 6), "linear": {"kernel": (8, 3)}},
}  # fmt: skip


def draw(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        SHAPES, is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip


def plain():
    """Each matrix inside by itself, in Optax's own words."""

    def dimensions(params):
        def one(path, leaf):
            inside = path[0].key.startswith("round_") and path[-1].key == "kernel"
            return optax.contrib.MuonDimensionNumbers() if inside else None

        return jax.tree.map_with_path(one, params)

    def kind(params):
        return jax.tree.map_with_path(
            lambda path, _: "fixed" if "linear" in [entry.key for entry in path] else "free", params
        )

    rate = optax.warmup_cosine_decay_schedule(
        0.0, CONFIG.learning_rate, CONFIG.warmup_steps, max(CONFIG.steps, CONFIG.warmup_steps + 1)
    )
    if CONFIG.schedule != "cosine":
        rate = optax.linear_schedule(0.0, CONFIG.learning_rate, CONFIG.warmup_steps)
    muon = optax.contrib.muon(
        rate, weight_decay=0.1, adam_weight_decay=0.1, consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )  # fmt: skip
    split = optax.partition({"free": muon, "fixed": optax.set_to_zero()}, kind)
    return optax.chain(optax.clip_by_global_norm(1.0), split)


def after(tx, steps=4):
    params = jax.tree.map(jnp.asarray, draw(0))
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(draw(step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params)


@pytest.mark.parametrize("devices", [0, 1, 2, 4])
def test_stacked_muon_is_muon(devices):
    """Two devices divide the stacks of two matrices, four do not, nor does any more than one that
    of one matrix."""
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("batch",)) if devices else None
    ours, theirs = after(optimizer(CONFIG, mesh)), after(plain())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    if devices == 2:  # each of them has one of the stack's two
        update = jax.jit(optimizer(CONFIG, mesh).update)
        params = draw(0)
        state = optimizer(CONFIG, mesh).init(params)
        program = update.lower(draw(1), state, params).compile().as_text()
        assert "f32[1,6,8]" in program
    start = draw(0)
    assert np.abs(ours["round_0"]["up"]["kernel"] - start["round_0"]["up"]["kernel"]).max() > 1e-3
    np.testing.assert_array_equal(
        ours["read"]["linear"]["kernel"], start["read"]["linear"]["kernel"]
    )
