"""Chunks, resuming and evaluation, on a few tiny members."""

import dataclasses

import jax
import numpy as np
import pytest

from hyperjax import population, symmetry
from hyperjax.app.train_population import make_population, repair_population
from hyperjax.config import Config, TrainingConfig, ZooConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.population import engine as engines
from hyperjax.population import evaluation, lockstep
from hyperjax.population.evaluation import Task
from hyperjax.population.lockstep import Recipe
from hyperjax.store import zoo_file
from hyperjax.symmetry import alignment
from hyperjax.types import Images
from hyperjax.zoo import Zoo

SPEC = zoo_cnn_spec(1, "tanh")
TRAINING = TrainingConfig(learning_rate=1e-2, batch_size=8)
CONFIG = Config(zoo=ZooConfig(epochs=3, training=TRAINING, chunk_size=2), checkpoint_seconds=1e-9)


@pytest.fixture(scope="module")
def small_task():
    rng = np.random.default_rng(0)
    engine = population.make_engine(SPEC, TRAINING, init="torch_default", devices=jax.devices()[:1])
    pixels = rng.integers(0, 256, (16, 28, 28, 1), np.uint8)
    images = Images(pixels, rng.integers(0, 10, 16), [0.5], [0.3])
    images = population.place_images(engine, images)
    return Task(engine, images, images, images)


def recipe(members: int, **info) -> Recipe:
    return Recipe(np.arange(members), np.arange(4), jax.random.key(0), None, info)


class KilledError(Exception):
    """Stands for a kill: raised from within a run."""


def die_at(patch, epoch):
    """From now on a run is killed when it comes to measure that epoch."""
    measure = lockstep.measure

    def dying(task, state, trained, *args):
        if trained.epoch == epoch:
            raise KilledError
        return measure(task, state, trained, *args)

    patch.setattr(lockstep, "measure", dying)


