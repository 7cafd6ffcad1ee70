"""The network of networks against the same computation in NumPy, edge by edge."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from denoiser_cases import EQUIVARIANT, GRAPH, MLP, SPECS, random_params, vectors_of

from hyperjax import symmetry
from hyperjax.models import graph
from hyperjax.models.graph import GraphDenoiser, condition_embedding
from hyperjax.weights import LayerSpec, WeightSpec

KINDS = list(itertools.product(SPECS, (GRAPH, EQUIVARIANT)))
LEVELS, QUALITIES = np.float32([-1.5, 0.0, 0.7]), np.float32([-1.0, 0.2, 0.9])


def inputs_of(spec, count=3, seed=0):
    """Two vectors for each network, levels and qualities."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 2, spec.num_params)).astype(np.float32)
    return vectors, LEVELS[:count], QUALITIES[:count]


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(config, spec, params, *inputs):
    return GraphDenoiser(config, spec).apply({"params": params}, *inputs)


# --- the graph, by hand ---------------------------------------------------------------------


def edges_of(spec):
    """Of each layer {(neuron, input): (node it leads to, node it comes from, its weights)} and
    [(node, bias)] of its neurons; node 0 is the input, weights are places in the flat vector."""
    found, at, before, node = [], 0, [0], 1
    for layer in spec.layers:
        nodes = list(range(node, node + layer.shape[0]))
        block = int(np.prod(layer.shape[1:])) // len(before)
        edges = {}
        for o, end in enumerate(nodes):
            for i, start in enumerate(before):
                edges[o, i] = (end, start, list(range(at, at + block)))
                at += block
        biases = [(end, at + o) for o, end in enumerate(nodes)]
        at += len(nodes)
        found.append((edges, biases))
        before, node = nodes, node + len(nodes)
    assert at == spec.num_params
    return found


@pytest.mark.parametrize("name", SPECS)
def test_messages_go_along_the_edges(name):
    spec, rng = SPECS[name], np.random.default_rng(0)
    layers, batch, width = edges_of(spec), 2, 5
    nodes = 1 + spec.num_tokens
    to, source = rng.normal(size=(2, batch, nodes, width)).astype(np.float32)
    spread = graph._spread(spec, jnp.asarray(to), jnp.asarray(source))
    features = [rng.normal(size=s.shape).astype(np.float32) for s in spread]
    incoming, outgoing = ([[] for _ in range(nodes)] for _ in range(2))
    for (edges, _), sums, feature in zip(layers, spread, features, strict=True):
        assert sums.shape[1] * sums.shape[2] == len(edges)
        for (o, i), (end, start, _) in edges.items():
            np.testing.assert_allclose(sums[:, o, i], to[:, end] + source[:, start], atol=1e-6)
            incoming[end].append(feature[:, o, i])
            outgoing[start].append(feature[:, o, i])
    collected = graph._collect([jnp.asarray(f) for f in features])
    assert collected.shape == (batch, nodes, 2 * width)
    for node in range(nodes):
        for lists, part in ((incoming, slice(width)), (outgoing, slice(width, None))):
            mean = np.mean(lists[node], axis=0) if lists[node] else np.zeros((batch, width))
            np.testing.assert_allclose(collected[:, node, part], mean, atol=1e-6)


# --- the same network in NumPy --------------------------------------------------------------


def dense(x, p):
    return x @ np.float64(p["kernel"]) + p.get("bias", 0)


def norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p.get("bias", 0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def embedding(log_sigma, quality):
    rates = np.linspace(0.5, 4, 8)
    parts = [log_sigma, *np.sin(rates * log_sigma), *np.cos(rates * log_sigma)]
    if quality < 0:
        return np.array(parts + [0] * 18)
    x = 2 * float(quality) - 1
    return np.array([*parts, *np.sin(rates * x), *np.cos(rates * x), 1, x])


def attend(x, p, heads):
    q, k, v = np.split(dense(x, p["qkv"]), 3, axis=-1)
    size, mixed = q.shape[-1] // heads, []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        shares = scipy.special.softmax(q[:, part] @ k[:, part].T / np.sqrt(size), axis=-1)
        mixed.append(shares @ v[:, part])
    return dense(np.concatenate(mixed, axis=-1), p["out"])


def by_hand(config, spec, params, vectors, log_sigma, quality):
    """One network's output float[D]; features of edges are a dictionary."""
    layers, last = edges_of(spec), spec.layers[-1].num_neurons
    condition = dense(embedding(log_sigma, quality), params["condition"])
    condition = condition * scipy.special.expit(condition)
    p, edges = params["embed"], {}
    nodes = np.zeros((1 + spec.num_tokens, config.node_dim))
    for number, (layer, (of_layer, biases)) in enumerate(zip(spec.layers, layers, strict=True)):
        for (o, i), (_, _, places) in of_layer.items():
            edge = dense(np.concatenate([v[places] for v in vectors]), p[f"edge_{layer.name}"])
            if not config.equivariant:
                edge = edge + p[f"position_{layer.name}"][o, i]
            edges[number, o, i] = edge
        for node, place in biases:
            nodes[node] = dense(vectors[:, place], p[f"node_{layer.name}"])
    known = [0, *range(len(nodes) - last, len(nodes))] if config.equivariant else range(len(nodes))
    for node, position in zip(known, p["positions"], strict=True):
        nodes[node] += position
    for number in range(config.rounds):
        edges, nodes = round_by_hand(
            config, layers, params[f"round_{number}"], edges, nodes, condition
        )
    p, output = params["readout"], np.zeros(spec.num_params)
    for number, (layer, (of_layer, biases)) in enumerate(zip(spec.layers, layers, strict=True)):
        for (o, i), (_, _, places) in of_layer.items():
            edge = norm(edges[number, o, i], p["norm_edges"])
            output[places] = dense(edge, p[f"edge_{layer.name}"])
        for node, place in biases:
            output[place] = dense(norm(nodes[node], p["norm_nodes"]), p[f"node_{layer.name}"])[0]
    return output


def round_by_hand(config, layers, p, edges, nodes, condition):
    ends = dense(norm(nodes, p["norm_ends"]), p["ends"])
    to, source = ends[:, : config.edge_hidden], ends[:, config.edge_hidden :]
    shift, moved = dense(condition, p["edge_condition"]), {}
    incoming, outgoing = ([[] for _ in nodes] for _ in range(2))
    for number, (of_layer, _) in enumerate(layers):
        for (o, i), (end, start, _) in of_layer.items():
            edge = edges[number, o, i]
            hidden = dense(norm(edge, p["norm_edges"]), p["edge_in"])
            hidden = gelu(hidden + to[end] + shift + source[start])
            moved[number, o, i] = edge + dense(hidden, p["edge_out"])
            incoming[end].append(hidden)
            outgoing[start].append(hidden)
    nothing = [np.zeros(config.edge_hidden)]
    means = [
        np.concatenate([np.mean(a or nothing, axis=0), np.mean(b or nothing, axis=0)])
        for a, b in zip(incoming, outgoing, strict=True)
    ]
    nodes = nodes + dense(np.array(means), p["messages"])
    nodes = nodes + attend(norm(nodes, p["norm_attention"]), p["attention"], config.heads)
    hidden = dense(norm(nodes, p["norm_mlp"]), p["node_in"]) + dense(condition, p["node_condition"])
    return moved, nodes + dense(gelu(hidden), p["node_out"])


@pytest.mark.parametrize(("name", "config"), KINDS)
def test_the_network_is_what_it_says(name, config):
    spec = SPECS[name]
    params, inputs = random_params(config, spec), inputs_of(spec)
    found = run(config, spec, params, *inputs)
    expected = [by_hand(config, spec, params, *one) for one in zip(*inputs, strict=True)]
    assert found.dtype == jnp.float32
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_rounds_are_as_many_as_asked_for():
    config = dataclasses.replace(GRAPH, rounds=2)
    params, inputs = random_params(config, MLP), inputs_of(MLP, 1)
    assert {"round_0", "round_1"} < set(params)
    expected = by_hand(config, MLP, params, *(x[0] for x in inputs))
    np.testing.assert_allclose(run(config, MLP, params, *inputs)[0], expected, atol=2e-4)


# --- properties -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rounds"), [("mlp", 0), ("colour", 0), ("mlp", 2)])
def test_every_weight_is_seen_and_without_rounds_only_where_it_stands(name, rounds):
    """Every output depends on every input; without messages, on those of its own edge or node."""
    spec, (vectors, *others) = SPECS[name], inputs_of(SPECS[name], 1)
    config = dataclasses.replace(GRAPH, rounds=rounds)
    same = np.zeros((spec.num_params, spec.num_params), bool)
    for edges, biases in edges_of(spec):
        for places in [p for _, _, p in edges.values()] + [[p] for _, p in biases]:
            same[np.ix_(places, places)] = True
    one = functools.partial(run, config, spec, random_params(config, spec))
    slope = jax.jacrev(lambda x: one(x, *others)[0])(vectors)[:, 0]
    for depends in np.moveaxis(np.abs(slope) > 1e-9, 1, 0):  # of either vector
        assert depends.any(axis=0).all()
        assert depends.any(axis=1).all()
        if rounds:
            assert depends.mean() > 0.99
        else:
            np.testing.assert_array_equal(depends & ~same, False)


@pytest.mark.parametrize(("name", "config"), [("mlp", GRAPH), ("mlp", EQUIVARIANT)])
def test_the_output_is_zero_at_first_and_every_parameter_learns(name, config):
    spec, inputs = SPECS[name], inputs_of(SPECS[name])
    module = GraphDenoiser(config, spec)
    params = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    np.testing.assert_array_equal(run(config, spec, params, *inputs), 0)
    target = vectors_of(spec, 3)
    slope = jax.jit(
        jax.grad(lambda p: jnp.mean((module.apply({"params": p}, *inputs) - target) ** 2))
    )
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope(params))
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(slope(params))
        if not np.any(leaf)
    ]
    assert not still


