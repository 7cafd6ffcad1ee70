"""The populations that are sampled and compared, each made once and kept in the workdir.

B_T is trained from scratch, B_F are members of the zoo, S_<sampler> are drawn from the main
hyper-representation and B_<sampler> from its twin without LWLN; the baselines in weight space
have their own names, and populations of other files those of the files.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperjax import distributed, samplers
from hyperjax.app.context import Context, Target
from hyperjax.app.run import NO_LWLN, Run
from hyperjax.app.train_population import make_population
from hyperjax.config import to_dict
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.hyperrep import HyperRep, decode, encode
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.population.lockstep import Recipe
from hyperjax.population.repair import repair_all
from hyperjax.rng import Stream, root_key
from hyperjax.samplers import Sampler, Tools
from hyperjax.store import tensors, workdir, zoo_file
from hyperjax.types import Array
from hyperjax.zoo import Zoo

_TEST_MEMBERS = 1000
PARTS = ("train", "val", "test")
LATENT, TWIN, WEIGHTS, FILE = "latent", "twin", "weights", "file"
# What experiments call populations of their own.
_TAKEN = ("B_T", "B_F", "held-out members", "held-out members, repaired")


class Source(NamedTuple):
    """Where a population's weights come from."""

    sampler: str
    hyperrep: str
    kind: str  # LATENT, TWIN (latents without LWLN), WEIGHTS, or FILE: made elsewhere
    path: Path | None = None  # of a FILE


def sources(context: Context) -> dict[str, Source]:
    """Every sampler that was asked for on the main hyper-representation (S_...), the weight-space
    baselines under their own names, the KDE samplers on the twin without LWLN (B_...), and the
    files that were given."""
    trained, names = context.trained, context.samplers
    main, found = trained.main, {}
    for name in names:
        sampler = samplers.get_sampler(name, trained.config.samplers, trained.zoo.spec)
        label = f"S_{name}" if sampler.space == "latent" else name
        found[label] = Source(name, main, LATENT if sampler.drawn == "latent" else WEIGHTS)
    if NO_LWLN in trained.pair and main != NO_LWLN:
        for name in ("kde30", "kde_anchor30"):
            if name in names:
                found[f"B_{name}"] = Source(name, NO_LWLN, TWIN)
    for path in context.files:
        if path.stem in found or path.stem in _TAKEN:
            raise HyperJaxError(
                f"--populations={path}: there is another population {path.stem}; rename the file"
            )
        found[path.stem] = Source("", "", FILE, path)
    return found


def available(context: Context, labels: Sequence[str]) -> list[str]:
    """Those of `labels` that the request covers, in that order, and all files."""
    known = sources(context)
    files = [label for label, source in known.items() if source.kind == FILE]
    return [label for label in labels if label in known] + files


def draw(
    run: Run, sampler: str | Sampler, n: int = 100, *, hyperrep: str = "", seed: int | None = None
) -> Zoo:
    """New networks from a sampler that is fitted on the train members of a run.

    Args:
      run: a finished workdir. Its images are read by samplers that choose by a score alone, which
        is the accuracy on validation images.
      sampler: a name (`hyperjax.samplers.names`), or a sampler itself.
      n: number of networks.
      hyperrep: by which they are decoded: "lwln", "no_lwln", "vae"; "": the configuration's own.
      seed: of the draws; None: the configuration's. The same request gives the same networks.

    Returns a population at epoch 0, with its latents (of a sampler of latents), and the request in
    `info`; it has not been measured.

    >>> drawn = hj.draw(run, "kde30", n=3)
    >>> drawn.weights.shape, drawn.latents.shape
    ((3, 1, 2464), (3, 8))
    """
    name, settings = hyperrep or run.main, run.config.samplers
    seed = run.config.seed if seed is None else seed
    check_request("" if isinstance(sampler, Sampler) else sampler, n, seed)
    model = run.hyperreps[name]
    variational = model.config.architecture.variational
    asked = sampler if isinstance(sampler, str) else "sampler"
    if isinstance(sampler, str):
        samplers.check(sampler, vae=variational)
        sampler = samplers.get_sampler(sampler, settings, model.spec, tools=_tools(run, model))
    if sampler.space == "weights":
        # One snapshot a member: an average of two epochs of one member is no average of two.
        anchors, quality = run.data.train[:, -1], run.data.quality[:, -1]
    else:
        anchors = run.hyperreps.anchors(name)
        quality = run.data.quality.reshape(-1)
    key = jax.random.fold_in(root_key(run.config.seed, Stream.SAMPLES), seed)
    key_fit, key_sample = jax.random.split(key)
    state = sampler.fit(key_fit, anchors, quality)
    samples = np.asarray(sampler.sample(key_sample, state, n), np.float32)
    latents = samples if sampler.drawn == "latent" else None
    vectors = np.asarray(samples if latents is None else decode(model, latents), np.float32)
    report = sampler.report(state, samples)
    about = {"report": report}
    if "tensors" in run.zoo.info:  # names under which the networks are exported again
        about["tensors"] = run.zoo.info["tensors"]
    return Zoo(
        spec=model.spec,
        weights=vectors[:, None],
        epochs=np.zeros(1, np.int32),
        members=np.arange(n),
        metrics={},
        info=request(run, asked, n, name, seed) | about,
        latents=latents,
    )


