"""The novelty audit: its frontier against hand-made points, its verdicts on built populations."""

import itertools

import jax
import numpy as np
import pytest
from population_cases import random_task

from hyperjax import symmetry
from hyperjax.analysis import metrics, novelty
from hyperjax.analysis.novelty import PLAIN, REPAIRED, Audit, Novelty
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.paper.novelty_section import baseline_table
from hyperjax.population import evaluation
from hyperjax.symmetry import nearest

SPEC = zoo_cnn_spec(1, "tanh")
RNG = np.random.default_rng(0)
MEMBERS, SNAPSHOTS = 5, 2


def audit(weights, accuracy, behaviour=None, mixture=None, replica=None):
    weights, accuracy = np.asarray(weights, float), np.asarray(accuracy, float)
    behaviour = weights if behaviour is None else np.asarray(behaviour, float)
    mixture = weights if mixture is None else np.asarray(mixture, float)
    return Audit(accuracy, weights, behaviour, mixture, 0 * weights, replica, 0)


# --- the frontier -----------------------------------------------------------------------


def test_frontier_of_hand_made_points():
    x = [0.5, 0.0, 0.3, 0.5, 0.2, 0.9, 0.1, np.nan]
    y = [0.7, 0.9, 0.4, 0.6, 0.9, 0.1, 0.8, 1.0]
    edge = novelty.frontier(x, y)
    np.testing.assert_array_equal(edge, [[0.2, 0.5, 0.9], [0.9, 0.7, 0.1]])
    np.testing.assert_allclose(
        novelty.height([0.0, 0.2, 0.35, 0.7, 0.9, 1.0, 3.0], edge),
        [0.9, 0.9, 0.8, 0.4, 0.1, 0.1, 0.1],
    )


def test_frontier_equals_brute_force_and_falls():
    x, y = RNG.random((2, 30))
    edge_x, edge_y = novelty.frontier(x, y)
    best = [
        i for i in range(30) if not any(x[j] >= x[i] and y[j] >= y[i] for j in range(30) if j != i)
    ]
    assert set(zip(edge_x, edge_y, strict=True)) == {(x[i], y[i]) for i in best}
    assert np.all(np.diff(edge_x) > 0)
    assert np.all(np.diff(edge_y) < 0)


def test_novelty_above_one_counts_as_one():
    edge = novelty.frontier([0.0, 2.0], [1.0, 0.0])
    np.testing.assert_allclose(novelty.height([1.0, 1.5, 9.0], edge), 0.5)


def test_no_frontier():
    assert np.isnan(novelty.height([0.3], novelty.frontier([np.nan], [0.5]))).all()


# --- margins and verdicts ---------------------------------------------------------------


def test_margins_and_verdicts_of_known_populations():
    spread = np.linspace(-0.01, 0.01, 21)
    base = {f"noise {x}": audit(x + 0 * spread, 1 - 0.5 * x + spread) for x in (0, 0.5, 1)}
    given = {
        "beyond": audit(0.5 + spread, 0.85 + spread),
        "on": audit(0.5 + spread, 0.75 + spread),
        "below": audit(0.5 + spread, 0.6 + spread),
        "replays": audit(0.1 + 0 * spread, 1.0 + spread),
        "lossy": audit(0.5 + spread, 0.85 + spread, replica=0.01 + 0 * spread),
        "copies": audit(0.5 + 0 * spread, 0.85 + 0 * spread),
    }
    found = novelty.compare(given, base, "weights", bootstrap=999, seed=0)
    assert {name: m.verdict for name, m in found.items()} == {
        "beyond": "beyond", "on": "on", "below": "below", "replays": "replays", "lossy": "replays",
        "copies": "one network",
    }  # fmt: skip
    for name, margin in {"beyond": 0.1, "on": 0.0, "below": -0.15, "replays": 0.05}.items():
        assert found[name].margin == pytest.approx(margin)
        low, high = found[name].interval
        assert low < margin < high


