"""From a zoo to a hyper-representation in memory, and trainings that are cut and gone on with."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyperrep_cases import (
    DIM,
    KEY,
    SIZES,
    SPEC,
    STATS,
    TINY,
    VECTORS,
    after_steps,
    assert_trees_equal,
    changed,
    make_vectors,
    placed,
)

from hyperjax import hyperrep, symmetry
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import training
from hyperjax.zoo import Zoo

EPOCHS = np.arange(21, 26)
FIRST = jax.random.key(1)  # of which neither the first step is the best nor the last


def make_zoo(trajectories):
    epochs = EPOCHS[: trajectories.shape[1]]
    return Zoo(SPEC, trajectories, epochs, np.arange(len(trajectories)), {})


def trajectories():
    """Members of five snapshots around one network, each then with neurons in its own order."""
    end = VECTORS[0] + 0.3 * (make_vectors(30) - STATS.mean)
    steps = np.random.default_rng(1).normal(size=(30, 5, DIM)) * np.repeat([0.01, 0.1, 2], SIZES)
    both = (end[:, None] + steps).astype(np.float32)

    @jax.jit
    def moved(keys):
        draw = jax.vmap(lambda key: symmetry.random_transform(key, SPEC))
        return symmetry.apply(SPEC, draw(keys), both)

    return np.array(moved(jax.random.split(jax.random.key(9), 30)))


MEMBERS = trajectories()
TRAIN, VALIDATION = MEMBERS[:20], MEMBERS[20:24]


def fitted(members, key=FIRST, validation=None, config=TINY):
    records = []
    found = hyperrep.fit_hyperrep(
        members, config, key, validation=validation, on_eval=records.append
    )
    return found, records


@pytest.fixture(scope="module")
def with_validation():
    return fitted(make_zoo(TRAIN), validation=make_zoo(VALIDATION))


def lwln_loss(model, networks):
    """Mean squared error in units of the train members' layers, in NumPy."""
    aligned = hyperrep.align(model, networks).astype(np.float64)
    error = hyperrep.reconstruct(model, aligned, aligned=True) - aligned
    units = np.repeat(np.asarray(model.statistics.layer_std, np.float64), SIZES)
    return np.mean((error / units) ** 2)


def test_the_step_of_least_validation_loss_is_kept(with_validation):
    model, records = with_validation
    assert [record["step"] for record in records] == [0, 6, 11]
    losses = [record["val_loss"] for record in records]
    assert len(set(losses)) == 3
    assert lwln_loss(model, make_zoo(VALIDATION)) == pytest.approx(min(losses), rel=1e-4)
    best = records[int(np.argmin(losses))]
    assert lwln_loss(model, make_zoo(TRAIN)) == pytest.approx(best["train_loss"], rel=1e-4)
    assert best["step"] == 6
    assert {"val_r2_c", "val_r2_d", "val_r2_e", "train_grad_norm"} <= records[-1].keys()
    assert not {"val_accuracy", "train_accuracy"} & records[-1].keys()  # there are no images


def test_nothing_is_fitted_to_the_validation_members(with_validation):
    """Reference, units and every step are of train members alone."""
    model, records = with_validation
    aligned = hyperrep.align(model, make_zoo(TRAIN)).astype(np.float64)
    np.testing.assert_allclose(model.statistics.mean, aligned.mean(0), rtol=1e-4, atol=1e-4)
    std = [part.std(ddof=1) for part in np.split(aligned, np.cumsum(SIZES)[:-1], axis=1)]
    np.testing.assert_allclose(model.statistics.layer_std, std, rtol=1e-4)
    other, others = fitted(make_zoo(TRAIN), validation=make_zoo(MEMBERS[24:28] + 1))
    assert_trees_equal((other.statistics, other.reference), (model.statistics, model.reference))
    for ours, theirs in zip(records, others, strict=True):
        assert ours["val_loss"] != theirs["val_loss"]
        of_train = [name for name in ours if name.startswith("train_")]
        assert [ours[name] for name in of_train] == [theirs[name] for name in of_train]


def test_without_validation_members_some_train_members_judge():
    """3 of 23 are held back, whole trajectories; the units are those of the other 20."""
    members = make_zoo(MEMBERS[:23])
    model, records = fitted(members)
    own = hyperrep.align(model, members).reshape(23, 5, DIM).astype(np.float64).mean(axis=1)
    groups = np.array(list(itertools.combinations(range(23), 3)))
    means = (own.sum(axis=0) - own[groups].sum(axis=1)) / 20
    found = np.isclose(means, model.statistics.mean, rtol=1e-4, atol=1e-4).all(axis=1)
    assert found.sum() == 1
    judges = make_zoo(members.weights[groups[found][0]])
    losses = [record["val_loss"] for record in records]
    assert lwln_loss(model, judges) == pytest.approx(min(losses), rel=1e-4)


def test_the_key_decides(with_validation):
    model, records = with_validation
    validation = make_zoo(VALIDATION)
    again, same = fitted(make_zoo(TRAIN), validation=validation)
    assert_trees_equal(again.params, model.params)
    assert same == records
    other, _ = fitted(make_zoo(TRAIN), jax.random.key(2), validation)
    kernels = [m.params["encoder"]["embed_c"]["kernel"] for m in (model, other)]
    assert not np.allclose(*kernels, atol=1e-2)


def test_all_snapshots_are_seen(with_validation):
    """Whatever epochs the configuration names."""
    other = changed(TINY, data={"epochs_seen": (1, 50)})
    model, records = fitted(make_zoo(TRAIN), validation=make_zoo(VALIDATION), config=other)
    assert (model.config, model.spec) == (TINY, SPEC)
    assert TINY.data.epochs_seen == tuple(EPOCHS)
    assert_trees_equal(model.params, with_validation[0].params)
    assert records == with_validation[1]