def test_levels_and_qualities_change_the_output():
    (vectors, levels, qualities), params = inputs_of(MLP), random_params(GRAPH, MLP)
    plain = run(GRAPH, MLP, params, vectors, levels, qualities)
    for other in ((levels + 0.1, qualities), (levels, np.float32([0.5, -1, 0.8]))):
        changed = run(GRAPH, MLP, params, vectors, *other)
        assert (np.abs(changed - plain).max(axis=1) > 1e-3).all()


def test_embedding_of_levels_and_qualities():
    found = condition_embedding(jnp.asarray(LEVELS), jnp.asarray(QUALITIES))
    expected = [embedding(*one) for one in zip(LEVELS, QUALITIES, strict=True)]
    assert found.shape == (3, 3 + 4 * 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    below = condition_embedding(jnp.zeros(2), jnp.float32([-1.0, -0.25]))  # unknown, both
    np.testing.assert_array_equal(below[0], below[1])


def test_bfloat16_gives_nearly_the_same():
    half = dataclasses.replace(GRAPH, dtype="bfloat16")
    params, inputs = random_params(GRAPH, MLP), inputs_of(MLP)
    ours, theirs = (run(config, MLP, params, *inputs) for config in (half, GRAPH))
    assert ours.dtype == jnp.float32
    assert 0 < np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()


def test_layers_without_biases():
    """Their neurons have no features of their own; they commute with permutations all the same."""
    layers = (LayerSpec("d", "dense", (4, 5), bias=False), LayerSpec("e", "dense", (2, 4)))
    spec = WeightSpec(layers, "gelu")
    config = dataclasses.replace(GRAPH, equivariant=True)
    params, (vectors, *known) = random_params(config, spec), inputs_of(spec)
    assert "node_d" not in params["embed"]
    transform = symmetry.random_transform(jax.random.key(0), spec)
    moved = symmetry.apply(spec, transform, vectors)
    expected = symmetry.apply(spec, transform, run(config, spec, params, vectors, *known))
    np.testing.assert_allclose(run(config, spec, params, moved, *known), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_parts_make_the_whole(count, size):
    rows = np.float32(np.random.default_rng(0).normal(size=(count, 2)))
    seen = []

    def fn(x):
        seen.append(len(x))
        return {"sum": x.sum(1), "outer": x[:, :, None] * x[:, None]}

    found = graph.in_parts(fn, size, rows)
    np.testing.assert_allclose(found["sum"], rows.sum(1), atol=1e-6)
    np.testing.assert_allclose(found["outer"], rows[:, :, None] * rows[:, None], atol=1e-6)
    assert set(seen) == {size if 0 < size < count else count}
    grad = jax.grad(lambda x: graph.in_parts(lambda x: x**3, size, x).sum())(rows)
    np.testing.assert_allclose(grad, 3 * rows**2, rtol=1e-5)
