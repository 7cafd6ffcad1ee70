"""What the report shows of the novelty audit, which `audit_novelty` computes."""

from collections.abc import Iterable

import numpy as np

from hyperjax import samplers
from hyperjax.analysis import novelty
from hyperjax.analysis.novelty import (
    PLAIN,
    REPAIRED,
    REPLAY,
    SELECTED,
    SELECTED_REPAIRED,
    Audit,
    Novelty,
)
from hyperjax.app.context import Context
from hyperjax.app.populations import FILE, TWIN, Source, sources
from hyperjax.paper.common import percent, spread
from hyperjax.report import plots, scatter
from hyperjax.report.page import Figure, Section
from hyperjax.report.scatter import Label, Line, Look
from hyperjax.report.tables import Table

HELD_OUT = "held-out members"
REPAIRED_HELD_OUT = f"{HELD_OUT}, repaired"
NOISE, AVERAGE = "noise", "average"  # beginnings of the baselines' names
AXES = {"weights": "in weights", "behaviour": "in behaviour"}
_LABELS = {
    "weights": "distance to the nearest train model",
    "behaviour": "difference in errors to the nearest train model",
}
_VERDICTS = {
    "beyond": "beyond the frontier",
    "on": "not told apart from it",
    "below": "below it",
    "replays": "replays, not judged",
    "one network": "copies of one network, not judged",
    "unknown": "cannot be judged",
}
_ABOUT_KINDS = {
    (REPAIRED, SELECTED_REPAIRED): "A repair gives every neuron back the mean and the spread that "
    "it has in train members. It helps averages and noisy networks as much as samples: whatever "
    "goes through repair: is compared with the same baselines, repaired, and not with the plain "
    "ones.",
    (SELECTED, SELECTED_REPAIRED): "Of networks that differ much the best by validation accuracy "
    "are far better than most, wherever they come from: what subsample: or bootstrap: chooses is "
    "compared with the best of subsample_factor times as many of each baseline, which is like for "
    "like for one subsample: in front of the name. Held-out members are not selected.",
}


def section(context: Context, result: Novelty) -> Section:
    return Section(
        "novelty",
        "New models, or train models again? (novelty audit)",
        text=(*_explanation(result), *findings(result)),
        tables=(
            *(verdict_table(result, axis) for axis in novelty.AXES),
            copies_table(result),
            *(baseline_table(result, kind) for kind in result.baselines),
        ),
        figures=tuple(figure(context, result, axis) for axis in novelty.AXES),
        data=result._asdict(),
    )


# --- words ------------------------------------------------------------------------------


def _explanation(result: Novelty) -> tuple[str, ...]:
    told = (
        "After Zeng et al. (arXiv 2506.07998), who found that generators of weights, this method "
        "among them, gave nothing that noise on trained weights and averages do not give. "
        "Novelty in weights is the distance to the nearest train model, at any epoch that the "
        "autoencoder saw and whatever the order and signs of its neurons. Novelty in behaviour "
        "is one minus the largest overlap of test errors with a train model (intersection over "
        "union). Both are in units of the same among train models "
        f"(distance {result.distance:.3g}, overlap {result.overlap:.2f}): 0 is a copy, 1 as new "
        "as a member of the zoo that was trained by itself.",
        "Baselines are train members with noise of several strengths, averages of several "
        "aligned train members, and averages of a member with the one nearest to it; of all and "
        "of the best by validation accuracy. Their frontier "
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
        _parent_gap(result),
    )
    kinds = [words for some, words in _ABOUT_KINDS.items() if {*some} & result.baselines.keys()]
    return (*told[:2], *kinds, *told[2:])


def _parent_gap(result: Novelty) -> str:
    known = [
        f"{value:.2f} for the {name}"
        for name in (HELD_OUT, REPAIRED_HELD_OUT)
        if name in result.populations
        and np.isfinite(value := spread(result.populations[name].parent_gap).mean)
    ]
    return (
        "The parent gap is a model's largest overlap of test errors with one train member minus "
        "its mean overlap with all of them: large for a perturbed member, which errs as its "
        "parent does, and no larger than that of held-out members for a model of its own. "
        "Few errors overlap by chance: compare models of nearly equal accuracy only."
        + (f" It is {' and '.join(known)}." if known else "")
    )