def test_chunks_and_kills_do_not_change_a_population(small_task, tmp_path, monkeypatch):
    """5 members in chunks of 2, killed in the second chunk, against one chunk uninterrupted."""
    whole = dataclasses.replace(CONFIG, zoo=dataclasses.replace(CONFIG.zoo, chunk_size=6))
    expected = make_population(tmp_path / "a.safetensors", recipe(5), whole, small_task, "a")
    measure, epochs = lockstep.measure, []

    def dying(task, state, trained, *args):
        epochs.append(trained.epoch)
        if epochs == [0, 1, 2, 3, 0, 1, 2]:
            raise KilledError
        return measure(task, state, trained, *args)

    monkeypatch.setattr(lockstep, "measure", dying)
    path = tmp_path / "b.safetensors"
    with pytest.raises(KilledError):
        make_population(path, recipe(5), CONFIG, small_task, "b")
    assert not path.exists()
    monkeypatch.setattr(lockstep, "measure", measure)
    trained = []
    train_epoch = engines.train_epoch

    def counting(engine, state, hyper, images, root, epoch):
        trained.append((int(hyper.ids[0]), int(epoch)))
        return train_epoch(engine, state, hyper, images, root, epoch)

    monkeypatch.setattr(engines, "train_epoch", counting)
    found = make_population(path, recipe(5), CONFIG, small_task, "b")
    # goes on with epoch 2 of the second chunk; nothing is trained twice
    assert trained == [(2, 2), (2, 3), (4, 1), (4, 2), (4, 3)]
    np.testing.assert_array_equal(found.members, np.arange(5))
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-6)
    assert (np.abs(found.weights).sum(-1) > 0).all()
    np.testing.assert_allclose(
        found.metrics["train_loss"], expected.metrics["train_loss"], rtol=1e-5
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_chunks_that_have_begun_keep_their_size(small_task, tmp_path, monkeypatch):
    """Another size is refused, and what was trained stays; with the old, or none, it goes on."""
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        die_at(patch, epoch=3)
        with pytest.raises(KilledError):
            make_population(path, recipe(5), CONFIG, small_task, "a")
    begun = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert begun
    other = dataclasses.replace(CONFIG, zoo=dataclasses.replace(CONFIG.zoo, chunk_size=1))
    with pytest.raises(HyperJaxError, match=r"chunk_size: got 1, but .*a\.safetensors was begun "
                       r"with chunks of 2; .*delete .*a\.checkpoints"):  # fmt: skip
        make_population(path, recipe(5), other, small_task, "a")
    assert begun == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    free = dataclasses.replace(CONFIG, zoo=dataclasses.replace(CONFIG.zoo, chunk_size=0))
    assert len(make_population(path, recipe(5), free, small_task, "a").members) == 5


def on_devices(task, count):
    """The same task on other devices."""
    engine = population.make_engine(
        SPEC, TRAINING, init="torch_default", devices=jax.devices()[:count]
    )
    images = population.place_images(engine, jax.device_get(task.train))
    return Task(engine, images, images, images)


@pytest.mark.parametrize("chunk_size", [0, 5])
@pytest.mark.parametrize(("first", "then"), [(4, 3), (2, 4)])
def test_a_population_goes_on_on_more_or_fewer_devices(
    small_task, tmp_path, monkeypatch, first, then, chunk_size
):
    """Chunks of 5 are padded to 6 on two devices or three, to 8 on four; where the number of
    devices chose their size, of 8 or 6, to 9 on three and 8 on four."""
    config = dataclasses.replace(CONFIG, zoo=dataclasses.replace(CONFIG.zoo, chunk_size=chunk_size))
    expected = make_population(tmp_path / "a.safetensors", recipe(5), config, small_task, "a")
    path = tmp_path / "b.safetensors"
    with monkeypatch.context() as patch:
        die_at(patch, epoch=3)
        with pytest.raises(KilledError):
            make_population(path, recipe(5), config, on_devices(small_task, first), "b")
    trained, train_epoch = [], engines.train_epoch

    def counting(engine, state, hyper, images, root, epoch):
        trained.append((len(hyper.ids), int(epoch)))
        return train_epoch(engine, state, hyper, images, root, epoch)

    monkeypatch.setattr(engines, "train_epoch", counting)
    found = make_population(path, recipe(5), config, on_devices(small_task, then), "b")
    padded = {(3, 0): 9, (3, 5): 6}.get((then, chunk_size), 8)
    assert trained == [(padded, 3)]  # the last epoch alone
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-6)


def test_a_finished_file_is_read_and_another_recipe_refused(small_task, tmp_path):
    path = tmp_path / "a.safetensors"
    empty = Zoo(SPEC, np.zeros((2, 4, 2464), np.float32), np.arange(4), np.arange(2), {}, {"k": 1})
    zoo_file.write(path, empty)
    read = make_population(path, recipe(2, k=1), CONFIG, small_task, "a")
    assert not read.weights.any()
    for other in (recipe(2, k=2), recipe(3, k=1)):
        with pytest.raises(HyperJaxError, match="other settings"):
            make_population(path, other, CONFIG, small_task, "a")


def changed(path, rows, name="weights"):
    """Damage: the members' values are others than those that were written."""
    target = zoo_file.read(path, writable=True)
    (target.weights if name == "weights" else target.metrics[name])[rows] += 1
    zoo_file.flush(target)


