"""Figure 3: robustness to noise on latents, smoothness along lines between them."""

from collections.abc import Sequence

import numpy as np

from hyperjax.analysis import lines
from hyperjax.analysis.lines import TRAJECTORY, WEIGHTS, Smoothness
from hyperjax.app import progress
from hyperjax.app.context import Context
from hyperjax.paper.common import HYPERREPS, PARTS, band, percent
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.rng import experiment_key

_FIRST, _LAST = 5, 25  # epochs of the paper's trajectories
_KEPT = 0.02  # of accuracy that noise may cost and still be called small
_SPACES = {WEIGHTS: "weights themselves"}
_LINES = {
    TRAJECTORY: "trajectories of held-out members",
    "heldout": "pairs of held-out members",
    "train": "pairs of train members",
}


def run(context: Context) -> Smoothness:
    trained = context.trained
    evaluation, data, ends = trained.config.evaluation, trained.data, _ends(trained.zoo.epochs)
    key = experiment_key(trained.config.seed, "fig3")
    with progress.bar("fig3", len(trained.pair) + 1) as advance:
        return lines.smoothness(
            trained.pair,
            {"train": data.train[:, -1], "heldout": data.test[:, -1]},
            trained.trajectories(trained.split.test, ends, aligned=True) if ends else None,
            data.train_vectors.mean(0),
            trained.task,
            levels=evaluation.noise_levels,
            pairs=evaluation.pairs,
            points=evaluation.points,
            key=key,
            advance=advance,
        )


def section(context: Context, result: Smoothness) -> Section:
    ends, seen = (
        _ends(context.trained.zoo.epochs),
        context.trained.config.autoencoder.data.epochs_seen,
    )
    courses = (
        f"Trajectories go from epoch {ends[0]} to epoch {ends[1]} of one held-out member (the "
        "paper: 5 to 25)"
        if ends
        else "The zoo has one snapshot alone, hence no trajectories"
    )
    return Section(
        "fig3",
        "Robustness and smoothness (Figure 3)",
        text=(
            f"Held-out members are those of the test split, after {seen[-1]} epochs. Noise is "
            "Gaussian and independent in every dimension; its level is its expected length "
            "relative to the latent's (root mean square), and every level has the same draws. At "
            f"level 0 these are plain reconstructions. {_kept_words(result)} A network near the "
            "zero latent's accuracy owes it to what all members share, and no robustness of its "
            "latent to noise.",
            f"{courses}; pairs are drawn at random, {seen[-1]} epochs each, and their latents are "
            "interpolated linearly and decoded. The dashed baseline interpolates the aligned "
            "weights without any autoencoder: a hyper-representation is the better space to "
            f"interpolate in only where its curve is above that. {_middle_words(result)}",
        ),
        tables=(_noise_table(result), _line_table(result)),
        figures=(*_noise_figures(context, result), *_line_figures(context, result)),
        data={
            "levels": result.levels,
            "positions": result.positions,
            "robustness": {name: r._asdict() for name, r in result.robustness.items()},
            "lines": {f"{line}/{space}": a for (line, space), a in result.lines.items()},
        },
    )


def _ends(epochs: Sequence[int]) -> list[int]:
    """First and last of the zoo's snapshots between the paper's epochs; where there are not two
    of them, of its trained snapshots, then of all. Empty: the zoo has one snapshot."""
    all_of = [int(epoch) for epoch in epochs]
    for found in ([e for e in all_of if _FIRST <= e <= _LAST], [e for e in all_of if e], all_of):
        if len(found) > 1:
            return [found[0], found[-1]]
    return []


def _kept_words(result: Smoothness) -> str:
    """Up to which level accuracy stays, and what is left when latents say nothing."""
    words = []
    for name, r in result.robustness.items():
        mean = r.accuracy.mean(0)
        small = result.levels[np.logical_and.accumulate(mean >= mean[0] - _KEPT)]
        words.append(
            f"{HYPERREPS[name]}, noise costs at most {100 * _KEPT:.0f} points of accuracy up to "
            f"level {small[-1]:g}, and the zero latent decodes to {100 * r.origin:.1f} %"
        )
    text = "; ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def _middle_words(result: Smoothness) -> str:
    """Accuracy half-way between two members, in each space."""
    middle, words = len(result.positions) // 2, []
    for line, members in PARTS.items():
        found = {
            space: f"{100 * a[:, middle].mean():.1f} % ({_space(space)})"
            for (of, space), a in result.lines.items()
            if of == line
        }
        if found:
            words.append(f"In the middle between two {members}: {', '.join(found.values())}.")
    return " ".join(words)