def test_the_table_marks_the_whole_frontier():
    """Means of samples, whose last bit depends on the order in which they are summed up."""
    audits = {
        f"noise {i}": audit(0.1 * i + RNG.random(40), 0.9 - 0.08 * i + 0.01 * RNG.random(40))
        for i in range(9)
    }
    edge = {axis: {PLAIN: novelty.frontier(*novelty.points(audits.values(), axis).T)}
            for axis in novelty.AXES}  # fmt: skip
    table = baseline_table(Novelty({}, {}, {PLAIN: audits}, {}, edge, 0.0, 1.0), PLAIN)
    marked = [row[-1] or "" for row in table.rows]
    for axis, title in (("weights", "in weights"), ("behaviour", "in behaviour")):
        assert sum(title in words for words in marked) == len(edge[axis][PLAIN][0]) > 1


def test_interval_has_the_width_of_the_delta_method():
    """Far from corners of the frontier, the margin a - (1 - s x) has the variance of
    (a + s x) / sqrt(n); here the baselines do not vary."""
    size, slope = 200, 0.5
    x, noise = 0.5 + 0.05 * RNG.normal(size=size), 0.03 * RNG.normal(size=size)
    base = {f"{x}": audit(np.full(9, x), np.full(9, 1 - slope * x)) for x in (0, 1)}
    found = novelty.compare({"s": audit(x, 0.8 + noise)}, base, "weights", bootstrap=4000, seed=0)[
        "s"
    ]
    expected = 2 * 1.96 * np.std(noise + slope * x) / np.sqrt(size)
    assert np.diff(found.interval)[0] == pytest.approx(expected, rel=0.05)


def test_the_band_of_a_frontier():
    """Around it; of a baseline alone, as wide as the standard error says, and level."""
    size, std = 400, 0.03
    one = {"noise": audit(np.full(size, 0.5), 0.8 + std * RNG.normal(size=size))}
    at = np.array([0.0, 0.5, 1.0, 2.0])
    low, high = novelty.band(one, "weights", at, bootstrap=4000, seed=0)
    np.testing.assert_allclose(high - low, 2 * 1.96 * std / np.sqrt(size), rtol=0.12)
    assert np.ptp(low) == np.ptp(high) == 0
    spread = np.linspace(-0.05, 0.05, 41)
    base = {f"{x}": audit(x + spread, 1 - 0.5 * x + spread) for x in (0.0, 0.5, 1.0)}
    low, high = novelty.band(base, "behaviour", at, bootstrap=999, seed=0)
    middle = novelty.height(at, novelty.frontier(*novelty.points(base.values(), "behaviour").T))
    assert np.all((low < middle) & (middle < high))
    again = novelty.band(base, "behaviour", at, bootstrap=999, seed=0)
    np.testing.assert_array_equal((low, high), again)
    steady = {f"{x}": audit(np.full(9, x), np.full(9, 1 - 0.5 * x)) for x in (0.0, 0.5, 1.0)}
    for end in novelty.band(steady, "weights", at, bootstrap=9, seed=0):
        np.testing.assert_allclose(end, [1, 0.75, 0.5, 0.5])


def test_the_band_of_nothing():
    assert np.isnan(novelty.band({}, "weights", [0.3, 0.5], bootstrap=9, seed=0)).all()


def test_shares():
    a = audit([0.1, 0.5, 0.5, 0.5], [1] * 4, mixture=[0.05, 0.1, 0.4, 0.1],
              replica=np.array([0.5, 0.1, 0.5, 0.5]))  # fmt: skip
    assert novelty.shares(a) == (0.5, 0.25)
    assert novelty.shares(a._replace(replica=None)) == (0.25, 0.5)


# --- the whole audit --------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_task():
    return random_task(30)


@pytest.fixture(scope="module")
def train():
    start = RNG.normal(0, 0.3, (MEMBERS, 1, SPEC.num_params))
    steps = 0.02 * RNG.normal(size=(MEMBERS, SNAPSHOTS, SPEC.num_params))
    trajectories = (start + steps).astype(np.float32)
    return nearest.train_models(SPEC, trajectories, trajectories[0, -1])


