"""`evaluate.py`: populations, experiments, and the report."""

import functools
import glob
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from hyperjax import samplers as samplers_lib
from hyperjax.app import machine, peers, plan, populations, stop
from hyperjax.app.context import Context, Target, load_target
from hyperjax.app.progress import console
from hyperjax.app.run import VAE, Run, load
from hyperjax.config import to_dict
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.models.architectures import is_zoo_cnn
from hyperjax.report import page
from hyperjax.report.page import Section
from hyperjax.store import files, workdir


class Request(NamedTuple):
    """What the user asked for."""

    experiments: tuple[str, ...] = ()  # empty: all that can be run
    samplers: tuple[str, ...] = ()  # empty: the configuration's
    targets: tuple[str, ...] = ()
    populations: tuple[Path, ...] = ()  # files
    num_samples: int | None = None  # None: the configuration's
    data_dir: str = ""
    overrides: Mapping[str, Any] = {}  # settings of samplers and evaluation, {"a.b": value}


def run(folder: Path, registry: ModuleType, request: Request, wait: float = 0.0) -> Path:
    """Run experiments of a registry (`hyperjax.paper`) and write them into the report, beside what
    earlier calls wrote; returns the path of its page. For `wait` seconds at most it waits for
    another command that has the workdir."""
    _check(registry, request)
    workdir.load_config(folder)  # before what is no workdir becomes one
    with workdir.lock(folder, wait, console.print, peers.end_without_lease):
        path, failures = _evaluate(folder, registry, request)
    if failures:
        lines = [f"{name}: {error}" for name, error in failures.items()]
        raise HyperJaxError("\n".join(["the report lacks what failed:", *lines]))
    return path


def _evaluate(
    folder: Path, registry: ModuleType, request: Request
) -> tuple[Path, dict[str, Exception]]:
    """The path of the report's page, and what was wrong with experiments that failed."""
    trained = load(folder, data_dir=request.data_dir, overrides=request.overrides)
    chosen = _chosen(registry, request, trained)
    evaluation, count = trained.config.evaluation, request.num_samples
    context = Context(
        folder,
        trained,
        request.samplers or evaluation.samplers or _samplers(trained),
        evaluation.num_samples if count is None else count,
        tuple(load_target(target, trained, request.data_dir) for target in request.targets),
        request.populations,
    )
    _check_loaded(context)
    with workdir.recorded(folder, seed=trained.config.seed) as entry:
        stages, rate = _announce(context, registry, chosen)
        entry["announced"] = plan.announced(stages)
        with machine.measured() as took:
            publish = functools.partial(_report, context, registry, entry)
            results, failures, entry["experiments"] = _run(context, registry, chosen, publish)
            path = publish([], failures)
            seconds, most = took()
        entry["stages"] = {plan.EXPERIMENTS: round(seconds, 2)}
        entry["memory"] = {plan.EXPERIMENTS: most}
    if "tab1" in results:
        registry.load("tab1").print_summary(results["tab1"])
    plan.compare(stages, rate, entry)
    _print_times(entry["experiments"])
    console.print(f"report: {path}")
    return path, failures


# What is worth a look where there is a denoiser: the wrappers, on samplers of latents and of
# weights, and the best of many.
_WRAPPED = (
    "refine:kde30", "refine:joint30", "repair:diffusion", "repair:kde30", "repair:joint30",
    "repair:average", "polish:diffusion", "polish:kde30", "subsample:polish:diffusion",
)  # fmt: skip


def _samplers(trained: Run) -> tuple[str, ...]:
    """All that the workdir has what they need for."""
    names = samplers_lib.names(denoiser=trained.has_denoiser)
    if trained.has_denoiser:
        names += tuple(
            name for name in _WRAPPED if trained.has_images or not samplers_lib.is_repaired(name)
        )
    if np.isfinite(trained.data.quality).any():
        return names
    return tuple(name for name in names if not samplers_lib.needs_quality(name))


def _run(
    context: Context, registry: ModuleType, chosen: Sequence[str], publish: Callable
) -> tuple[dict[str, Any], dict[str, Exception], dict[str, dict[str, float]]]:
    """Results of the experiments; what was wrong with those that failed: hours of others should not
    be lost with one, nor with a kill; and the seconds of the others' "computing" and "report",
    which is tables and pictures. `publish` is given the section of each at once."""
    results, failures, times = {}, {}, {}
    for number, name in enumerate(chosen, 1):
        console.print(f"{name} ({number} of {len(chosen)}): {registry.DESCRIPTIONS[name]}")
        start = time.monotonic()
        try:
            result = registry.load(name).run(context)
            computed = time.monotonic()
            section = registry.load(name).section(context, result)
        except Exception as error:
            # told to stop; or the others are still in this one, or will wait in it
            if stop.interrupted() or jax.process_count() > 1:
                raise
            if not isinstance(error, HyperJaxError):  # not foreseen, so where it comes from
                console.print_exception()
            console.print(f"{name} failed: {error}")
            failures[name] = error
        else:
            publish([section], {})
            results[name], over = result, time.monotonic()
            times[name] = {
                "computing": round(computed - start, 2), "report": round(over - computed, 2)
            }  # fmt: skip
    if not results:
        raise HyperJaxError("\n".join(f"{name}: {error}" for name, error in failures.items()))
    return results, failures, times


def _print_times(times: Mapping[str, Mapping[str, float]]) -> None:
    table = Table("experiment", title="seconds of every experiment")
    for column in ("computing", "tables and pictures"):
        table.add_column(column, justify="right")
    for name, took in times.items():
        table.add_row(name, f"{took['computing']:.1f}", f"{took['report']:.1f}")
    console.print(table)