def score(run: Run, vectors: Array) -> np.ndarray:
    """Validation accuracy f32[n] of networks f32[n, D], by which samplers select."""
    return evaluation.evaluate(run.task, np.asarray(vectors, np.float32), run.task.val).accuracy


def _tools(run: Run, model: HyperRep) -> Tools:
    """What samplers of a run may need, made when it is needed."""

    return Tools(
        score=functools.partial(score, run),
        decode=functools.partial(decode, model),
        encode=lambda vectors: encode(model, vectors, aligned=True),
        denoiser=lambda: run.denoiser,
        repair=lambda vectors: repair_all(run.zoo.spec, run.repair, vectors),
    )


def check_request(sampler: str, num_samples: int, seed: int | None) -> None:
    """What can be refused before anything is loaded."""
    if sampler:
        samplers.check(sampler)
    if num_samples < 1:
        raise HyperJaxError(f"--num_samples={num_samples}: expected at least 1")
    if seed is not None and not 0 <= seed < 2**32:
        raise HyperJaxError(f"--seed={seed}: expected at least 0 and less than 2**32")


def request(run: Run, sampler: str, count: int, name: str, seed: int) -> dict[str, Any]:
    """All that decides what is drawn."""
    return {
        "kind": "samples",
        "sampler": sampler,
        "settings": to_dict(run.config.samplers),
        "num_samples": count,
        "seed": seed,
        "config_seed": run.config.seed,
        "hyperrep": name,
        "decoder": run.hyperreps.info(name)["digest"],
        "dataset": run.config.dataset,
        "zoo": run.zoo.info.get("fingerprint"),
    } | _beside(run, sampler)


def _beside(run: Run, sampler: str) -> dict[str, Any]:
    """What else decides what a sampler draws: the denoiser, the moments of images or these."""
    found = {}
    if samplers.needs_denoiser(sampler):
        found["denoiser"] = run.denoiser_info["digest"]
    if samplers.is_repaired(sampler):
        if run.config.samplers.repair_inputs == "images":
            found["images"] = run.images.fingerprint
        else:
            found["moments"] = tensors.digest(run.moments._asdict())
    return found


def sampled(
    run: Run, sampler: str, count: int, name: str, seed: int, output: Path | None = None
) -> tuple[Path, Zoo]:
    """What `draw` draws, measured on all images, in a file that bears the request's digest; read,
    if it is there."""
    wanted = json.loads(json.dumps(request(run, sampler, count, name, seed)))
    file = f"{sampler}-{name}-n{count}-seed{seed}-{digest(wanted)}.safetensors"
    path = output or run.folder / "samples" / file.replace(":", "-")
    info = zoo_file.read(path).info if distributed.exists(path) else {}
    # all have looked by then: one that came late would find what process 0 has put in its place
    if distributed.agree({field: info.get(field) for field in wanted} == wanted):
        return path, zoo_file.read(path)
    start = time.monotonic()
    drawn = draw(run, sampler, count, hyperrep=name, seed=seed)
    seconds, metrics = round(time.monotonic() - start, 3), {}
    for part in PARTS if run.has_images else ():
        result = evaluation.evaluate(run.task, drawn.weights[:, 0], getattr(run.task, part))
        metrics[f"{part}_loss"] = result.loss[:, None]
        metrics[f"{part}_accuracy"] = result.accuracy[:, None]
    info, stage = drawn.info | {"run": workdir.made_with()}, f"samples/{path.stem}"
    # before the file: one that is there has its line, and a killed call writes the line again
    workdir.forget_metrics(run.folder, stage, -1)
    workdir.log_metrics(run.folder, {"stage": stage, "seconds": seconds, **workdir.hardware()})
    zoo_file.write(path, dataclasses.replace(drawn, metrics=metrics, info=info))
    distributed.barrier(f"{path} is written")
    return path, zoo_file.read(path)


def drawn(context: Context, label: str, source: Source | None = None) -> Zoo:
    """The population `label` of `sources` as decoded, measured on all splits: epoch 0 alone; or
    another under a label of its own."""
    known = sources(context)
    if source is None and label not in known:
        raise unknown("population", label, known)
    source = source or known[label]
    if source.kind == FILE:
        return finetuned(context, label, _foreign(context, source.path), context.home, (0,))
    return _sampled(context, source)[1]


