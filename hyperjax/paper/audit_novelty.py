"""Novelty audit: samples against train models, noise on them and averages of them."""

import jax
import numpy as np

from hyperjax import hyperrep, samplers
from hyperjax.analysis import novelty
from hyperjax.analysis.novelty import REPLAY, Audit, Novelty
from hyperjax.app.context import Context
from hyperjax.app.populations import FILE, LATENT, TWIN, WEIGHTS, drawn, sources
from hyperjax.app.progress import bar
from hyperjax.paper.common import percent, spread
from hyperjax.report import scatter
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.rng import experiment_key
from hyperjax.samplers import baselines

HELD_OUT = "held-out members"
_NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6)  # of each layer's standard deviation
_AVERAGES = (2, 3, 4, 8, 16)  # train members; fewer where there are fewer
NOISE, AVERAGE = "noise", "average of"  # beginnings of the baselines' names
_KINDS = {
    LATENT: "samples of latents",
    TWIN: "without LWLN",
    WEIGHTS: "samples of weights",
    FILE: "other populations",
}
_TITLES = {"weights": "in weights", "behaviour": "in behaviour"}
_AXES = {
    "weights": "distance to the nearest train model",
    "behaviour": "difference in errors to the nearest train model",
}


def run(context: Context) -> Novelty:
    trained = context.trained
    members, populations, reconstructions = trained.data.train, {}, {}
    decoded = {
        name: hyperrep.reconstruct(model, members, aligned=True)
        for name, model in trained.pair.items()
    }
    for label, source in sources(context).items():
        populations[label] = np.asarray(drawn(context, label).weights[:, 0])
        if source.kind in (LATENT, TWIN):
            reconstructions[label] = decoded[source.hyperrep]
    populations[HELD_OUT] = trained.data.test[: context.num_samples, -1]
    base = _baselines(context)
    with bar("novelty", len(populations) + len(base)) as advance:
        return novelty.audit(
            populations,
            base,
            trained.train_models,
            trained.task,
            reconstructions=reconstructions,
            bootstrap=trained.config.evaluation.bootstrap,
            seed=trained.config.seed,
            advance=advance,
        )


def _baselines(context: Context) -> dict[str, np.ndarray]:
    """Noise on train members and averages of them, of several strengths, from all train members
    and from the best: as many networks float32[M, D] of each as a sampler draws."""
    trained = context.trained
    data, config, spec = trained.data, trained.config.samplers, trained.zoo.spec
    anchors, quality = data.train[:, -1], data.quality[:, -1]
    best = 0
    if np.isfinite(quality).any():
        best = int(np.sum(quality >= np.nanquantile(quality, 1 - config.best_fraction)))
    made = {f"{NOISE} {s:g}": (baselines.noise(s, spec), 1) for s in _NOISE}
    made |= {f"{AVERAGE} {n}": (baselines.average(n), n) for n in _AVERAGES}
    chosen = {name: sampler for name, (sampler, least) in made.items() if least <= len(anchors)}
    chosen |= {
        f"{name}, best {100 * config.best_fraction:g} %": samplers.best(one, config.best_fraction)
        for name, (one, least) in made.items()
        if least <= best
    }
    root = experiment_key(trained.config.seed, "novelty")
    found = {}
    for number, (name, sampler) in enumerate(chosen.items()):
        key_fit, key_sample = jax.random.split(jax.random.fold_in(root, number))
        state = sampler.fit(key_fit, anchors, quality)
        found[name] = np.asarray(sampler.sample(key_sample, state, context.num_samples))
    return found


def section(context: Context, result: Novelty) -> Section:
    return Section(
        "novelty",
        "New models, or train models again? (novelty audit)",
        text=(*_explanation(result), *_findings(result)),
        tables=(
            *(_margin_table(result, axis) for axis in novelty.AXES),
            _copies_table(result),
            _baseline_table(result),
        ),
        figures=tuple(_figure(context, result, axis) for axis in novelty.AXES),
        data=result._asdict(),
    )


def _explanation(result: Novelty) -> tuple[str, ...]:
    return (
        "After Zeng et al. (arXiv 2506.07998), who found that generators of weights, this method "
        "among them, gave nothing that noise on trained weights and averages do not give. "
        "Novelty in weights is the distance to the nearest train model, at any epoch that the "
        "autoencoder saw and whatever the order and signs of its neurons. Novelty in behaviour "
        "is one minus the largest overlap of test errors with a train model (intersection over "
        "union). Both are in units of the same among train models "
        f"(distance {result.distance:.3g}, overlap {result.overlap:.2f}): 0 is a copy, 1 as new "
        "as a member of the zoo that was trained by itself.",
        "Baselines are train members with noise of several strengths and averages of several "
        "aligned train members, of all and of the best by validation accuracy. Their frontier "
        "joins those that no other beats in both accuracy and novelty. A sampler is worth "
        "something where it lies beyond the frontier; its margin is its accuracy minus that of "
        "the frontier at its novelty (above 1 counts as 1, for farther than independent networks "
        "is no merit), with a 95 % bootstrap interval over the models of all "
        "populations. It does not cover another zoo or another training, and is not corrected "
        f"for the number of samplers. The {HELD_OUT} were trained from scratch: what a perfect "
        "sampler would give. Uninformed networks are novel too: novelty is worth nothing "
        "without accuracy.",
        "A sample replays if it is nearer to one train model, or to what the decoder makes of "
        f"one, than {REPLAY:g} of the distance among those; it interpolates if it does not, but "
        "is as near to a weighted average of train models. A decoder that loses something moves "
        "its replays away from the train models: they look novel, and are not.",
    )


