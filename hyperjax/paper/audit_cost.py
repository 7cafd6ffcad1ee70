"""Cost: seconds and operations of every stage, and when sampling pays off."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import cost as flops
from hyperjax import hyperrep, population, samplers
from hyperjax.analysis import payoff
from hyperjax.analysis.payoff import Payoff, Stage
from hyperjax.app import machine, plan, progress
from hyperjax.app.context import Context
from hyperjax.app.populations import (
    FILE,
    LATENT,
    TWIN,
    Source,
    drawing,
    from_scratch,
    generated,
    sources,
)
from hyperjax.app.run import Run
from hyperjax.hyperrep.training import place
from hyperjax.population import evaluation
from hyperjax.report.page import Section
from hyperjax.report.tables import Cell, Table
from hyperjax.rng import Stream, experiment_key, root_key
from hyperjax.store import workdir

RECORDED, MEASURED, ESTIMATED = "recorded", "measured", "estimated"
_LATENTS = 1000  # decoded to time it
_STEPS = 3  # of the autoencoder, likewise
_POPULATIONS = ("S_kde30", "S_joint30", "S_kde_anchor30", "polish:diffusion")


class Cost(NamedTuple):
    stages: list[Stage]
    draws: list[Stage]  # populations, drawn and decoded
    payoffs: list[Payoff]
    setup: float  # seconds of zoo and main hyper-representation
    epoch: float  # seconds of training one model for one epoch
    rate: float  # operations per second of a float32 matrix product


def run(context: Context) -> Cost:
    trained, known = context.trained, sources(context)
    labels = [label for label, source in known.items() if source.kind != FILE]
    chosen = [label for label in _POPULATIONS if label in labels] or labels[:1]
    recorded = _recorded(context.folder)
    with progress.bar("cost", 4 + len(trained.hyperreps) + len(labels)) as advance:
        training = _training(context)
        advance(1, training.name)
        evaluating = _evaluation(context)
        advance(1, evaluating.name)
        stages = [_zoo(trained, recorded, training, evaluating)]
        for name in trained.hyperreps:
            stages.append(_autoencoder(trained, name, recorded))
            advance(1, name)
        stages += _denoiser(trained, recorded)
        decoding = _decoding(trained)
        advance(1, decoding.name)
        draws = []
        for label in labels:
            draws.append(_drawing(context, label))
            advance(1, label)
        rate = machine.matmul_rate(jax.local_devices()[0], seconds=0.5)
        advance(1, "matrix product")
    main = f"hyper-representation {trained.main}"
    setup = sum(stage.seconds for stage in stages if stage.name in ("zoo", main))
    epoch = training.seconds / training.models
    costs = {
        draw.name: found
        for draw in draws
        if draw.name in chosen and (found := _costs(known[draw.name], draw, stages, decoding))
    }
    payoffs = payoff.payoffs(
        {label: generated(context, label) for label in costs},
        from_scratch(context),
        setup_seconds={label: setup for label, (setup, _) in costs.items()},
        draw_seconds={label: each for label, (_, each) in costs.items()},
        epoch_seconds=epoch,
    )
    return Cost([*stages, decoding, evaluating, training], draws, payoffs, setup, epoch, rate)


def _costs(
    source: Source, draw: Stage, stages: list[Stage], decoding: Stage
) -> tuple[float, float] | None:
    """Seconds before the first sample, and of each one; None where it is not known how long a stage
    took that it needs. Latents cost their fit once and then little more than their decoding, other
    populations what drawing them took."""
    seconds, needed = {stage.name: stage.seconds for stage in stages}, ["zoo"]
    if draw.name != source.sampler:  # it begins with latents
        needed.append(f"hyper-representation {source.hyperrep}")
    if samplers.needs_denoiser(source.sampler):
        needed.append("denoiser")
    if not set(needed) <= seconds.keys():
        return None
    setup = sum(seconds[name] for name in needed)
    if source.kind in (LATENT, TWIN):
        return setup + draw.seconds, decoding.seconds / decoding.models
    return setup, draw.seconds / draw.models


def _recorded(folder: Path) -> dict[str, tuple[float, str]]:
    """Seconds of the stages that train.py made in one go, and what on if not on this machine."""
    here, found = workdir.hardware(), {}
    for entry in workdir.read_manifest(folder):
        origin = _origin(entry, here)
        for stage, seconds in entry.get("stages", {}).items():
            found[stage] = (float(seconds), origin)
    return found


def _origin(entry: dict[str, Any], here: dict[str, Any]) -> str:
    there = _machine(entry)
    return RECORDED if there == _machine(here) else f"{RECORDED} on {there}"


def _machine(entry: dict[str, Any]) -> str:
    devices = entry.get("devices") or ["unknown"]
    return f"{len(devices)} x {devices[0]}, {entry.get('cores')} cores"


def _seconds(fn: Callable[[], Any]) -> float:
    """Of a second call: the first one compiles."""
    jax.block_until_ready(fn())
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def _training(context: Context) -> Stage:
    """One epoch of as many models as are trained together, at most `num_samples`."""
    task, config = context.trained.task, context.trained.config
    engine, images = task.engine, len(task.train.labels)
    models = min(evaluation.members_per_call(engine, images), context.num_samples)
    hyper = population.hyper(np.arange(models), config.zoo.training)
    hyper = population.place_members(engine, hyper)
    key = experiment_key(config.seed, "cost")
    state = population.init(engine, key, hyper)

    def epoch():
        nonlocal state  # it is donated
        state, _ = population.train_epoch(engine, state, hyper, task.train, key, jnp.int32(1))
        return state

    seconds, models = _seconds(epoch), population.padded(engine, models)
    work = float(models) * images * flops.training_flops(engine.spec)
    return Stage("training, one epoch", models, seconds, work, MEASURED)


def _evaluation(context: Context) -> Stage:
    task, trained = context.trained.task, context.trained
    members = trained.data.train[:, -1]
    vectors = members[np.arange(context.num_samples) % len(members)]
    seconds = _seconds(lambda: evaluation.evaluate(task, vectors, task.test))
    each = len(task.test.labels) * flops.evaluation_flops(task.engine.spec)
    return Stage("evaluation on test images", len(vectors), seconds, len(vectors) * each, MEASURED)


def _zoo(
    trained: Run, recorded: dict[str, tuple[float, str]], training: Stage, evaluation: Stage
) -> Stage:
    """As recorded; else from the time of one epoch and of evaluating every snapshot."""
    config, task = trained.config, trained.task
    members, epochs = len(trained.zoo.members), int(trained.zoo.epochs[-1])
    images = task.num_images
    work = plan.population_stage("", task.engine, config.zoo, images, members, epochs).flops
    per_image = evaluation.seconds / evaluation.models / images["test"]
    each = epochs * training.seconds / training.models
    each += len(trained.zoo.epochs) * (images["val"] + images["test"]) * per_image
    seconds, origin = recorded.get("zoo", (members * each, ESTIMATED))
    return Stage("zoo", members, seconds, work, origin)


def _autoencoder(trained: Run, name: str, recorded: dict[str, tuple[float, str]]) -> Stage:
    """As recorded, validation included; else from the time of a few steps."""
    model, title = trained.hyperreps[name], f"hyper-representation {name}"
    config = model.config
    work = config.training.steps * float(flops.autoencoder_flops(config, model.spec))
    if f"hyperrep/{name}" in recorded:
        seconds, origin = recorded[f"hyperrep/{name}"]
        return Stage(title, 0, seconds, work, origin)
    trainer = hyperrep.make_trainer(config, model.spec)
    key, stats = root_key(trained.config.seed, Stream.HYPERREP), place(trainer, model.statistics)
    vectors = hyperrep.batches(trainer, key, trained.data.train_vectors)(0, _STEPS)
    state = hyperrep.init(trainer, key)

    def steps():
        nonlocal state  # it is donated
        state, _ = hyperrep.train_steps(trainer, state, vectors, stats, jnp.int32(_STEPS))
        return state

    return Stage(title, 0, config.training.steps / _STEPS * _seconds(steps), work, ESTIMATED)


def _denoiser(trained: Run, recorded: dict[str, tuple[float, str]]) -> list[Stage]:
    """As recorded; nothing where there is none, or it was trained by several commands."""
    if "denoiser" not in recorded or not trained.has_denoiser:
        return []
    config, (seconds, origin) = trained.config.denoiser, recorded["denoiser"]
    work = config.training.steps * float(flops.denoiser_flops(config, trained.zoo.spec))
    return [Stage("denoiser", 0, seconds, work, origin)]


def _decoding(trained: Run) -> Stage:
    model = trained.hyperreps[trained.main]
    latents = np.random.default_rng(0).uniform(-1, 1, (_LATENTS, model.config.architecture.latent))
    latents = latents.astype(np.float32)
    seconds = _seconds(lambda: hyperrep.decode(model, latents))
    work = float(_LATENTS) * flops.decoding_flops(model.config.architecture, model.spec)
    return Stage("decoding latents", _LATENTS, seconds, work, MEASURED)


def _drawing(context: Context, label: str) -> Stage:
    """A population's fit, draw and decoding, as recorded when it was drawn."""
    recorded = drawing(context, label)
    origin = _origin(recorded, workdir.hardware())
    return Stage(label, context.num_samples, recorded["seconds"], math.nan, origin)


