"""Small architectures, graph networks of them with parameters drawn at random, and denoisers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import symmetry
from hyperjax.config import DenoiserConfig, GraphConfig, OptimizationConfig
from hyperjax.diffusion import Denoiser, denoiser_training, wiener
from hyperjax.models.graph import GraphDenoiser
from hyperjax.weights import LayerSpec, WeightSpec

SPECS = {
    "tanh": WeightSpec(
        (
            LayerSpec("c", "conv", (3, 1, 2, 2), pool="max"),
            LayerSpec("d", "dense", (4, 12)),
            LayerSpec("e", "dense", (2, 4)),
        ),
        "tanh",
    ),
    "colour": WeightSpec(
        (
            LayerSpec("c", "conv", (2, 3, 2, 2)),
            LayerSpec("d", "conv", (3, 2, 2, 2)),
            LayerSpec("e", "dense", (2, 12)),
        ),
        "relu",
    ),
    "mlp": WeightSpec((LayerSpec("d", "dense", (4, 5)), LayerSpec("e", "dense", (2, 4))), "tanh"),
}
MLP = SPECS["mlp"]  # 34 weights
GRAPH = GraphConfig(
    edge_dim=4, edge_hidden=6, node_dim=8, node_hidden=10, heads=2, rounds=1, condition_dim=4
)
EQUIVARIANT = dataclasses.replace(GRAPH, equivariant=True)
CONFIG = DenoiserConfig(
    graph=GRAPH,
    folds=4,
    average=0.9,
    training=OptimizationConfig(
        steps=14, batch_size=32, learning_rate=1e-2, weight_decay=1e-2, warmup_steps=5,
        schedule="constant", eval_every=12,
    ),
)  # fmt: skip


def vectors_of(spec, count, seed=0):
    """Of layers with means and covariances of their own."""
    rng, size = np.random.default_rng(seed), spec.num_params
    mixing = rng.normal(size=(size, size)) / np.sqrt(size)
    return np.float32(rng.normal(size=(count, size)) @ mixing + rng.normal(size=size))


COUNT = 201  # one fold has a member more than the others
MEMBERS = vectors_of(MLP, COUNT)
QUALITY = np.random.default_rng(0).uniform(0.5, 0.9, COUNT)
QUALITY[[3, 17]] = np.nan


def folded(members=MEMBERS, quality=QUALITY, config=CONFIG, seed=0, each=1):
    """Members in folds, `each` vectors of every one, in units of 1."""
    size = members.shape[-1]
    vectors, quality = members.reshape(-1, each, size), quality.reshape(-1, each)
    return denoiser_training.folded(config, MLP, vectors, np.ones(size, np.float32), quality, seed)


def members_in(data):
    """Those of each fold, float32[K, n, D]."""
    return data.vectors.reshape(-1, data.vectors.shape[-1])[data.rows]


def row_of(vectors, members=MEMBERS):
    """Which of the members each vector is."""
    return np.abs(vectors[:, None] - members[None]).max(axis=2).argmin(axis=1)


def configured(**changes):
    steps = {k: v for k, v in changes.items() if hasattr(CONFIG.training, k)}
    others = {k: v for k, v in changes.items() if k not in steps}
    trained = dataclasses.replace(CONFIG.training, **steps)
    return dataclasses.replace(CONFIG, training=trained, **others)


@functools.cache
def random_params(graph, spec, seed=0, zero=False):
    """Parameters of which none is zero; with `zero`, but for those that make the output zero."""
    sample = jnp.zeros((1, 2, spec.num_params))
    module, one = GraphDenoiser(graph, spec), jnp.zeros(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), sample, one, one)["params"])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)
    for name in params["readout"]:
        if zero and not name.startswith("norm"):
            params["readout"][name] = jax.tree.map(np.zeros_like, params["readout"][name])
    return params


def make_denoiser(graph=GRAPH, spec=MLP, *, zero=False, count=40, seed=0):
    """Of random members whose layers have scales of very different size."""
    scale = np.float32([0.1, 1.0, 20.0])[: len(spec.layers)]
    members = vectors_of(spec, count, seed)
    config = dataclasses.replace(CONFIG, graph=graph)
    fitted = wiener.fit_orbits(spec, members) if graph.equivariant else wiener.fit(members)
    params = random_params(graph, spec, seed, zero)
    return Denoiser(config, spec, params, fitted, scale, np.zeros(spec.num_params, np.float32))


def unit_of(denoiser):
    """The scale of every weight, by hand."""
    return np.repeat(denoiser.scale, [layer.num_params for layer in denoiser.spec.layers])


@functools.partial(jax.jit, static_argnums=1)
def transforms(key, spec):
    """A random element of the symmetry group: hidden neurons reordered, signs changed."""
    return symmetry.random_transform(key, spec)


apply = jax.jit(symmetry.apply, static_argnums=0)


def linear_error(wiener, covariance, sigma):
    """Mean squared error of a Wiener denoiser, a weight, on a population of its mean and another
    covariance C float[D, D]: trace(A C A' + sigma^2 G G') / D, with gain
    G = C_w (C_w + sigma^2)^-1 and A = G - I."""
    size = len(wiener.mean)
    axes, rest = np.asarray(wiener.axes, np.float64), np.asarray(wiener.rest, np.float64)
    rest = np.broadcast_to(rest / (rest + sigma**2), size)
    known = np.asarray(wiener.variances, np.float64)
    difference = known / (known + sigma**2) - rest[: len(known)]
    gain = np.diag(rest) + (axes.T * difference[None]) @ axes
    miss = gain - np.eye(size)
    return float(np.trace(miss @ covariance @ miss.T + sigma**2 * gain @ gain.T) / size)