@pytest.mark.parametrize("mapping", ["map", "vmap"])
def test_damaged_members_are_trained_again_to_the_bit(
    small_task, tmp_path, monkeypatch, capsys, mapping
):
    """And they alone, where that gives the same bits; the file is then what it was."""
    engine = dataclasses.replace(small_task.engine, mapping=mapping)
    task, path = small_task._replace(engine=engine), tmp_path / "a.safetensors"
    config = dataclasses.replace(CONFIG, zoo=dataclasses.replace(CONFIG.zoo, chunk_size=3))
    make_population(path, recipe(5, k=1), config, task, "a")
    whole = path.read_bytes()
    changed(path, [1, 4])
    changed(path, [4], "val_loss")
    with pytest.raises(HyperJaxError, match=r"val_loss of the members in rows 4; weights .* 1, 4;"):
        make_population(path, recipe(5, k=1), config, task, "a")
    trained, train = [], lockstep.train

    def counting(task, recipe, state, hyper, done=0):
        trained.append((np.unique(hyper.ids).tolist(), len(hyper.ids)))
        return train(task, recipe, state, hyper, done)

    monkeypatch.setattr(lockstep, "train", counting)
    repair_population(path, recipe(5, k=1), config, task, "a")
    # at once, in the program of three that trained them, whose bits may be others than of two
    assert trained == [([1, 4], 2 if mapping == "map" else 3)]
    assert path.read_bytes() == whole
    assert "trained members in rows 1, 4 anew\n" in capsys.readouterr().out
    repair_population(path, recipe(5, k=1), config, task, "a")
    assert "is whole" in capsys.readouterr().out
    assert len(trained) == 1


def test_one_damaged_member_of_several_devices_is_trained_to_the_bit(tmp_path):
    """Alone it would be shared by them, each with a half of the batch and other rounding."""
    training, rng = dataclasses.replace(TRAINING, batch_size=32), np.random.default_rng(0)
    engine = population.make_engine(SPEC, training, init="uniform", devices=jax.devices()[:2])
    pixels = rng.integers(0, 256, (64, 28, 28, 1), np.uint8)
    images = Images(pixels, rng.integers(0, 10, 64), [0.5], [0.3])
    task = Task(engine, *[population.place_images(engine, images)] * 3)
    config = dataclasses.replace(CONFIG, zoo=ZooConfig(epochs=3, training=training))
    path = tmp_path / "a.safetensors"
    make_population(path, recipe(4), config, task, "a")
    whole = path.read_bytes()
    changed(path, [2])
    repair_population(path, recipe(4), config, task, "a")
    assert path.read_bytes() == whole


def test_a_killed_repair_leaves_the_damage_and_begins_anew(small_task, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    make_population(path, recipe(3), CONFIG, small_task, "a")
    whole = path.read_bytes()
    changed(path, [0, 2])
    with monkeypatch.context() as patch:
        die_at(patch, epoch=2)
        with pytest.raises(KilledError):
            repair_population(path, recipe(3), CONFIG, small_task, "a")
    assert zoo_file.damaged(path)["weights"].tolist() == [0, 2]
    repair_population(path, recipe(3), CONFIG, small_task, "a")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 300, 5000, -4, 9])
def test_a_file_without_its_header_or_end_is_repaired(small_task, tmp_path, length):
    """Cut, or longer than it was; and what cannot be what it was gets checksums of its own."""
    path = tmp_path / "a.safetensors"
    make_population(path, recipe(3), CONFIG, small_task, "a")
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(9) if length == 9 else whole[:length])
    repair_population(path, recipe(3), CONFIG, small_task, "a")
    if length in (-4, 9):
        assert path.read_bytes() == whole
    assert zoo_file.damaged(path) == {}
    found = make_population(path, recipe(3), CONFIG, small_task, "a")
    start = 8 + int.from_bytes(whole[:8], "little")
    weights = np.frombuffer(whole[start:], np.float32)[-found.weights.size :]
    np.testing.assert_array_equal(np.asarray(found.weights).ravel(), weights)


