import dataclasses
import itertools
from types import SimpleNamespace

import jax
import pytest

from hyperjax import cost
from hyperjax.app import machine, plan, train
from hyperjax.app.context import read_config
from hyperjax.app.progress import console
from hyperjax.app.run import Run
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.population import evaluation
from hyperjax.population.lockstep import make_engine
from hyperjax.store import workdir

SPEC = zoo_cnn_spec(1, "tanh")
PAPER = Config(zoo=dataclasses.replace(Config().zoo, num_members=1000, epochs=50))
MNIST = {"train": 50_000, "val": 10_000, "test": 10_000}


def test_the_papers_zoo():
    """2.3 PFLOP of training (and the measuring between epochs), 6.5 times its final size."""
    engine = make_engine(PAPER.zoo, SPEC)
    stage = plan.population_stage("zoo", engine, PAPER.zoo, MNIST, 1000, 50)
    training = 1000 * 50 * 50_000 * 0.932e6
    measuring = 1000 * 51 * 20_000 * 0.3876e6
    assert training == pytest.approx(2.33e15, rel=0.01)
    assert stage.flops == pytest.approx(training + measuring, rel=0.01)
    assert stage.disk > 1000 * 51 * 2464 * 4
    assert stage.memory < 1e9


def test_members_at_once_need_more_memory():
    at_once = dataclasses.replace(PAPER.zoo, mapping="vmap")
    stages = [
        plan.population_stage("zoo", make_engine(config, SPEC), config, MNIST, 1000, 50)
        for config in (PAPER.zoo, at_once)
    ]
    assert stages[1].memory > 5 * stages[0].memory
    assert stages[1].flops == stages[0].flops


def test_what_cannot_fit_is_refused(tmp_path):
    name = "hyper-representation lwln"
    stage = plan.autoencoder_stage(name, PAPER.autoencoder, PAPER.zoo, SPEC)
    assert stage.flops == pytest.approx(27_500 * cost.autoencoder_flops(PAPER.autoencoder, SPEC))
    plan.check([stage], tmp_path, memory=10**15, disk=10**15)
    plan.check([stage], tmp_path, memory=None, disk=10**15)
    with pytest.raises(HyperJaxError, match=r"lwln needs about .* 1 MB are free.*autoencoder"):
        plan.check([stage], tmp_path, memory=10**6, disk=10**15)
    with pytest.raises(HyperJaxError, match=r"GB of disk, 1 MB are free"):
        plan.check([stage, stage], tmp_path, memory=10**15, disk=10**6)


@pytest.fixture
def many_cores(monkeypatch):
    """A host of 64 virtual CPU devices, which share its memory."""
    devices = [SimpleNamespace(platform="cpu", process_index=0, id=i) for i in range(64)]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda: devices)


def test_a_large_autoencoder_needs_the_memory_of_the_device_that_it_uses(many_cores, tmp_path):
    """The paper's, on a host with 64 devices and 32 GB: it is on one of them, not on all."""
    config = read_config("configs/mnist.py:full")
    stage = plan.autoencoder_stage("lwln", config.autoencoder, config.zoo, SPEC)
    assert stage.devices == 1
    assert 32e9 / 64 < stage.memory < 32e9  # as many copies as devices would not fit
    least = plan.PROCESS + stage.memory - stage.copies
    plan.check([stage], tmp_path, memory=int(32e9), disk=10**15)
    with pytest.raises(HyperJaxError, match="lwln needs about"):
        plan.check([stage], tmp_path, memory=int(0.99 * least), disk=10**15)
    with pytest.raises(HyperJaxError, match="lwln needs about"):
        plan.check([stage._replace(devices=64)], tmp_path, memory=int(32e9), disk=10**15)


def test_a_small_autoencoder_is_on_several_devices_and_needs_the_memory_of_all(
    many_cores, tmp_path
):
    """Parts of at least 8 of its batch of 64 on each of 8 of 64 devices."""
    architecture = dataclasses.replace(PAPER.autoencoder.architecture, dim=64, latent=16)
    small = dataclasses.replace(PAPER.autoencoder, architecture=architecture)
    stage = plan.autoencoder_stage("lwln", small, PAPER.zoo, SPEC)
    assert stage.devices == 8
    assert plan.totals([stage])["lwln"] == plan.PROCESS + 8 * stage.memory
    least = plan.PROCESS + 8 * (stage.memory - stage.copies)
    plan.check([stage], tmp_path, memory=int(1.001 * least), disk=10**15)
    with pytest.raises(HyperJaxError, match="lwln needs about"):
        plan.check([stage], tmp_path, memory=int(0.999 * least), disk=10**15)