@pytest.fixture(scope="module")
def result(small_task, train):
    last = train.vectors[:, -1]
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    transforms = jax.vmap(lambda key: symmetry.random_transform(key, SPEC))(keys)
    lossy = 0.4 * train.vectors
    broken = np.concatenate([last, np.full((1, SPEC.num_params), np.nan, np.float32)])
    pairs = [last[[i, j]].mean(axis=0) for i, j in itertools.combinations(range(MEMBERS), 2)]
    populations = {
        "replicas": broken,
        "disguised": np.asarray(symmetry.apply(SPEC, transforms, last)),
        "early": train.vectors[:, 0],
        "decoded": lossy[:, 0],
        "averages": np.stack(pairs[:MEMBERS]),
        "unrelated": RNG.normal(0, 0.3, (MEMBERS, SPEC.num_params)).astype(np.float32),
        "lost": broken[-1:],
    }
    noise = RNG.normal(0, 0.1, last.shape).astype(np.float32)
    done = []
    found = novelty.audit(
        populations, {PLAIN: {"noise 0": last, "noise": last + noise}}, train, small_task,
        reconstructions={"decoded": lossy}, bootstrap=99, seed=0,
        advance=lambda steps, note: done.append((steps, note)),
    )  # fmt: skip
    assert done[0] == (0, "errors of the train models")  # of many, on many images, the longest
    assert done[1:] == [(1, name) for name in (*populations, "noise 0", "noise")]
    return found


def test_replicas_are_found_out(result):
    for name in ("replicas", "disguised", "early"):
        np.testing.assert_allclose(result.populations[name].weights, 0, atol=1e-4)
        assert novelty.shares(result.populations[name]) == (1, 0)
        assert {result.margins[axis][name].verdict for axis in novelty.AXES} == {"replays"}
    np.testing.assert_allclose(result.populations["disguised"].behaviour, 0, atol=1e-4)
    assert result.populations["replicas"].excluded == 1


def test_a_lossy_decoder_hides_no_replay(result):
    decoded = result.populations["decoded"]
    assert decoded.weights.min() > 0.3
    np.testing.assert_allclose(decoded.replica, 0, atol=1e-6)
    assert novelty.shares(decoded) == (1, 0)


def test_averages_interpolate_and_unrelated_networks_do_not(result):
    assert novelty.shares(result.populations["averages"]) == (0, 1)
    assert novelty.shares(result.populations["unrelated"]) == (0, 0)
    np.testing.assert_allclose(result.populations["unrelated"].weights, 1, atol=0.1)


def test_a_population_without_finite_networks(result):
    assert result.populations["lost"].excluded == 1
    assert result.margins["weights"]["lost"].verdict == "unknown"
    assert np.isnan(result.margins["weights"]["lost"].margin)


def test_behaviour_against_sets_of_errors(result, train, small_task):
    def errors(vectors):
        predictions = evaluation.evaluate(small_task, vectors, small_task.test).predictions
        return [set(np.flatnonzero(p != small_task.test.labels)) for p in predictions]

    def overlap(a, others):
        return max(len(a & b) / len(a | b) for b in others)

    seen = [errors(member) for member in train.vectors]
    among = np.mean([
        overlap(member[-1], itertools.chain(*(seen[:i] + seen[i + 1 :])))
        for i, member in enumerate(seen)
    ])  # fmt: skip
    assert result.overlap == pytest.approx(among)
    vectors = np.asarray(result.populations["unrelated"].accuracy)  # as evaluated
    assert vectors.shape == (MEMBERS,)
    pairs = errors(train.vectors[:2, -1].mean(axis=0, keepdims=True))
    expected = (1 - overlap(pairs[0], itertools.chain(*seen))) / (1 - among)
    assert result.populations["averages"].behaviour[0] == pytest.approx(expected, rel=1e-5)


def test_one_train_member_is_not_enough(small_task, train):
    alone = train._replace(vectors=train.vectors[:1])
    with pytest.raises(HyperJaxError, match="compares with 1 train member; expected at least 2"):
        novelty.audit({}, {}, alone, small_task, reconstructions={}, bootstrap=9, seed=0)


def test_overlaps_of_all_pairs():
    labels = np.zeros(6, int)
    models = metrics.error_bits([[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0] * 6], labels)
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(metrics.error_overlaps(models, models), expected)