def section(context: Context, result: Cost) -> Section:
    zoo, scratch = result.stages[0], context.trained.zoo.epochs[-1]
    own = result.epoch * float(scratch)
    decode = next(stage for stage in result.stages if stage.name == "decoding latents")
    return Section(
        "cost",
        "Cost",
        text=(
            "Recorded: by the command that made it, compilation, validation and checkpoints "
            "included. Measured: now, once, without compilation, beside whatever else the machine "
            "was doing. Estimated: from the time of one "
            "epoch or a few steps, for work that was not recorded in one go. Operations are "
            "those of the mathematics, two per multiply-add, without validation of the "
            f"autoencoder; the share is of {result.rate / 1e9:.0f} GFLOP/s that float32 matrix "
            "products reach here on one device"
            f"{', whose threads use all cores' if _on_cpu() else ''}.",
            f"Training one network from scratch for {scratch} epochs takes {_time(own)}, decoding "
            f"one {_time(decode.seconds / decode.models)}. But before the first sample there is "
            f"the zoo of {zoo.models} members and the hyper-representation: {_time(result.setup)} "
            f"({zoo.origin}), as much as training {result.setup / own:.0f} networks. "
            + _payoff_words(result, zoo.models),
        ),
        tables=(_stage_table(result), _payoff_table(result), _draw_table(result, own)),
        data=result._asdict()
        | {
            name: [stage._asdict() for stage in getattr(result, name)]
            for name in ("stages", "draws", "payoffs")
        },
    )