def test_a_batch_of_the_denoiser_that_processes_do_not_divide_is_refused_at_once(monkeypatch):
    """Three hosts of four devices; a batch of 48 comes to two devices of each."""
    devices = [SimpleNamespace(platform="cpu", process_index=i // 4, id=i) for i in range(12)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:4])
    config = PAPER.denoiser
    with pytest.raises(HyperJaxError, match=r"denoiser\.training\.batch_size = 64 cannot be div"):
        plan.denoiser_stage(config, PAPER.zoo, SPEC)
    training = dataclasses.replace(config.training, batch_size=48)
    stage = plan.denoiser_stage(dataclasses.replace(config, training=training), PAPER.zoo, SPEC)
    assert stage.devices == 2


def test_disk_that_a_run_has_already_is_not_asked_for_again(tmp_path):
    """A zoo that has begun holds its file at full size."""
    made = Run(tmp_path, read_config("configs/digits.py:smoke"))
    partial = workdir.zoo_path(tmp_path).with_suffix(".partial")
    partial.parent.mkdir()
    disks = []
    for size in (0, 4096, 10**8):
        partial.write_bytes(bytes(size))
        stages, _ = train._announce(made, {})
        disks.append(next(stage.disk for stage in stages if stage.name == "zoo"))
    assert disks[0] > disks[1] > disks[2] == 0
    assert disks[0] - disks[1] >= 4096


def test_stages_have_the_programs_of_those_before_them(many_cores):
    stages = [
        plan.Stage(name, 1.0, 1e6, 2, "zoo.chunk_size", 1.0)
        for name in ("zoo", "hyperrep/lwln", "hyperrep/vae", "denoiser", "other")
    ]
    whole = list(plan.totals(stages).values())
    steps = [b - a for a, b in itertools.pairwise(whole)]
    assert whole[0] > plan.PROCESS + 2e6
    assert steps[0] > steps[1] > 0
    assert steps[2] > steps[3] == 0
    assert plan.totals(stages[3:4])["denoiser"] < whole[3]


def test_copies_that_can_be_done_without_are_a_warning(many_cores, tmp_path):
    """A stage of 3 GB, of which 2 are copies, where there are 2."""
    stage = plan.Stage("denoiser", 1.0, 3e9, 1, "denoiser", 1.0, 2e9)
    with console.capture() as capture:
        plan.check([stage], tmp_path, memory=int(2e9), disk=10**15)
    assert "denoiser may take 4.25 GB of memory, and 2 GB are free" in capture.get()
    with console.capture() as capture, pytest.raises(HyperJaxError, match=r"needs about 1\.25 GB"):
        plan.check([stage], tmp_path, memory=int(1e9), disk=10**15)
    assert not capture.get()


def test_the_table_is_printed(tmp_path, monkeypatch):
    # all virtual devices of a host together have the rate of one, whose products use all cores
    monkeypatch.setattr(machine, "matmul_rate", lambda device: 1e12)
    stage = plan.Stage("zoo", 2.3e15, 1e6, 4, "zoo.chunk_size", 5e8)
    denoiser = stage._replace(name="denoiser", flops=4e14)
    stages = [stage, denoiser, denoiser._replace(name="hyperrep/lwln", dtype="bfloat16")]
    for fast, last in ((True, "16 min"), (False, "20 min"), (None, "20 min")):
        monkeypatch.setattr(machine, "multiplies_bfloat16", lambda fast=fast: fast)
        with console.capture() as capture:
            plan.announce(stages, tmp_path, jax.devices())
        first, second, third = (line for line in capture.get().splitlines() if "PFLOP" in line
                                or "400 TFLOP" in line)  # fmt: skip
        assert "2.3 PFLOP" in first
        assert "500 MB" in first
        assert "2.1 h" in first  # at .3 of the rate
        assert "17 min" in second  # at .4
        assert last in third  # at .33, and 1.3 times that where bfloat16 is in hardware


def test_machine(tmp_path):
    device = jax.devices()[0]
    assert 10**8 < machine.free_memory(device) < 10**14
    assert machine.free_disk(tmp_path / "not" / "there") > 10**6
    assert 10**8 < machine.matmul_rate(device, size=64, seconds=0.01) < 10**15


def test_members_together_follow_the_memory(monkeypatch):
    """Where members run at once: twice the memory, twice the members; the paper's thousand fit
    into half of 80 GB."""
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 5})
    assert evaluation._memory(device) == 5
    assert evaluation._memory(jax.devices()[0]) > 0  # a CPU does not say
    at_once = dataclasses.replace(PAPER.zoo, mapping="vmap")
    engine, sizes = make_engine(at_once, SPEC), []
    for memory in (10e9, 20e9, 80e9):
        monkeypatch.setattr(evaluation, "_memory", lambda device, memory=memory: memory)
        sizes.append(evaluation.members_per_call(engine, 50_000) / engine.mesh.size)
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)
    assert sizes[2] >= 1000


@pytest.mark.parametrize(
    ("flags", "said"),
    [("flags\t\t: fpu avx2 avx512_bf16", False), ("flags\t\t: fpu avx2", True), ("", False)],
)
def test_a_processor_without_bfloat16_is_named(tmp_path, monkeypatch, flags, said):
    (tmp_path / "cpuinfo").write_text(f"model name\t: amx_bf16\n{flags}\n")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    with console.capture() as capture:
        plan.note_precision(Config())
    assert not capture.get()
    with console.capture() as capture, jax.default_matmul_precision("bfloat16"):
        plan.note_precision(Config())
    assert ("matmul_precision: this processor has no products of bfloat16" in capture.get()) == said