def _sampled(context: Context, source: Source) -> tuple[Path, Zoo]:
    run, count = context.trained, context.num_samples
    return sampled(run, source.sampler, count, source.hyperrep, run.config.seed)


def drawing(context: Context, label: str) -> dict[str, Any]:
    """What is recorded of the drawing of a population of `sources`: seconds, devices, cores."""
    path, made = _sampled(context, sources(context)[label])
    lines = workdir.metrics_of(context.trained.folder, f"samples/{path.stem}")
    if lines:
        return lines[-1]
    if "seconds" in made.info:  # an older version wrote it there
        return {"seconds": made.info["seconds"], **made.info["run"]}
    raise HyperJaxError(
        f"{path}: metrics.jsonl does not say how long it took to draw; delete it to draw it again"
    )


def _foreign(context: Context, path: Path) -> np.ndarray:
    """The last snapshots of a population that was made elsewhere, float32[M, D]."""
    models, spec = zoo_file.read(path), context.trained.zoo.spec
    if models.spec != spec:
        raise HyperJaxError(
            f"--populations={path}: {models.spec.num_params} weights and activation "
            f"{models.spec.activation}; expected {spec.num_params} and {spec.activation}, as the "
            "zoo has"
        )
    return np.asarray(models.weights[:, -1])


def finetuned(
    context: Context,
    label: str,
    vectors: Array | None,
    target: Target,
    epochs: Sequence[int],
    task: Task | None = None,
) -> Zoo:
    """Networks float32[M, D] trained on a target with its hyper-parameters.

    Each member has a fresh optimiser state and its own order of images. Without `vectors`,
    `num_samples` members are initialised as the target's zoo is. `label` names the result, and
    with the context and the digest of the vectors it decides whether the file is already there:
    for networks of another architecture, which take a `task` of their own, it must name that.
    """
    config = target.config
    count = context.num_samples if vectors is None else len(vectors)
    start = None if vectors is None else np.ascontiguousarray(vectors, np.float32)
    info = {
        "kind": "finetuned",
        "label": label,
        "dataset": target.name,
        "fingerprint": target.fingerprint,
        "epochs": list(epochs),
        "seed": context.trained.config.seed,
        "training": dataclasses.asdict(config.zoo.training),
        "start": [count, config.zoo.init, config.zoo.activation]
        if start is None
        else hashlib.sha256(start.tobytes()).hexdigest()[:16],
    }
    recipe = Recipe(
        members=np.arange(count),
        epochs=np.array(epochs),
        key=root_key(context.trained.config.seed, Stream.FINETUNING),
        start=start,
        info=info,
    )
    file = f"{label}-{target.name}-{digest(info)}.safetensors".replace(":", "-")
    title = f"{label} on {target.name}"
    path = context.folder / "populations" / file
    return make_population(path, recipe, config, task or target.task, title)


def generated(context: Context, label: str) -> Zoo:
    """The population `label` of `sources`, fine-tuned for the epochs of the configuration."""
    start, epochs = drawn(context, label), context.trained.config.evaluation.epochs
    if tuple(epochs) == (0,):
        return start
    return finetuned(context, label, np.asarray(start.weights[:, 0]), context.home, epochs)


def from_scratch(context: Context, target: Target | None = None, epochs: Sequence[int] = ()) -> Zoo:
    """B_T: a target's zoo's test members over their whole training, or at those of `epochs` that
    there are, at most a thousand: more would say no more, and of a zoo larger than memory they
    would not fit either.

    Of a target that is only a configuration, `num_samples` members are trained now, until the
    last of the epochs that are compared and of those that an autoencoder would see.

    Raises HyperJaxError if none of `epochs` is there.
    """
    target = target or context.home
    if target.models is None:
        last = target.config.autoencoder.data.epochs_seen[-1]
        trained = sorted({*target.config.evaluation.epochs, last})
        return finetuned(context, "B_T", None, target, trained)
    there = np.intersect1d(target.models.epochs, epochs)
    kept = (there if len(there) else epochs) if epochs else None
    members = target.models.select(target.models.split.test[:_TEST_MEMBERS], epoch=kept)
    return evaluation.tested(target.task, members)


def pretrained(context: Context) -> np.ndarray:
    """B_F before fine-tuning: the zoo's train members at the last epoch that the autoencoder
    sees, as they were trained, float32[M, D], at most `num_samples`.

    Not aligned: a target's networks may have another activation, with other symmetries.
    """
    trained = context.trained
    last = trained.config.autoencoder.data.epochs_seen[-1:]
    return trained.trajectories(trained.split.train[: context.num_samples], last)[:, 0]


def digest(info: dict[str, Any]) -> str:
    """Of what a population was made from."""
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()[:8]