def findings(result: Novelty) -> tuple[str, ...]:
    """The verdicts, in words."""
    judged = [name for name in result.populations if name not in (HELD_OUT, REPAIRED_HELD_OUT)]
    share = {name: novelty.shares(result.populations[name]) for name in judged}
    lines = [
        f"Mostly replays of train models: {_listed(n for n in judged if share[n][0] > 0.5)}. "
        "Mostly weighted averages of train "
        f"models: {_listed(n for n in judged if share[n][1] > 0.5)}."
    ]
    for axis, title in AXES.items():
        for kind in result.baselines:
            alike = [name for name in judged if result.kinds[name] == kind]
            verdicts = {name: result.margins[axis][name].verdict for name in alike}
            parts = [
                f"{words}: {_listed(n for n in alike if verdicts[n] == verdict)}"
                for verdict, words in _VERDICTS.items()
                if verdict in verdicts.values()
            ]
            among = f", {kind}" if len(result.baselines) > 1 else ""
            lines += [f"By novelty {title}{among}: {'; '.join(parts)}."] if parts else []
    return tuple(lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# --- tables -----------------------------------------------------------------------------


def verdict_table(result: Novelty, axis: str) -> Table:
    rows = []
    for name, audit in result.populations.items():
        m = result.margins[axis][name]
        numbers = (100 * x for x in (m.frontier, m.margin, *m.interval))
        rows.append((name, result.kinds[name], percent(audit.accuracy),
                     spread(getattr(audit, axis)), *numbers, m.verdict))  # fmt: skip
    return Table(
        axis,
        f"Novelty {AXES[axis]}",
        ("population", "kind", "test accuracy (%)", "novelty", "frontier (%)", "margin (%)",
         "from (%)", "to (%)", "frontier?"),
        tuple(rows),
        note="mean ± standard deviation over models; frontier: accuracy at that novelty of the "
        "baselines of the population's kind; from, to: 95 % interval of the margin",
    )  # fmt: skip


def copies_table(result: Novelty) -> Table:
    rows = []
    for name, audit in result.populations.items():
        replays, mixes = novelty.shares(audit)
        replica = None if audit.replica is None else spread(audit.replica)
        rows.append((name, spread(audit.weights), replica, spread(audit.mixture), 100 * replays,
                     100 * mixes, percent(audit.accuracy), spread(audit.parent_gap),
                     audit.excluded))  # fmt: skip
    return Table(
        "copies",
        "Replays, averages and children",
        ("population", "to train model", "to reconstruction", "to average", "replay (%)",
         "interpolate (%)", "test accuracy (%)", "parent gap", "diverged"),
        tuple(rows),
        note="Distances in weights to the nearest train model, to the nearest reconstruction of "
        "one (in units of the distance among reconstructions) and to the nearest weighted "
        "average of train models: mean ± standard deviation over models. Parent gap: that of the "
        f"{HELD_OUT} is the reference, for models of about their accuracy.",
    )  # fmt: skip


def baseline_table(result: Novelty, kind: str) -> Table:
    rows, audits = [], result.baselines[kind]
    on_edge = {axis: _on_frontier(result, axis, kind) for axis in novelty.AXES}
    for number, (name, audit) in enumerate(audits.items()):
        on = [title for axis, title in AXES.items() if on_edge[axis][number]]
        rows.append((name, percent(audit.accuracy), spread(audit.weights),
                     spread(audit.behaviour), spread(audit.parent_gap),
                     ", ".join(on) or None))  # fmt: skip
    return Table(
        "baselines" if kind == PLAIN else "_".join(["baselines", *kind.split(", ")]),
        "Baselines" if kind == PLAIN else f"Baselines, {kind}",
        ("baseline", "test accuracy (%)", "novelty in weights", "novelty in behaviour",
         "parent gap", "on the frontier"),
        tuple(rows),
        note="noise: train members with Gaussian noise of so many layer standard deviations; "
        "average: of so many aligned train members, or of a member with the nearest other one",
    )  # fmt: skip


def _on_frontier(result: Novelty, axis: str, kind: str) -> np.ndarray:
    places = novelty.points(result.baselines[kind].values(), axis)
    edge = np.stack(result.frontier[axis][kind], axis=1)
    return (places[:, None] == edge[None]).all(axis=2).any(axis=1)


# --- the picture ------------------------------------------------------------------------

_COLORS = {
    PLAIN: plots.BLUE,
    REPAIRED: plots.ORANGE,
    SELECTED: plots.GREEN,
    SELECTED_REPAIRED: plots.PURPLE,
}
_LINES = {PLAIN: "-", REPAIRED: (0, (5, 2)), SELECTED: (0, (1, 1)), SELECTED_REPAIRED: "-."}
_FARTHEST = 1.5  # novelties beyond are drawn there, with the number beside the name
_STAR, _LATENT, _TWIN, _WEIGHTS, _DENOISED, _FILE = "*", "o", "^", "s", "D", "P"
_MARKERS = {
    _LATENT: "samples of latents",
    _TWIN: "without LWLN",
    _WEIGHTS: "samples of weights",
    _DENOISED: "through the denoiser",
    _FILE: "other populations",
    _STAR: HELD_OUT,
}


def figure(context: Context, result: Novelty, axis: str) -> Figure:
    """Accuracy against novelty, with the frontier of each kind."""
    resamples, seed = context.trained.config.evaluation.bootstrap, context.trained.config.seed
    return Figure(
        axis,
        f"Accuracy against novelty {AXES[axis]}",
        picture(result, axis, sources(context), bootstrap=resamples, seed=seed),
        alt=f"Mean test accuracy of every population against its mean novelty {AXES[axis]}, "
        "and the frontier of noise and averages"
        + _with_kinds(result, f": {'; '.join(result.baselines)}"),
        note="Above the line of its colour is beyond what noise and averages give (band: 95 % "
        "bootstrap interval). From 1 on it is level: farther away than networks trained by "
        f"themselves is no merit. The {HELD_OUT} are the goal. Names are without S_"
        + _with_kinds(result, ", and without what their colour says") + "."
        " Beyond the right edge: novelty in brackets.",
    )  # fmt: skip


def _with_kinds(result: Novelty, words: str) -> str:
    return words if len(result.baselines) > 1 else ""


def picture(
    result: Novelty,
    axis: str,
    known: dict[str, Source],
    *,
    bootstrap: int,
    seed: int,
    kind: str = "svg",
) -> bytes:
    """Populations by kind (colour), by source `known` (marker) and by whether they replay
    (hollow), with their names; baselines as small dots beneath their frontiers."""
    places = {name: _place(audit, axis) for name, audit in result.populations.items()}
    groups, looks, labels = {}, {}, []
    for of, audits in result.baselines.items():
        groups[of] = _columns([_place(audit, axis) for audit in audits.values()])
        looks[of] = Look(_COLORS[of], ".", size=16, alpha=0.5)
    for name, (x, y) in places.items():
        look = _look(result, name, known)
        groups[f"population {name}"], looks[f"population {name}"] = _columns([(x, y)]), look
        labels.append(Label(_short(result, name, x), min(x, _FARTHEST), y, look.color))
    last = np.nanmax([1.1, *(x for points, _ in groups.values() for x in points)])
    return scatter.scatter(
        groups,
        f"{_LABELS[axis]}\n(0: copy, 1: as among train models)",
        "test accuracy (%), errors on a log scale",
        looks=looks,
        key=_key(looks.values()),
        labels=labels,
        lines={
            f"frontier, {of}": _line(result, axis, of, last, bootstrap, seed)
            for of in result.baselines
        },
        guide=1.0,
        accuracy=True,
        kind=kind,
    )


def _line(result: Novelty, axis: str, kind: str, last: float, bootstrap: int, seed: int) -> Line:
    edge = result.frontier[axis][kind]
    x = np.unique([*np.linspace(0, last, 60), *edge[0][edge[0] < last], 1.0])
    ends = novelty.band(result.baselines[kind], axis, x, bootstrap=bootstrap, seed=seed)
    heights = (100 * part for part in (novelty.height(x, edge), *ends))
    return Line(x, *heights, color=_COLORS[kind], style=_LINES[kind])


def _look(result: Novelty, name: str, known: dict[str, Source]) -> Look:
    """Of one population."""
    color = _COLORS[result.kinds[name]]
    if name not in known:
        return Look(color, _STAR, size=150, alpha=1.0)
    source, replays = known[name], novelty.shares(result.populations[name])[0] > 0.5
    if source.kind in (TWIN, FILE):
        marker = _TWIN if source.kind == TWIN else _FILE
    elif samplers.needs_denoiser(source.sampler):
        marker = _DENOISED
    else:
        marker = _WEIGHTS if name == source.sampler else _LATENT
    return Look(color, marker, hollow=replays, size=34, alpha=0.95)


def _key(looks: Iterable[Look]) -> dict[str, Look]:
    """What markers mean, of those that are there."""
    looks = list(looks)
    used = {look.marker for look in looks}
    key = {words: Look(plots.GREY, marker) for marker, words in _MARKERS.items() if marker in used}
    if any(look.hollow for look in looks):
        key["replays"] = Look(plots.GREY, hollow=True)
    return key | {"baselines": Look(plots.GREY, ".", size=16)}


def _short(result: Novelty, name: str, x: float) -> str:
    """A name for the picture, whose colour says the kind."""
    text = name.removeprefix("S_")
    kind = result.kinds[name]
    if kind in (SELECTED, SELECTED_REPAIRED):
        text = text.removeprefix("subsample:")
    if kind in (REPAIRED, SELECTED_REPAIRED):
        text = text.removeprefix("repair:").removesuffix(", repaired")
    return f"{text} ({x:.1f})" if x > _FARTHEST else text


def _columns(places: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.reshape(places, (-1, 2)).T
    return np.minimum(x, _FARTHEST), y


def _place(audit: Audit, axis: str) -> tuple[float, float]:
    if not len(audit.accuracy):
        return float("nan"), float("nan")
    return float(np.mean(getattr(audit, axis))), 100 * float(np.mean(audit.accuracy))