def _report(
    context: Context,
    registry: ModuleType,
    run_info: dict[str, Any],
    sections: Sequence[Section],
    failures: Mapping[str, Exception],
) -> Path:
    """Merge the sections into the report; older results of what failed stay, and are marked."""
    folder, order = context.folder / "report", list(registry.DESCRIPTIONS)
    when, commit = run_info["time"], run_info["commit"]
    made = f"Made {when[:16].replace('T', ' ')} UTC by {run_info['command']}"
    made += f" at commit {commit}" if commit else ""
    title = f"HyperJAX on {context.trained.config.dataset or context.trained.config.zoo.path}"
    overview = registry.load("overview")
    facts = overview.facts(context, run_info)
    page.write_report(folder, title, facts, sections, made=made, order=order)
    for name, error in failures.items():
        page.mark_failed(folder, name, f"making it anew failed ({when[:16]}): {error}")
    together = overview.section(page.overview(folder, order))
    path = page.write_report(folder, title, facts, [together], order=["overview", *order])
    about = {"facts": facts, "run": run_info, "config": to_dict(context.trained.config)}
    for section in sections:  # each with what it was made with
        files.atomic_write(folder / section.id / "run.json", json.dumps(about, indent=1).encode())
    return path


def _announce(
    context: Context, registry: ModuleType, chosen: Sequence[str]
) -> tuple[list[plan.Stage], float]:
    """Say what the experiments take, and the fine-tuning of populations, the bulk of the work, or
    refuse it. Returns the stages, and the operations per second that their times are told by."""
    number, trained = len(populations.sources(context)), context.trained
    stages = [
        plan.reading_stage(plan.EXPERIMENTS, trained.zoo, trained.config, context.num_samples)
    ]
    wanted = [(context.home, number, False)] if "tab1" in chosen else []
    if "tab2" in chosen:  # which keeps every epoch, also of the zoo's members; B_T may be there
        number = len(registry.load("tab2").labels(context)) + 1
        wanted += [(target, number + (target.models is None), True) for target in context.targets]
    for target, count, every in wanted:
        epochs = target.config.evaluation.epochs
        if epochs[-1]:
            stage = plan.population_stage(
                f"{count} populations on {target.name}", target.task.engine, target.config.zoo,
                target.task.num_images, context.num_samples, epochs[-1],
                epochs[-1] + 1 if every else len(epochs),
            )  # fmt: skip
            disk = count * stage.disk - files.held(_populations(context, target))
            stages.append(stage._replace(flops=count * stage.flops, disk=max(0, disk)))
    if len(stages) > 1:
        console.print("populations: those of earlier calls take no time; fig6 and tab4 have others")
    plan.note_precision(trained.config)
    return stages, plan.announce(stages, context.folder, jax.devices())


def _populations(context: Context, target: Target) -> Iterator[Path]:
    """Files of those that an earlier call has trained on the target, or begun."""
    return (context.folder / "populations").glob(f"*-{glob.escape(target.name)}-*")


def _check_loaded(context: Context) -> None:
    """Refuse what the workdir and the targets show before any experiment has run."""
    variational = context.trained.config.autoencoder.architecture.variational
    for name in context.samplers:
        samplers_lib.check(name, vae=variational)
    datasets = [target.name for target in context.targets]
    for name in datasets:
        if datasets.count(name) > 1:
            raise HyperJaxError(f"--targets: two are {name}; expected each data set once")
    populations.sources(context)


def _check(registry: ModuleType, request: Request) -> None:
    """Raises HyperJaxError for what can be refused before loading."""
    for name in request.experiments:
        if name not in registry.DESCRIPTIONS:
            raise unknown("experiment", name, registry.DESCRIPTIONS)
        if name in registry.NEED_TARGETS and not request.targets:
            raise HyperJaxError(
                f"experiment {name} is about another data set: name one by --targets, as a "
                "finished workdir or a configuration (--targets=configs/mnist.py:small)"
            )
    for name in request.samplers:
        samplers_lib.check(name)
    for path in request.populations:
        if not path.is_file():
            raise HyperJaxError(f"--populations={path}: there is no such file")
    if request.num_samples is not None and request.num_samples < 1:
        raise HyperJaxError(f"--num_samples={request.num_samples}: expected at least 1")


def _chosen(registry: ModuleType, request: Request, trained: Run) -> tuple[str, ...]:
    """The experiments to run; by default all but those that lack something, or take hours."""
    if request.experiments:
        return tuple(dict.fromkeys(request.experiments))
    lacking = {} if request.targets else dict.fromkeys(registry.NEED_TARGETS, "without --targets")
    if VAE not in trained.hyperreps:
        lacking |= dict.fromkeys(registry.NEED_VAE, "without a vae in autoencoder.variants")
    if not trained.has_denoiser:
        reason = "without a denoiser (config field denoiser.training.steps)"
        lacking |= dict.fromkeys(registry.NEED_DENOISER, reason)
    if not trained.has_images:
        reason = "without images (config field dataset)"
        others = [name for name in registry.DESCRIPTIONS if name not in registry.IMAGELESS]
        lacking |= dict.fromkeys(others, reason)
    elif not is_zoo_cnn(trained.zoo.spec):
        reason = "for networks other than the paper's CNN"
        lacking |= dict.fromkeys(registry.NEED_CNN, reason)
    lacking |= dict.fromkeys(registry.HOURS, "unless --experiments names it")
    for name, reason in lacking.items():
        console.print(f"{reason} there is no {name}")
    return tuple(name for name in registry.DESCRIPTIONS if name not in lacking)
