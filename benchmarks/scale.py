"""Whether what follows the zoo's training stays linear and bounded in memory as zoos grow.

    python benchmarks/scale.py [--members=1000,10000] [--snapshots=5] [--stages=load,audit]

Every stage with every number of train members in a process of its own, on synthetic zoos: random
vectors in a handful of clusters; nothing is trained. Prints seconds, compilation included, and how
far memory rises above the zoo's; `load` and `spacing` make one aligned copy of a zoo such as this,
which is not aligned. Appends a line to benchmarks/scale.jsonl.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.table import Table

from hyperjax.app import cli

CLUSTERS, SAMPLES, IMAGES = 5, 100, 450
SEED = 0


class Setting:
    """A zoo float32[members, snapshots, D] and what is asked of it."""

    def __init__(self, members: int, snapshots: int):
        from hyperjax.models.architectures import zoo_cnn_spec

        self.spec, self.rng = zoo_cnn_spec(1, "tanh"), np.random.default_rng(SEED)
        centres = 0.15 * self.normal(CLUSTERS, self.spec.num_params)
        self.weights = np.empty((members, snapshots, self.spec.num_params), np.float32)
        for member in self.weights:  # one by one, so that memory never rises above the zoo
            centre = centres[self.rng.integers(CLUSTERS)] + 0.1 * self.normal(self.spec.num_params)
            member[:] = centre + 0.02 * self.normal(*member.shape)
        self.reference = centres[0]

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    def zoo(self) -> Any:
        from hyperjax.zoo import Split, Zoo

        members, epochs = (np.arange(size) for size in self.weights.shape[:2])
        parts = Split(*np.split(members, [int(0.9 * len(members)), int(0.95 * len(members))]))
        return Zoo(self.spec, self.weights, epochs, members, {}, split=parts)

    def config(self) -> Any:
        config = common.small_autoencoder()
        data = dataclasses.replace(config.data, epochs_seen=tuple(range(self.weights.shape[1])))
        return dataclasses.replace(config, data=data)


def reference(setting: Setting) -> Callable[[], Any]:
    from hyperjax.hyperrep import weight_data

    zoo, config = setting.zoo(), setting.config().data
    return lambda: weight_data.find_reference(config, zoo, zoo.split, SEED)


def load(setting: Setting) -> Callable[[], Any]:
    from hyperjax.hyperrep import weight_data

    zoo, config = setting.zoo(), setting.config().data
    return lambda: weight_data.load(config, zoo, zoo.split, setting.reference)


def align(setting: Setting) -> Callable[[], Any]:
    from hyperjax.symmetry import alignment

    return lambda: alignment.align(setting.spec, setting.weights[:, -1], setting.reference)


def spacing(setting: Setting) -> Callable[[], Any]:
    from hyperjax.symmetry import nearest

    return lambda: nearest.train_models(setting.spec, setting.weights, setting.reference)


def distances(setting: Setting) -> Callable[[], Any]:
    from hyperjax.symmetry import nearest
    from hyperjax.symmetry.nearest import TrainModels

    train = TrainModels(setting.spec, setting.weights, setting.reference, 1.0)
    samples = setting.weights[:SAMPLES, -1] + 0.1 * setting.normal(SAMPLES, setting.spec.num_params)
    return lambda: nearest.distances(train, samples)


def audit(setting: Setting) -> Callable[[], Any]:
    """Units, one population and one baseline; the spacing is a stage of its own."""
    from hyperjax import population
    from hyperjax.analysis import novelty
    from hyperjax.config import TrainingConfig
    from hyperjax.population.evaluation import Task
    from hyperjax.symmetry.nearest import TrainModels
    from hyperjax.types import Images

    pixels = setting.rng.integers(0, 256, (IMAGES, 28, 28, 1), np.uint8)
    labels = setting.rng.integers(0, 10, IMAGES, np.int32)
    engine = population.make_engine(setting.spec, TrainingConfig())
    images = Images(pixels, labels, np.float32([0.4]), np.float32([0.3]))
    task = Task(engine, *[population.place_images(engine, images)] * 3)
    train = TrainModels(setting.spec, setting.weights, setting.reference, 1.0)
    samples = setting.weights[:SAMPLES, -1] + 0.1 * setting.normal(SAMPLES, setting.spec.num_params)
    given = {"samples": samples}, {novelty.PLAIN: {"noise": samples}}, train, task
    decoded = {"samples": setting.weights}
    return lambda: novelty.audit(*given, reconstructions=decoded, bootstrap=99, seed=SEED)


def probes(setting: Setting) -> Callable[[], Any]:
    """One kind of features, of the members that probes are fitted on, at most."""
    from hyperjax.analysis import probes
    from hyperjax.analysis.probes import Parts
    from hyperjax.config import EvaluationConfig

    members = setting.weights[: EvaluationConfig().probe_members]
    ends = [int(0.7 * len(members)), int(0.85 * len(members))]
    targets = {name: Parts(*np.split(setting.normal(*members.shape[:2]), ends)) for name in "abc"}
    features = {"weights": Parts(*np.split(members, ends))}
    return lambda: probes.probe(features, targets, bootstrap=999, seed=SEED)


def components(setting: Setting) -> Callable[[], Any]:
    from hyperjax.analysis import probes

    vectors = setting.weights.reshape(-1, setting.spec.num_params)
    return lambda: probes.principal_components(vectors, 256)


def encode(setting: Setting) -> Callable[[], Any]:
    import jax

    from hyperjax import hyperrep
    from hyperjax.hyperrep import HyperRep, statistics

    config = setting.config()
    some, trainer = setting.weights[:100, -1], hyperrep.make_trainer(config, setting.spec)
    stats = statistics(config.data, setting.spec, some)
    params = hyperrep.init(trainer, jax.random.key(SEED)).params
    model = HyperRep(config, setting.spec, params, stats, setting.reference)
    return lambda: hyperrep.encode(model, setting.weights, aligned=True)


def figd(setting: Setting) -> Callable[[], Any]:
    """Train members alone: held-out members and samples do not grow with the zoo."""
    from hyperjax.analysis import geometry

    latents = np.tanh(setting.normal(*setting.weights.shape[:2], 256))
    quality = np.zeros(latents.shape[:2])
    return lambda: geometry.geometry(latents, {}, quality, seed=SEED)


STAGES = {stage.__name__: stage for stage in (
    reference, align, load, spacing, distances, audit, probes, components, encode, figd,
)}  # fmt: skip


def measure(stage: str, members: int, snapshots: int) -> dict[str, float]:
    setting = Setting(members, snapshots)  # kept: its memory must not be used again
    run = STAGES[stage](setting)
    before, start = peak(), time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "mb": peak() - before}


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def in_a_process(stage: str, members: int, snapshots: int) -> dict[str, float]:
    command = [sys.executable, __file__, f"--stages={stage}", f"--members={members}",
               f"--snapshots={snapshots}", "--one"]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=common.sizes, default=[1000, 10_000])
    parser.add_argument("--snapshots", type=int, default=5)
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(STAGES))
    parser.add_argument("--one", action="store_true", help="one stage here, for the script itself")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.stages[0], args.members[0], args.snapshots)))
        return
    console, found = Console(), []
    table = Table(title=f"{args.snapshots} snapshots of each member")
    for column in ("stage", "members", "seconds", "peak MB above the zoo"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in args.stages:
        for members in args.members:
            took = in_a_process(stage, members, args.snapshots)
            found.append({"stage": stage, "members": members} | took)
            cells = stage, f"{members:,}", f"{took['seconds']:.1f}", f"{took['mb']:,.0f}"
            console.print("{}, {} members: {} s, {} MB".format(*cells))
            table.add_row(*cells)
    common.record(__file__, snapshots=args.snapshots, stages=found)
    console.print(table)


if __name__ == "__main__":
    cli.run(main)