def _findings(result: Novelty) -> tuple[str, ...]:
    """The verdicts, in words."""
    samplers_only = [name for name in result.populations if name != HELD_OUT]
    share = {name: novelty.shares(result.populations[name]) for name in samplers_only}
    replays = [name for name in samplers_only if share[name][0] > 0.5]
    mixes = [name for name in samplers_only if share[name][1] > 0.5]
    lines = [
        f"Mostly replays of train models: {_listed(replays)}. Mostly weighted averages of train "
        f"models: {_listed(mixes)}."
    ]
    for axis in novelty.AXES:
        verdicts = {name: result.margins[axis][name].verdict for name in samplers_only}
        groups = {v: [n for n in samplers_only if verdicts[n] == v] for v in verdicts.values()}
        parts = [
            f"{words}: {_listed(groups[verdict])}"
            for verdict, words in (
                ("beyond", "beyond the frontier"),
                ("on", "not told apart from it"),
                ("below", "below it"),
                ("replays", "replays, not judged"),
                ("one network", "copies of one network, not judged"),
                ("unknown", "cannot be judged"),
            )
            if verdict in groups
        ]
        lines.append(f"By novelty {_TITLES[axis]}, {'; '.join(parts)}.")
    return tuple(lines)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _margin_table(result: Novelty, axis: str) -> Table:
    rows = []
    for name, audit in result.populations.items():
        m = result.margins[axis][name]
        numbers = (100 * x for x in (m.frontier, m.margin, *m.interval))
        rows.append((name, percent(audit.accuracy), spread(getattr(audit, axis)), *numbers,
                     m.verdict))  # fmt: skip
    return Table(
        axis,
        f"Novelty {_TITLES[axis]}",
        ("population", "test accuracy (%)", "novelty", "frontier (%)", "margin (%)", "from (%)",
         "to (%)", "frontier?"),
        tuple(rows),
        note="mean ± standard deviation over models; frontier: accuracy of the baselines at that "
        "novelty; from, to: 95 % interval of the margin",
    )  # fmt: skip


def _copies_table(result: Novelty) -> Table:
    rows = []
    for name, audit in result.populations.items():
        replays, mixes = novelty.shares(audit)
        replica = None if audit.replica is None else spread(audit.replica)
        rows.append((name, spread(audit.weights), replica, spread(audit.mixture), 100 * replays,
                     100 * mixes, audit.excluded))  # fmt: skip
    return Table(
        "copies",
        "Replays and averages",
        ("population", "to train model", "to reconstruction", "to average", "replay (%)",
         "interpolate (%)", "diverged"),
        tuple(rows),
        note="Distances in weights to the nearest train model, to the nearest reconstruction of "
        "one (in units of the distance among reconstructions) and to the nearest weighted "
        "average of train models: mean ± standard deviation over models.",
    )  # fmt: skip


def _baseline_table(result: Novelty) -> Table:
    audits, rows = result.baselines, []
    on_edge = {
        axis: np.isin(novelty.points(audits.values(), axis)[:, 0], result.frontier[axis][0])
        for axis in novelty.AXES
    }
    for number, (name, audit) in enumerate(audits.items()):
        on = [_TITLES[axis] for axis in novelty.AXES if on_edge[axis][number]]
        rows.append((name, percent(audit.accuracy), spread(audit.weights),
                     spread(audit.behaviour), ", ".join(on) or None))  # fmt: skip
    return Table(
        "baselines",
        "Baselines",
        ("baseline", "test accuracy (%)", "novelty in weights", "novelty in behaviour",
         "on the frontier"),
        tuple(rows),
        note="noise: train members with Gaussian noise of so many layer standard deviations; "
        "average: of so many aligned train members",
    )  # fmt: skip


def _figure(context: Context, result: Novelty, axis: str) -> Figure:
    audits, known = result.populations, sources(context)
    kinds = {
        words: [name for name in audits if name in known and known[name].kind == kind]
        for kind, words in _KINDS.items()
    } | {
        HELD_OUT: [HELD_OUT],
        "noise": [name for name in result.baselines if name.startswith(NOISE)],
        "averages": [name for name in result.baselines if name.startswith(AVERAGE)],
    }
    everything = result.baselines | audits
    groups = {
        kind: tuple(np.array([_point(everything[n], axis) for n in names]).T)
        for kind, names in kinds.items()
        if names
    }
    # what margins are measured from: a novelty above 1 counts as 1
    last = np.nanmax([1.0, *(_point(audit, axis)[0] for audit in audits.values())])
    x = np.sort([0.0, *result.frontier[axis][0], 1.0, last])
    y = novelty.height(x, result.frontier[axis])
    return Figure(
        axis,
        f"Accuracy against novelty {_TITLES[axis]}",
        scatter.scatter(
            groups,
            f"{_AXES[axis]}\n(0: copy, 1: as among train models)",
            "test accuracy (%)",
            labels={n: _point(audits[n], axis) for n in audits if n != HELD_OUT},
            line=("frontier of the baselines", (x, 100 * y)),
        ),
        alt=f"Mean test accuracy of every population against its mean novelty {_TITLES[axis]}, "
        "and the frontier of noise and averages",
        note="Above the line is beyond what noise and averages give. From 1 on it is level: "
        "farther away than networks trained by themselves is no merit.",
    )


def _point(audit: Audit, axis: str) -> tuple[float, float]:
    if not len(audit.accuracy):
        return float("nan"), float("nan")
    return float(np.mean(getattr(audit, axis))), 100 * float(np.mean(audit.accuracy))
