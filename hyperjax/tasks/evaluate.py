"""`evaluate.py`: populations, experiments, and the report."""

import time
from pathlib import Path

from hyperjax import samplers as samplers_lib
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.io import files, report, workdir
from hyperjax.io.progress import console
from hyperjax.tasks import experiments as registry
from hyperjax.tasks.context import Context
from hyperjax.tasks.targets import load_target
from hyperjax.tasks.train import load

NEED_TARGETS = ("tab2", "tab3")  # experiments that are about another data set


def run(
    folder: Path,
    experiments: tuple[str, ...] = (),
    *,
    samplers: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    num_samples: int | None = None,
    data_dir: str = "",
) -> Path:
    """Run experiments and write the report; returns the path of its page."""
    chosen = _check(experiments, samplers, targets, num_samples)
    from hyperjax.tasks.experiments import overview  # Matplotlib: a mistake need not wait for it

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
        results, failures = {}, []
        for number, name in enumerate(chosen, 1):
            console.print(f"{name} ({number} of {len(chosen)}): {registry.DESCRIPTIONS[name]}")
            try:
                results[name] = registry.load(name).run(context)
            except HyperJaxError as error:  # hours of others should not be lost with it
                console.print(f"{name} failed: {error}")
                failures.append(f"{name}: {error}")
        if not results:
            raise HyperJaxError("\n".join(failures))
        run_info = workdir.describe_run(workdir.command_line(), seed=trained.config.seed)
        seconds = time.monotonic() - start
        sections = [overview.section(context, results)]
        sections += [registry.load(name).section(context, r) for name, r in results.items()]
        page = report.write_report(
            folder / "report",
            f"HyperJAX on {trained.config.dataset}",
            overview.facts(context, run_info, seconds),
            sections,
        )
        for name in registry.DESCRIPTIONS.keys() - results.keys():  # of an older report
            files.remove(folder / "report" / f"{name}.json", folder / "report" / name)
        workdir.add_to_manifest(folder, {**run_info, "seconds": round(seconds, 1)})
    if "tab1" in results:
        registry.load("tab1").print_summary(results["tab1"])
    console.print(f"report: {page}")
    if failures:
        raise HyperJaxError("\n".join(["the report lacks what failed:", *failures]))
    return page


def _check_loaded(context: Context) -> None:
    """Refuse what the workdir and the targets show before any experiment has run."""
    for name in context.samplers:
        samplers_lib.check(name, vae=context.trained.config.autoencoder.kl > 0)
    datasets = [target.name for target in context.targets]
    for name in datasets:
        if datasets.count(name) > 1:
            raise HyperJaxError(f"--targets: two are {name}; expected each data set once")


def _check(experiments, samplers, targets, num_samples: int | None) -> tuple[str, ...]:
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