def _payoff_words(result: Cost, members: int) -> str:
    """The first to pay off of those that are no replays of train models."""
    rows = [p for p in result.payoffs if "kde_anchor" not in p.population]
    best = min(rows, key=lambda p: p.models, default=None)
    if best is None or math.isinf(best.models):
        return "None of the samplers below ever pays that back."
    return (
        f"The first to pay that back is {best.population}, fine-tuned for {best.epochs} "
        f"epoch{'s' * (best.epochs != 1)}: with its model number {best.models:.0f}. By then "
        f"there are {members} trained networks as well, those of the zoo."
    )


def _on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def _stage_table(result: Cost) -> Table:
    devices = 1 if _on_cpu() else jax.device_count()
    rows: list[tuple[Cell, ...]] = []
    for stage in result.stages:
        name, models, seconds, work, origin = stage
        share = 100 * work / seconds / result.rate / devices
        each = 1000 * seconds / models if models else None
        rows.append((name, models or None, seconds, origin, each, work / 1e9, share))
    return Table(
        "stages",
        "Stages",
        ("stage", "models", "seconds", "how", "ms a model", "GFLOP", "of product rate (%)"),
        tuple(rows),
    )


def _payoff_table(result: Cost) -> Table:
    rows = []
    for p in result.payoffs:
        epochs = f"{p.scratch_epochs}" if p.reached else f"> {p.scratch_epochs}"
        after = "never" if math.isinf(p.models) else f"{p.models:.0f}"
        if not p.reached:
            after = f"at most {after}" if math.isfinite(p.models) else "unknown"
        rows.append((p.population, p.epochs, 100 * p.accuracy, epochs, 1000 * p.seconds,
                     1000 * p.scratch_seconds, after))  # fmt: skip
    return Table(
        "payoff",
        "Sampling against equally accurate training from scratch",
        ("population", "epochs of fine-tuning", "test accuracy (%)", "epochs from scratch",
         "ms a sample", "ms from scratch", "pays off after (models)"),
        tuple(rows),
        note="Epochs from scratch: after which the zoo's test members are as accurate on average. "
        "Pays off: when zoo, hyper-representation and denoiser, as far as it needs them, the "
        "sampler's fit, and the samples' decoding and fine-tuning have cost less in all than "
        "training as many networks from scratch. A sample of latents is charged for decoding and "
        "fine-tuning alone, another for what drawing it took too. Late in training, tenths of a "
        "point of accuracy make many epochs. A population is worth only as much as its diversity: "
        "see disagreement and novelty above; kde_anchor replays train models.",
    )  # fmt: skip


def _draw_table(result: Cost, own: float) -> Table:
    rows = [
        (d.name, d.models, d.seconds, d.origin, 1000 * d.seconds / d.models,
         100 * d.seconds / d.models / own)
        for d in result.draws
    ]  # fmt: skip
    return Table(
        "draws",
        "Drawing a population",
        ("population", "models", "seconds", "how", "ms a model", "of training one (%)"),
        tuple(rows),
        note="Encoding the anchors, fitting, drawing, decoding, and compiling what is new: most of "
        "it is paid once, however many models are drawn.",
    )


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.0f} min"