def test_a_damaged_checksum_is_replaced(small_task, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    make_population(path, recipe(3), CONFIG, small_task, "a")
    whole = path.read_bytes()
    sums = zoo_file._mapped(path, writable=True)[0]
    sums["checksums/weights"][1] += 1
    sums["checksums/epochs"][0] += 1
    sums["checksums/weights"].flush()
    found = zoo_file.damaged(path)
    assert [(name, rows.tolist()) for name, rows in found.items()] == [
        ("epochs", []),
        ("weights", [1]),
    ]
    repair_population(path, recipe(3), CONFIG, small_task, "a")
    assert path.read_bytes() == whole
    assert "; 1 " in capsys.readouterr().out


def test_other_files_are_not_repaired(small_task, tmp_path, capsys):
    """Those of another recipe, and those of an older version, stay as they are."""
    path = tmp_path / "a.safetensors"
    make_population(path, recipe(3, k=1), CONFIG, small_task, "a")
    changed(path, [1])
    before = path.read_bytes()
    for other in (recipe(3, k=2), recipe(4, k=1)):
        with pytest.raises(HyperJaxError, match="other settings"):
            repair_population(path, other, CONFIG, small_task, "a")
    path.write_bytes(before[:-7])
    with pytest.raises(HyperJaxError, match="other settings"):
        repair_population(path, recipe(3, k=2), CONFIG, small_task, "a")
    assert path.read_bytes() == before[:-7]


def test_any_number_of_models_on_any_number_of_devices(monkeypatch):
    """11 models in calls of 4 on 3 devices, which divide neither, against one device."""
    rng = np.random.default_rng(1)
    vectors = 0.3 * rng.standard_normal((11, SPEC.num_params)).astype(np.float32)
    pixels = rng.integers(0, 256, (40, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, 40)
    results = []
    for devices, images_per_call in ((1, 10**6), (3, 4 * 40)):
        monkeypatch.setattr(evaluation, "_IMAGES_PER_CALL", images_per_call)
        engine = population.make_engine(SPEC, TRAINING, devices=jax.devices()[:devices])
        images = population.place_images(engine, Images(pixels, labels, [0.5], [0.3]))
        results.append(evaluation.evaluate(Task(engine, images, images, images), vectors, images))
    assert results[1].accuracy.shape == (11,)
    np.testing.assert_array_equal(results[0].predictions, results[1].predictions)
    np.testing.assert_allclose(results[0].loss, results[1].loss, rtol=1e-5)


def test_no_models_is_an_error(small_task):
    with pytest.raises(HyperJaxError, match="empty"):
        evaluation.evaluate(small_task, np.zeros((0, SPEC.num_params)), small_task.test)


def test_trajectories_are_aligned_as_one():
    """One transform per member: distances between its snapshots stay as they were."""
    rng = np.random.default_rng(2)
    trajectories = rng.standard_normal((3, 2, SPEC.num_params)).astype(np.float32)
    reference = alignment.find_reference(SPEC, trajectories[:, -1], seed=0).reference
    aligned = alignment.align_trajectories(SPEC, trajectories, reference)
    steps = [np.linalg.norm(t[:, 1] - t[:, 0], axis=1) for t in (trajectories, aligned)]
    np.testing.assert_allclose(*steps, rtol=1e-5)
    np.testing.assert_allclose(
        aligned[:, -1], alignment.align(SPEC, trajectories[:, -1], reference)[0], atol=1e-6
    )
    distance = [np.linalg.norm(t[:, -1] - reference, axis=1) for t in (trajectories, aligned)]
    assert (distance[1] <= distance[0]).all()  # the reference grew from one of them
    assert (distance[1] < 0.8 * distance[0]).sum() >= 2


def test_symmetric_networks_predict_the_same(small_task):
    """The engine and the symmetries agree on what a network computes."""
    rng = np.random.default_rng(3)
    vectors = 0.3 * rng.standard_normal((4, SPEC.num_params)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    transforms = jax.vmap(lambda key: symmetry.random_transform(key, SPEC))(keys)
    moved = np.asarray(symmetry.apply(SPEC, transforms, vectors))
    assert np.abs(moved - vectors).max() > 0.1
    one, other = (evaluation.evaluate(small_task, v, small_task.test) for v in (vectors, moved))
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4)