def test_the_result_goes_to_any_device(with_validation):
    """It does not stay on all those that trained it, where everything would run on each."""
    model, _ = with_validation
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(model.params)} == {1}
    latent = jax.device_put(np.full(8, 0.1, np.float32), jax.devices()[-1])
    decoded = jax.jit(hyperrep.decode)(model, latent)
    np.testing.assert_allclose(decoded, hyperrep.decode(model, latent), rtol=1e-4, atol=1e-4)
    assert decoded.devices() == latent.devices()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_members_are_left_out(with_validation, value):
    broken = np.full((1, 5, DIM), 0.5, np.float32)
    broken[0, 0, 5] = value  # one weight of one snapshot
    members = make_zoo(np.concatenate([TRAIN, broken]))
    model, records = fitted(members, validation=make_zoo(np.concatenate([VALIDATION, broken])))
    assert_trees_equal(model.params, with_validation[0].params)
    assert records == with_validation[1]


def test_too_few_members():
    one, broken = make_zoo(TRAIN[:1]), make_zoo(np.full((3, 5, DIM), np.nan, np.float32))
    with pytest.raises(HyperJaxError, match=r"0 train and 1 validation members.*at least one"):
        fitted(one)
    with pytest.raises(HyperJaxError, match=r"20 train and 0 validation members"):
        fitted(make_zoo(TRAIN), validation=broken)
    with pytest.raises(HyperJaxError, match=r"0 train and 4 validation members"):
        fitted(broken, validation=make_zoo(VALIDATION))
    with pytest.raises(HyperJaxError, match=r"snapshots \[21, 22, 23, 24, 25\] and \[21\]"):
        fitted(make_zoo(TRAIN), validation=make_zoo(VALIDATION[:, :1]))


# --- trainings that are cut -----------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared():
    trainer = training.make_trainer(TINY, SPEC)
    assert trainer.mesh.size == 4
    return trainer, VECTORS, placed(trainer)


def restored(tree):
    """Through the host, as a checkpoint would."""

    def one(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = np.array(jax.random.key_data(leaf))
            return jax.device_put(jax.random.wrap_key_data(data), leaf.sharding)
        return jax.device_put(np.array(leaf), leaf.sharding)

    return jax.tree.map(one, tree)


def judged(params):
    """A score that jumps, so that the best step is not simply the last."""
    total = np.sum(np.asarray(params["decoder"]["expand"]["bias"]))
    return {"val_loss": float(np.sin(1e3 * total))}


def run_on(prepared, start, stop=None):
    """Run until the yield number `stop`, or to the end: a copy of the progress, and the records."""
    trainer, data, stats = prepared
    records, steps = [], 0
    yields = training.run(trainer, start, data, stats, judged)
    for progress, count, record in itertools.islice(yields, None if stop is None else stop + 1):
        copy, steps = restored(progress), steps + count
        records += [record] if record is not None else []
    return copy, records, steps


def test_a_training_that_is_cut_anywhere_ends_the_same(prepared, monkeypatch):
    """Cut at each of its six signs of life, two of them between validations."""
    monkeypatch.setattr(training, "STEPS_PER_CALL", 4)
    trainer, _, stats = prepared
    begin = restored(training.begin(trainer, KEY, stats))
    whole, records, steps = run_on(prepared, restored(begin))
    assert ([record["step"] for record in records], steps) == ([0, 6, 11], 11)
    scores = [record["val_loss"] for record in records]
    assert int(whole.best_step) == records[int(np.argmin(scores))]["step"]
    for stop, done in enumerate((0, 4, 6, 10, 11)):
        cut, before, steps = run_on(prepared, restored(begin), stop)
        assert steps == int(cut.state.step) == done
        if done == 11:
            found, after = cut, []
        else:
            found, after, _ = run_on(prepared, cut)
        assert_trees_equal(found, whole)
        known = {record["step"]: record for record in (*before, *after)}
        assert list(known.values()) == records


def test_the_best_parameters_are_kept(prepared, monkeypatch):
    """`best` are the parameters that were judged best, not those of the last step."""
    seen = []

    def remembered(params):
        seen.append(jax.tree.map(np.array, params))
        return {"val_loss": [2.0, 1.0, 3.0][len(seen) - 1]}

    trainer, data, stats = prepared
    start = training.begin(trainer, KEY, stats)
    *_, (last, _, _) = training.run(trainer, start, data, stats, remembered)
    assert (int(last.best_step), float(last.best_score)) == (6, -1.0)
    assert_trees_equal(last.best, seen[1])
    assert_trees_equal(last.state.params, seen[2])


def test_means_are_of_all_steps_since_the_last_validation(prepared, monkeypatch):
    """However many calls they were made in, and beside what the validation itself says."""
    trainer, data, stats = prepared
    found = []
    for size in (1, 10):
        monkeypatch.setattr(training, "STEPS_PER_CALL", size)
        start = training.begin(trainer, KEY, stats)
        found.append([r for _, _, r in training.run(trainer, start, data, stats, judged) if r])
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    state = training.init(trainer, KEY)
    for record, count in zip(found[0][1:], (6, 5), strict=True):
        state, means = after_steps(trainer, state, data, stats, count)
        for name, value in means.items():
            assert record[f"train_{name}"] == pytest.approx(float(value), rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_training(prepared):
    trainer, data, stats = prepared
    start = training.begin(trainer, KEY, stats)
    broken = stats._replace(mean=stats.mean + np.nan)
    with pytest.raises(HyperJaxError, match=r"diverged before step 6: the loss is nan.*clip_norm"):
        list(training.run(trainer, start, data, broken, judged))
