"""Batches, the loss and the steps of the denoiser's training, and how it is judged."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoiser_cases import (
    CONFIG,
    COUNT,
    MEMBERS,
    MLP,
    QUALITY,
    SPECS,
    configured,
    folded,
    linear_error,
    members_in,
    random_params,
    row_of,
    vectors_of,
)
from hyperrep_cases import assert_trees_equal

from hyperjax.diffusion import UNKNOWN, fit_denoiser, wiener
from hyperjax.diffusion import denoiser_training as training
from hyperjax.diffusion.denoiser import denoise_scaled
from hyperjax.hyperrep import weight_data
from hyperjax.hyperrep.training import STEPS_PER_CALL, place, run_steps
from hyperjax.store import checkpoint
from hyperjax.zoo import Zoo

KEY, SIZE = jax.random.key(0), MLP.num_params


@functools.cache
def trainer_of(devices=4, **changes):
    return training.make_trainer(configured(**changes), MLP, jax.devices()[:devices])


@functools.cache
def data_of(trainer):
    return folded(config=trainer.config)


def trained(trainer, count, state=None, data=None):
    state = training.begin(trainer, KEY).state if state is None else state
    give, linear = stepping(trainer, data_of(trainer) if data is None else data, state.key)
    step, total = int(state.step), {}
    if not count:
        return state, total
    for done in range(0, count, 10):
        some = min(10, count - done)
        drawn = give(step + done, 10)
        state, means = training.train_steps(trainer, state, drawn, *linear, jnp.int32(some))
        total = {k: total.get(k, 0) + some / count * mean for k, mean in means.items()}
    return state, total


def stepping(trainer, data, key):
    """What gives the members of steps, and what a step needs beside them."""
    give = training.members_of(trainer, key, data)
    return give, place(trainer, (data.unit, data.wieners))


# --- batches and the loss -------------------------------------------------------------------

draw = jax.jit(training.draw_batch, static_argnums=0)


def drawn(trainer, steps):
    give, linear = stepping(trainer, data_of(trainer), KEY)
    for step in range(steps):
        members = jax.tree.map(lambda leaf: leaf[0], give(step, 1))
        batch = draw(trainer, jax.random.fold_in(KEY, step), members, *linear)
        yield training.Batch(*(np.asarray(leaf) for leaf in batch))


@pytest.fixture(scope="module")
def batches():
    return list(drawn(trainer_of(), 60))


def test_a_batch_is_of_one_fold_and_its_wiener_denoiser(batches):
    data = folded()
    folds = [set(row_of(members)) for members in members_in(data)]
    used, rows_seen = set(), set()
    for batch in batches:
        rows = row_of(batch.clean)
        np.testing.assert_array_equal(batch.clean, MEMBERS[rows])
        (number,) = [k for k, fold in enumerate(folds) if set(rows) <= fold]
        used.add(number)
        rows_seen |= set(rows)
        others = wiener.fit(np.delete(MEMBERS, sorted(folds[number]), axis=0))
        expected = wiener.denoise(others, batch.noisy, batch.sigma)
        np.testing.assert_allclose(batch.linear, expected, atol=1e-4)
    assert used == {0, 1, 2, 3}
    assert rows_seen == set(range(COUNT))


def test_levels_noise_and_hidden_qualities_of_batches(batches):
    sigma = np.concatenate([batch.sigma for batch in batches])
    uniform = np.log(sigma / CONFIG.sigma_min) / np.log(CONFIG.sigma_max / CONFIG.sigma_min)
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() <= 1.0001
    histogram, _ = np.histogram(uniform, bins=8, range=(0, 1))
    assert np.abs(histogram - len(sigma) / 8).max() < 5 * np.sqrt(len(sigma) / 8)
    noise = [(b.noisy - b.clean) / b.sigma[:, None] for b in batches]
    noise = np.concatenate(noise).astype(np.float64)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
    expected, shown, known = training._quantiles(QUALITY), 0, 0
    for batch in batches:
        truth = expected[row_of(batch.clean)]
        visible = batch.quantile != UNKNOWN
        np.testing.assert_allclose(batch.quantile[visible], truth[visible])
        shown, known = shown + visible.sum(), known + (truth != UNKNOWN).sum()
    share = 1 - shown / known
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / known)


def test_the_loss_is_the_weighted_error_of_what_is_denoised(batches):
    trainer, params = trainer_of(), random_params(CONFIG.graph, MLP)
    data = folded()
    batch = batches[0]
    for number in range(4):
        fold = wiener.Wiener(*(leaf[number] for leaf in data.wieners))
        if np.allclose(wiener.denoise(fold, batch.noisy, batch.sigma), batch.linear, atol=1e-4):
            break
    denoise = jax.jit(denoise_scaled, static_argnums=0)
    clean = denoise(trainer.static, params, fold, batch.noisy, batch.sigma, batch.quantile)
    weight = (1 + batch.sigma.astype(np.float64) ** 2) / batch.sigma**2
    expected = np.mean(weight[:, None] * (np.asarray(clean) - batch.clean) ** 2)
    found = jax.jit(training.loss_fn, static_argnums=0)(trainer, params, batch)
    assert float(found) == pytest.approx(expected, rel=1e-4)


# --- steps ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gradient(batches):
    """Of the loss on the first batch, all at once."""
    grad = jax.value_and_grad(training.loss_fn, argnums=1)
    params = random_params(CONFIG.graph, MLP)
    return jax.device_get(jax.jit(grad, static_argnums=0)(trainer_of(1), params, batches[0]))


@pytest.mark.parametrize(("devices", "micro"), [(4, 0), (1, 5)])
def test_neither_devices_nor_small_parts_change_a_gradient(batches, gradient, devices, micro):
    """Five do not divide 32: all are computed at once."""
    params = random_params(CONFIG.graph, MLP)
    trainer = trainer_of(devices, micro_batch=micro)
    assert trainer.mesh.size == devices
    found = jax.jit(training._grads, static_argnums=0)(trainer, params, batches[0])
    np.testing.assert_allclose(found[0], gradient[0], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient[1]))
    assert_trees_equal(jax.device_get(found[1]), gradient[1], atol=1e-5 * largest)


def test_devices_do_not_change_a_batch(batches):
    alone = trainer_of(1)
    (again,) = drawn(alone, 1)
    assert_trees_equal(again, batches[0], atol=1e-5)


def test_what_is_kept_is_a_moving_average():
    """Of the first steps with equal weight, nearly."""
    trainer = trainer_of()
    state = training.begin(trainer, KEY).state
    average = [np.float64(leaf) for leaf in jax.tree.leaves(state.params)]
    for step in range(4):
        state, _ = trained(trainer, 1, state)
        decay = min(CONFIG.average, (1 + step) / (10 + step))
        latest = jax.tree.leaves(jax.device_get(state.trained))
        average = [decay * a + (1 - decay) * x for a, x in zip(average, latest, strict=True)]
    assert int(state.step) == 4
    for found, expected in zip(jax.tree.leaves(state.params), average, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_batches_depend_on_the_step_alone():
    """Steps in one call or one by one; and the next batch is another."""
    trainer = trainer_of()
    together, mean = trained(trainer, 3)
    assert mean.keys() == {"loss", "grad_norm"}
    state, losses = None, []
    for _ in range(3):
        state, metrics = trained(trainer, 1, state)
        losses.append(float(metrics["loss"]))
    assert_trees_equal(state, together)
    assert float(mean["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(set(losses)) == 3


# --- a whole training -----------------------------------------------------------------------


def run(trainer, begun, judged):
    give, linear = stepping(trainer, data_of(trainer), begun.state.key)

    def steps(state, step, count):
        drawn = give(step, STEPS_PER_CALL)
        return training.train_steps(trainer, state, drawn, *linear, jnp.int32(count))

    yield from run_steps(trainer, begun, steps, judged, "denoiser")


def recorded(steps):
    """All steps, of which only the last progress is still there, and all records."""
    steps = list(steps)
    return steps, [record for _, _, record in steps]


def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path):
    """Between two validations, from a checkpoint, to the bit."""
    trainer = trainer_of()
    judged = training.judge(trainer, wiener.fit(MEMBERS), MEMBERS, vectors_of(MLP, 6, seed=3))
    (*_, (whole, _, _)), records = recorded(run(trainer, training.begin(trainer, KEY), judged))
    found = {name for record in records if record for name in record}
    levels = [f"{part}_ratio_{level:g}" for part in ("train", "val") for level in training.LEVELS]
    assert {"step", "val_loss", "val_ratio", "train_ratio", "train_loss", *levels} <= found
    steps = run(trainer, training.begin(trainer, KEY), judged)
    progress, done, record = next(itertools.islice(steps, 1, None))
    assert (done, record) == (10, None)
    checkpoint.save(tmp_path / "denoiser", 10, progress)
    restored = checkpoint.restore(tmp_path / "denoiser", 10, training.begin(trainer, KEY))
    (*_, (ended, _, _)), again = recorded(run(trainer, restored, judged))
    assert again == records[2:]
    assert [record["step"] for record in again] == [12, 14]
    assert_trees_equal(ended, whole)


def two_modes(count, seed):
    """Members near one of two opposite networks: no linear denoiser tells which."""
    rng = np.random.default_rng(seed)
    mode = np.random.default_rng(0).normal(size=SIZE)
    sign = rng.choice([-1, 1], size=(count, 1))
    return np.float32(sign * mode + 0.3 * rng.normal(size=(count, SIZE)))


def independent(count, seed):
    return np.float32(np.random.default_rng(seed).normal(size=(count, SIZE)))


@functools.cache
def learned(population, steps, optimizer="adamw"):
    """Ratios to the Wiener denoiser of held-out members, and the state after so many steps."""
    trainer = trainer_of(4, optimizer=optimizer)
    members, val = population(COUNT, 1), population(COUNT, 2)
    unknown = np.full(COUNT, np.nan)
    state, _ = trained(trainer, steps, data=folded(members, unknown, trainer.config))
    one = np.ones(SIZE, np.float32)
    full, key = training.whole(trainer.config, MLP, members[:, None], one), jax.random.key(1)
    return training.ratios(trainer.static, state.params, full, val, key), state


def test_an_untrained_denoiser_is_as_good_as_wieners():
    """And the errors are those of the closed form."""
    found, _ = learned(independent, 0)
    full = wiener.fit(independent(COUNT, 1))
    for level, (ratio, error) in found.items():
        assert ratio == pytest.approx(1, abs=1e-6)
        expected = linear_error(full, np.eye(SIZE), level)
        assert error == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_modes_are_learned_beyond_the_second_order(optimizer):
    found, _ = learned(two_modes, 600, optimizer)
    assert found[1.0][0] < 0.9
    assert found[1.5][0] < 0.85


def test_of_gaussian_members_there_is_nothing_to_learn():
    found, _ = learned(independent, 600)
    assert all(0.99 < ratio < 1.1 for ratio, _ in found.values())


def test_muon_leaves_no_parameter_as_it_was():
    """It trains the matrices inside, adamw the others."""
    begun = jax.device_get(training.begin(trainer_of(4, optimizer="muon"), KEY).state.trained)
    _, state = learned(two_modes, 600, "muon")
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), begun, jax.device_get(state.trained))
    assert min(jax.tree.leaves(moved)) > 0


def test_judging_pads_and_weighs_members_alike():
    """7 members in calls of 3 are as good as in one; the mean over levels is the score."""
    trainer, full = trainer_of(), wiener.fit(MEMBERS)
    params = random_params(CONFIG.graph, MLP)
    members, key = vectors_of(MLP, 7, seed=5), jax.random.key(2)
    found = training.ratios(trainer.static, params, full, members, key, size=3)
    errors = np.zeros((len(training.LEVELS), 2))
    for number, level in enumerate(training.LEVELS):
        for begin in (0, 3, 6):
            padded = np.zeros((3, SIZE), np.float32)
            part = members[begin : begin + 3]
            padded[: len(part)] = part
            of_part = jax.random.fold_in(jax.random.fold_in(key, number), begin)
            noisy = padded + np.float32(level) * np.asarray(jax.random.normal(of_part, (3, SIZE)))
            for i, clean in enumerate(denoised(trainer, params, full, noisy, level)):
                rows = np.mean((clean - padded) ** 2, axis=1)
                errors[number, i] += rows[: len(part)].sum()
    for level, (ours, linear) in zip(training.LEVELS, errors, strict=True):
        np.testing.assert_allclose(found[level], (ours / linear, linear / 7), rtol=1e-4)
    scores = training.judge(trainer, full, MEMBERS, members)(params)
    mean = np.mean([scores[f"val_ratio_{level:g}"] for level in training.LEVELS])
    assert scores["val_loss"] == scores["val_ratio"] == pytest.approx(mean)


def denoised(trainer, params, full, noisy, level):
    sigma = np.full(len(noisy), level, np.float32)
    unknown = np.full(len(noisy), UNKNOWN, np.float32)
    denoise = jax.jit(denoise_scaled, static_argnums=0)
    yield np.asarray(denoise(trainer.static, params, full, noisy, sigma, unknown))
    yield np.asarray(wiener.denoise(full, noisy, sigma))


@pytest.mark.parametrize(("batch", "used"), [(32, 4), (24, 3), (8, 1)])
def test_as_many_devices_as_divide_the_batch_into_parts_worth_it(batch, used):
    assert training.make_trainer(configured(batch_size=batch), SPECS["tanh"]).mesh.size == used


def test_snapshots_that_are_not_learned_from_are_not_read(monkeypatch):
    """Of five the last two; the fit is that of a zoo with no others."""
    seen, load = [], weight_data.load

    def watching(config, *others):
        seen.append(config.epochs_seen)
        return load(config, *others)

    monkeypatch.setattr(weight_data, "load", watching)
    noise = 0.1 * np.random.default_rng(3).normal(size=(40, 5, SIZE)).astype(np.float32)
    models = Zoo(MLP, MEMBERS[:40, None] + noise, np.arange(5), np.arange(40), {}, {})
    config = configured(snapshots=2)
    fitted, other = (
        fit_denoiser.fit_denoiser(found, config, KEY)
        for found in (models, models.select(epoch=(3, 4)))
    )
    assert seen == [(3, 4)] * 2
    assert_trees_equal((fitted.params, fitted.wiener), (other.params, other.wiener))
