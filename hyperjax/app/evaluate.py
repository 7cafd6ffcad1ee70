"""`evaluate.py`: populations, experiments, and the report."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from hyperjax import samplers as samplers_lib
from hyperjax.app import plan, populations
from hyperjax.app.context import Context
from hyperjax.app.progress import console
from hyperjax.app.targets import load_target
from hyperjax.app.train import load
from hyperjax.config import to_dict
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.report import page
from hyperjax.report.page import Section
from hyperjax.store import files, workdir

PARTS = ("train", "val", "test")
NEED_TARGETS = ("tab2", "tab3")  # experiments that are about another data set


def run(
    folder: Path,
    registry: ModuleType,
    experiments: tuple[str, ...] = (),
    *,
    samplers: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    num_samples: int | None = None,
    data_dir: str = "",
) -> Path:
    """Run experiments of a registry (`hyperjax.paper`) and write the report; returns its page."""
    chosen = _check(registry, experiments, samplers, targets, num_samples)
    overview = registry.load("overview")  # Matplotlib: a mistake need not wait for it

    trained = load(folder, data_dir)
    evaluation = trained.config.evaluation
    context = Context(
        folder,
        trained,
        tuple(samplers) or evaluation.samplers or samplers_lib.names(),
        evaluation.num_samples if num_samples is None else num_samples,
        tuple(load_target(target, trained, data_dir) for target in targets),
    )
    _check_loaded(context)
    start = time.monotonic()
    with workdir.lock(folder):
        _announce(context, chosen)
        results, sections, failures = _run(context, registry, chosen)
        run_info = workdir.describe_run(workdir.command_line(), seed=trained.config.seed)
        seconds = round(time.monotonic() - start, 1)
        facts = overview.facts(context, run_info, seconds)
        path = page.write_report(
            folder / "report",
            f"HyperJAX on {trained.config.dataset}",
            facts,
            [overview.section(context, results), *sections],
        )
        about = {"facts": facts, "run": run_info, "config": to_dict(trained.config)}
        files.atomic_write(folder / "report" / "run.json", json.dumps(about, indent=1).encode())
        for name in registry.DESCRIPTIONS.keys() - results.keys():  # of an older report
            files.remove(folder / "report" / f"{name}.json", folder / "report" / name)
        workdir.add_to_manifest(folder, {**run_info, "seconds": seconds})
    if "tab1" in results:
        registry.load("tab1").print_summary(results["tab1"])
    console.print(f"report: {path}")
    if failures:
        raise HyperJaxError("\n".join(["the report lacks what failed:", *failures]))
    return path


def _run(
    context: Context, registry: ModuleType, chosen: Sequence[str]
) -> tuple[dict[str, Any], list[Section], list[str]]:
    """Results and sections of the experiments, and what was wrong with those that failed: hours
    of others should not be lost with one."""
    results, sections, failures = {}, [], []
    for number, name in enumerate(chosen, 1):
        console.print(f"{name} ({number} of {len(chosen)}): {registry.DESCRIPTIONS[name]}")
        try:
            result = registry.load(name).run(context)
            sections.append(registry.load(name).section(context, result))
            results[name] = result
        except Exception as error:
            if not isinstance(error, HyperJaxError):  # not foreseen, so where it comes from
                console.print_exception()
            console.print(f"{name} failed: {error}")
            failures.append(f"{name}: {error}")
    if not results:
        raise HyperJaxError("\n".join(failures))
    return results, sections, failures


def _announce(context: Context, chosen: Sequence[str]) -> None:
    """Say what the fine-tuning of populations takes, the bulk of the work, or refuse it."""
    number, stages = len(populations.sources(context)), []
    wanted = [(context.home, "tab1" in chosen)]
    wanted += [(target, "tab2" in chosen) for target in context.targets]
    for target, tuned in wanted:
        epochs = target.config.evaluation.epochs
        if tuned and epochs[-1]:
            images = {part: len(getattr(target.task, part).labels) for part in PARTS}
            stage = plan.population_stage(
                f"{number} populations on {target.name}", target.task.engine, target.config,
                images, context.num_samples, epochs[-1], len(epochs),
            )  # fmt: skip
            stages.append(stage._replace(flops=number * stage.flops, disk=number * stage.disk))
    if stages:
        console.print(
            "at most, without what is kept of earlier calls; other experiments come on top"
        )
        plan.announce(stages, context.folder, jax.devices())


def _check_loaded(context: Context) -> None:
    """Refuse what the workdir and the targets show before any experiment has run."""
    for name in context.samplers:
        samplers_lib.check(name, vae=context.trained.config.autoencoder.kl > 0)
    datasets = [target.name for target in context.targets]
    for name in datasets:
        if datasets.count(name) > 1:
            raise HyperJaxError(f"--targets: two are {name}; expected each data set once")


def _check(registry, experiments, samplers, targets, num_samples: int | None) -> tuple[str, ...]:
    """The experiments to run. Raises HyperJaxError for what can be refused before loading."""
    for name in experiments:
        if name not in registry.DESCRIPTIONS:
            raise unknown("experiment", name, registry.DESCRIPTIONS)
        if name in NEED_TARGETS and not targets:
            raise HyperJaxError(
                f"experiment {name} is about another data set: name one by --targets, as a "
                "finished workdir or a configuration (--targets=configs/mnist.py:small)"
            )
    for name in samplers:
        samplers_lib.check(name)
    if num_samples is not None and num_samples < 1:
        raise HyperJaxError(f"--num_samples={num_samples}: expected at least 1")
    if experiments:
        return tuple(dict.fromkeys(experiments))
    left_out = [name for name in registry.DESCRIPTIONS if name in NEED_TARGETS and not targets]
    if left_out:
        console.print(f"without --targets there is no {' and no '.join(left_out)}")
    return tuple(name for name in registry.DESCRIPTIONS if name not in left_out)