def _noise_table(result: Smoothness) -> Table:
    rows = []
    for column, level in enumerate(result.levels):
        cells = []
        for r in result.robustness.values():
            cells += [percent(r.accuracy[:, column]), float(r.r2[:, column].mean())]
        rows.append((f"{level:g}", *cells))
    names = [HYPERREPS[name] for name in result.robustness]
    return Table(
        "noise",
        f"Held-out members under noise ({len(next(iter(result.robustness.values())).r2)} models)",
        ("noise", *(f"{what}, {name}" for name in names for what in ("accuracy (%)", "R²"))),
        tuple(rows),
        note="Test accuracy: mean ± standard deviation over members. R² of the decoded weights is "
        "against the mean of the train members.",
    )


def _line_table(result: Smoothness) -> Table:
    middle = len(result.positions) // 2
    rows = [
        (
            f"{_LINES[line]}, {_space(space)}",
            len(a),
            *(percent(a[:, column]) for column in (0, middle, -1)),
            100 * float(lines.barrier(a).mean()),
            100 * float(lines.fluctuation(a).mean()),
        )
        for (line, space), a in _sorted(result).items()
    ]
    return Table(
        "lines",
        "Accuracy along lines",
        ("lines, space", "lines", "start (%)", "middle (%)", "end (%)", "barrier (points)",
         "fluctuation (points)"),
        tuple(rows),
        note="Test accuracy: mean ± standard deviation over lines. Barrier: the largest fall below "
        "the straight line between the accuracies of both ends; fluctuation: sum of all changes "
        "along a line, less the difference of its ends; both of each line, then averaged. Pairs "
        "share members, so that intervals over pairs are too narrow.",
    )  # fmt: skip


def _noise_figures(context: Context, result: Smoothness) -> list[Figure]:
    config, levels = context.trained.config, result.levels
    figures = []
    for name, title, values, unit in (
        ("noise_accuracy", "Noise on latents: accuracy", "accuracy", "test accuracy (%)"),
        ("noise_r2", "Noise on latents: reconstruction", "r2", "R²"),
    ):
        factor = 100 if values == "accuracy" else 1
        series = {
            HYPERREPS[key]: band(levels, factor * getattr(r, values).T, config)
            for key, r in result.robustness.items()
        }
        picture = plots.curves(
            series, "length of the noise, relative to the latent", unit,
            linear_below=levels[1] if len(levels) > 1 else 0,
        )  # fmt: skip
        alt = f"Mean {unit} of decoded held-out members against the relative length of the noise"
        note = "Held-out members. Bands: 95 % bootstrap interval of the mean."
        figures.append(Figure(name, title, picture, alt, note))
    return figures


def _line_figures(context: Context, result: Smoothness) -> list[Figure]:
    figures, config = [], context.trained.config
    for line, title in _LINES.items():
        series = {
            _space(space): band(result.positions, 100 * a.T, config)
            for (of, space), a in _sorted(result).items()
            if of == line
        }
        if series:
            count = len(result.lines[line, WEIGHTS])
            axis = "position between early and late" if line == TRAJECTORY else "position"
            picture = plots.curves(series, axis, "test accuracy (%)", dashed=[_SPACES[WEIGHTS]])
            alt = f"Mean test accuracy along lines: {title}"
            note = f"{count} lines. Bands: 95 % bootstrap interval of the mean."
            figures.append(Figure(f"lines_{line}", f"Lines: {title}", picture, alt, note))
    return figures


def _sorted(result: Smoothness) -> dict[tuple[str, str], np.ndarray]:
    """Lines of a kind together."""
    order = list(_LINES)
    return dict(sorted(result.lines.items(), key=lambda item: order.index(item[0][0])))


def _space(name: str) -> str:
    return _SPACES.get(name) or HYPERREPS[name]
