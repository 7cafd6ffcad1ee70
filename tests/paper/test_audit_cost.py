"""When sampling pays off, by hand; what is recorded of stages; decoding's operations."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import cost as flops
from hyperjax.analysis import payoff
from hyperjax.analysis.payoff import Stage
from hyperjax.app import train
from hyperjax.app.populations import LATENT, WEIGHTS, Source
from hyperjax.config import ArchitectureConfig
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.autoencoder import Autoencoder
from hyperjax.paper import audit_cost as task
from hyperjax.store import workdir
from hyperjax.weights import LayerSpec, WeightSpec
from hyperjax.zoo import Zoo

SPEC = WeightSpec((LayerSpec("a", "dense", (2, 3)),), "tanh")


def make_zoo(epochs, accuracy):
    """Two members, whose mean accuracies are given; a third one has diverged."""
    weights = np.zeros((3, len(epochs), SPEC.num_params), np.float32)
    weights[2] = np.nan
    values = np.asarray(accuracy, np.float32)
    metrics = {"test_accuracy": np.stack([values - 0.05, values + 0.05, 0 * values])}
    return Zoo(SPEC, weights, np.asarray(epochs), np.arange(3), metrics)


def test_payoff_by_hand():
    scratch = make_zoo([0, 1, 2, 5], [0.1, 0.5, 0.7, 0.9])
    sampled = make_zoo([0, 1], [0.6, 0.95])
    rows = payoff.payoffs({"S": sampled}, scratch, setup_seconds={"S": 100.0},
                          draw_seconds={"S": 0.5}, epoch_seconds=4.0)  # fmt: skip
    decoded, tuned = rows
    assert (decoded.population, decoded.epochs) == ("S", 0)
    assert decoded.accuracy == pytest.approx(0.6)  # without the diverged member
    assert (decoded.scratch_epochs, decoded.reached) == (2, True)
    assert (decoded.seconds, decoded.scratch_seconds) == (0.5, 8.0)
    assert decoded.models == math.ceil(100 / 7.5)
    # never reached within 5 epochs: these are a lower bound of training, models an upper bound
    assert (tuned.scratch_epochs, tuned.reached, tuned.seconds) == (5, False, 4.5)
    assert tuned.models == math.ceil(100 / (20 - 4.5))


def test_a_population_pays_for_the_stages_that_it_needs():
    stages = [Stage("zoo", 9, 100.0, 1.0, ""), Stage("hyper-representation lwln", 0, 30.0, 1.0, "")]
    decoding, denoiser = Stage("", 10, 2.0, 1.0, ""), Stage("denoiser", 0, 50.0, 1.0, "")

    def costs(label, sampler, kind, *more):
        source = Source(sampler, "lwln", kind)
        return task._costs(source, Stage(label, 4, 8.0, 0.0, ""), [*stages, *more], decoding)

    assert costs("S_kde", "kde", LATENT) == (138, 0.2)
    assert costs("average", "average", WEIGHTS) == (100, 2)
    assert costs("diffusion", "diffusion", WEIGHTS) is None  # not known how long it took
    assert costs("diffusion", "diffusion", WEIGHTS, denoiser) == (150, 2)
    assert costs("S_polish:kde", "polish:kde", WEIGHTS, denoiser) == (180, 2)


def test_break_even_is_the_first_count_that_is_not_dearer():
    for setup, each, other in ((100, 0.5, 8), (30, 1, 4), (7, 2, 2.5)):
        count = payoff.break_even(setup, each, other)
        assert setup + count * each <= count * other
        assert setup + (count - 1) * each > (count - 1) * other
    assert payoff.break_even(1, 2, 2) == payoff.break_even(1, 3, 2) == math.inf


def test_equal_accuracy():
    by_epoch = {5: 0.9, 0: 0.1, 1: 0.6, 2: 0.5}
    assert payoff.equal_accuracy(by_epoch, 0.6) == 1
    assert payoff.equal_accuracy(by_epoch, 0.05) == 0
    assert payoff.equal_accuracy(by_epoch, 0.95) is None


def test_only_whole_stages_are_measured(tmp_path):
    entry, product, checkpoints = {"stages": {}, "memory": {}}, tmp_path / "x", tmp_path / "y"
    with train._measured(entry, "made", product, checkpoints):
        time.sleep(0.02)
    assert 0.02 <= entry["stages"].pop("made") < 5
    assert set(entry["memory"]) == {"made"}
    checkpoints.mkdir()
    with train._measured(entry, "resumed", product, checkpoints):
        pass
    checkpoints.rmdir()
    product.touch()
    with train._measured(entry, "read", product, checkpoints):
        pass
    assert entry["stages"] == {}
    assert set(entry["memory"]) == {"made"}


def test_recorded_stages_name_another_machine(tmp_path):
    here = workdir.describe_run("train.py", stages={"zoo": 12.5})
    there = here | {"devices": ["fast"] * 8, "stages": {"hyperrep/lwln": 3}}
    entries = [{"command": "older, without stages"}, here, there]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    found = task._recorded(tmp_path)
    assert found["zoo"] == (12.5, "recorded")
    seconds, origin = found["hyperrep/lwln"]
    assert seconds == 3
    assert origin.startswith("recorded on 8 x fast")


@pytest.mark.parametrize("linear_path", [True, False])
def test_decoding_flops_equal_the_count_of_xla(linear_path):
    """XLA also counts elementwise operations; at this size they are a few percent."""
    spec = zoo_cnn_spec(1, "tanh")
    c = ArchitectureConfig(dim=128, heads=4, mlp_dim=256, blocks=2, latent=64, dropout=0.0,
                           linear_path=linear_path)  # fmt: skip
    module, latents = Autoencoder(c, spec), jnp.zeros((1, 64))
    vectors = jnp.zeros((1, spec.num_params))
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), vectors, train=False))
    decode = jax.jit(lambda p, z: module.apply(p, z, method="decode"))
    counted = decode.lower(params, latents).cost_analysis()["flops"]
    assert flops.decoding_flops(c, spec) == pytest.approx(counted, rel=0.06)