def test_the_gap_to_a_parent(result, train, small_task):
    """Of children of one, it is that of their parents; a replica's is 1 less the mean overlap."""

    def errors(vectors):
        predictions = evaluation.evaluate(small_task, vectors, small_task.test).predictions
        return [set(np.flatnonzero(p != small_task.test.labels)) for p in predictions]

    last, expected = errors(train.vectors[:, -1]), []
    for own in errors(train.vectors[:, 0]):
        overlaps = [len(own & other) / len(own | other) for other in last]
        expected.append(max(overlaps) - sum(overlaps) / MEMBERS)
    np.testing.assert_allclose(result.populations["early"].parent_gap, expected, atol=1e-6)
    replicas = result.populations["replicas"].parent_gap
    np.testing.assert_allclose(
        replicas, [1 - np.mean([len(a & b) / len(a | b) for b in last]) for a in last], atol=1e-6
    )
    np.testing.assert_allclose(result.populations["disguised"].parent_gap, replicas, atol=1e-4)
    assert len(result.populations["lost"].parent_gap) == 0


# --- kinds ------------------------------------------------------------------------------


def audited(populations, baselines, train, small_task, **kinds):
    return novelty.audit(populations, baselines, train, small_task, kinds=kinds,
                         reconstructions={}, bootstrap=99, seed=0)  # fmt: skip


def test_each_kind_has_its_own_frontier(train, small_task):
    """With the margins that it would have alone; baselines may have one name in both."""
    last = train.vectors[:, -1]
    noise = RNG.normal(0, 0.05, (4, *last.shape)).astype(np.float32)
    base = {PLAIN: {"noise": last + noise[0]}, REPAIRED: {"noise": last + 3 * noise[1]}}
    given = {"a": last + 2 * noise[2], "fixed a": last + 2 * noise[3]}
    both = audited(given, base, train, small_task, **{"fixed a": REPAIRED})
    assert both.kinds == {"a": PLAIN, "fixed a": REPAIRED}
    for name, kind in both.kinds.items():
        one = {name: given[name]}
        alone = audited(one, {kind: base[kind]}, train, small_task, **{name: kind})
        for axis in novelty.AXES:
            assert both.margins[axis][name] == alone.margins[axis][name]
            np.testing.assert_array_equal(both.frontier[axis][kind], alone.frontier[axis][kind])
            point = novelty.points([both.baselines[kind]["noise"]], axis).T
            np.testing.assert_array_equal(both.frontier[axis][kind], point)
    swapped = audited({"a": given["a"]}, base, train, small_task, a=REPAIRED)
    assert swapped.margins["weights"]["a"] != both.margins["weights"]["a"]


def test_a_kind_without_baselines(train, small_task):
    last = train.vectors[:, -1]
    with pytest.raises(HyperJaxError, match="'a' is repaired, and there are no such baselines"):
        audited({"a": last}, {PLAIN: {"noise": last}}, train, small_task, a=REPAIRED)


def test_the_units_of_many_members_are_those_of_some(train, small_task, monkeypatch):
    """Evaluated and compared in blocks, too."""
    whole = novelty._among_train(train, small_task)
    monkeypatch.setattr(novelty, "_EVALUATED", 2)
    np.testing.assert_array_equal(novelty._among_train(train, small_task).errors, whole.errors)
    largest = metrics.error_overlap(whole.errors[:, -1], whole.errors, own=np.arange(MEMBERS))
    assert whole.overlap == pytest.approx(largest.largest.mean())
    monkeypatch.setattr(nearest, "_SPACED", 3)
    some = novelty._among_train(train, small_task)
    assert some.overlap == pytest.approx(largest.largest[[0, 2, 4]].mean())
    far = np.linalg.norm(train.vectors[:, None] - train.vectors[:, -1][None, :, None], axis=-1)
    far = far.min(axis=2)  # [other, member]
    np.fill_diagonal(far, np.inf)
    assert novelty._spacing(train.vectors) == pytest.approx(far.min(axis=0)[[0, 2, 4]].mean())
