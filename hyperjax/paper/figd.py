"""Appendix D: the geometry of latents."""

import jax
import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import geometry
from hyperjax.analysis.geometry import TRAIN, Geometry
from hyperjax.app.context import Context
from hyperjax.app.populations import LATENT, drawn, sources
from hyperjax.paper.common import spread
from hyperjax.report import plots, scatter
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Spread, Table
from hyperjax.rng import experiment_key

_PAIRS = 150  # of a population, at most, in the picture of angles
_MEMBERS = 1000  # of each split, at most: all pairs are compared
HELD_OUT = "held-out members"


def run(context: Context) -> Geometry:
    trained = context.trained
    data, model = trained.data, trained.hyperreps[trained.main]

    def encoded(trajectories: np.ndarray) -> np.ndarray:
        return hyperrep.encode(model, trajectories, aligned=True)

    others = {HELD_OUT: encoded(data.test[:_MEMBERS])}
    for label, source in sources(context).items():
        if source.kind == LATENT:
            others[label] = np.asarray(drawn(context, label).latents)
    seed = int(jax.random.bits(experiment_key(trained.config.seed, "figD")))
    return geometry.geometry(encoded(data.train), others, data.quality, seed=seed, shown=_MEMBERS)


def section(context: Context, result: Geometry) -> Section:
    return Section(
        "figD",
        "Geometry of latents (Appendix D)",
        text=(
            "Latents of the main hyper-representation: of members of the zoo (at most "
            f"{_MEMBERS:,} of each split) at all epochs that it sees, and as drawn by each "
            "sampler. The paper finds them on sections of a shell. That norms hardly vary says "
            "little by itself: in many dimensions nearly all points of a cube or of a Gaussian "
            "lie on a shell too. What tells a distribution apart is where its shell is, and how "
            "its directions spread.",
            _finding(result),
            "PCA shows the plane of the train latents' first two principal components, with "
            f"{100 * result.explained.sum():.0f} % of their variance: most of what sets latents "
            "apart is not in the picture. UMAP embeds all latents together and keeps near "
            "neighbours, not distances: samples far from everything, such as uniform ones, may be "
            "drawn amid the train latents. Norms and angles tell.",
        ),
        tables=(_table(result),),
        figures=(*_distributions(context, result), *_planes(result)),
        data={
            "clouds": {n: {"norms": c.norms, "nearest": c.nearest, "cosine": spread(c.cosines)}
                       for n, c in result.clouds.items()},
            "expected": result.expected,
            "pca": result.pca,
            "explained": result.explained,
            "umap": result.umap,
            "quality": result.quality,
        },
    )  # fmt: skip


def _finding(result: Geometry) -> str:
    """What the train latents' norms and angles say, in words."""
    train, held_out = result.clouds[TRAIN], result.clouds[HELD_OUT]
    gaussian, cube = result.expected["Gaussian"], result.expected["uniform cube"]
    norm, width = float(train.norms.mean()), float(train.norms.std())
    ratio = (width / norm) / (gaussian.norm_std / gaussian.norm)
    if ratio < 0.8:
        shell = "a thinner shell than"
    else:
        shell = "a thicker shell than" if ratio > 1.25 else "a shell about as thick as that of"
    size, std = round(1 / gaussian.cosine_std**2), float(train.cosines.std())
    angles = "independent directions would have the same"
    if not 0.9 < std / gaussian.cosine_std < 1.1:
        than = "nearer to right angles" if std < gaussian.cosine_std else "more often aligned"
        angles = f"they are {than} than independent directions ({gaussian.cosine_std:.3f})"
    return (
        f"The train latents have norms of {norm:.2f} ± {width:.2f}: {shell} a Gaussian of their "
        f"mean square in {size} dimensions ({gaussian.norm:.2f} ± {gaussian.norm_std:.2f}). Points "
        f"spread evenly over the cube have {cube.norm:.2f} ± {cube.norm_std:.2f}. Cosines of pairs "
        f"of different members have a standard deviation of {std:.3f}: {angles}. Held-out members "
        f"have norms of {held_out.norms.mean():.2f} ± {held_out.norms.std():.2f}: where they "
        "differ from those of train members, the encoder tells members that it was trained on "
        "from others."
    )


def _table(result: Geometry) -> Table:
    rows = []
    for name, c in result.clouds.items():
        rows.append((name, len(c.norms), spread(c.norms), spread(c.cosines),
                     geometry.effective_dimension(c.cosines), spread(c.nearest)))  # fmt: skip
    for name, e in result.expected.items():
        size = 1 / e.cosine_std**2
        rows.append((f"{name} (computed)", None, Spread(e.norm, e.norm_std),
                     Spread(0.0, e.cosine_std), size, None))  # fmt: skip
    return Table(
        "geometry",
        "Norms and angles",
        ("latents", "number", "norm", "cosine of pairs", "effective dimension",
         "cosine to nearest train latent"),
        tuple(rows),
        note="mean ± standard deviation over latents, or pairs of different members'. Effective "
        "dimension: 1 / mean squared cosine, the number of dimensions in which independent "
        "directions have such angles. A cosine of 1 to the nearest train latent, of all of them, "
        "is a replay, up to length; train members are compared with other members.",
    )  # fmt: skip


def _distributions(context: Context, result: Geometry) -> tuple[Figure, ...]:
    rng = np.random.default_rng(context.trained.config.seed)
    cosines = {
        name: rng.choice(c.cosines, min(_PAIRS, len(c.cosines)), replace=False)
        for name, c in result.clouds.items()
    }
    zoo = (TRAIN, HELD_OUT)
    return (
        Figure(
            "norms",
            "Norms",
            plots.population_boxes(
                {name: c.norms for name, c in result.clouds.items()}, "norm", highlights=zoo
            ),
            alt="Norms of the latents of members and of every sampler's samples",
            note="Members of the zoo in the second colour.",
        ),
        Figure(
            "angles",
            "Angles",
            plots.population_boxes(cosines, "cosine between two latents", highlights=zoo),
            alt="Cosines between pairs of latents of members and of every sampler's samples",
            note=f"At most {_PAIRS} random pairs of each; the table has all of them.",
        ),
    )


def _planes(result: Geometry) -> list[Figure]:
    figures = []
    share = [f"{100 * part:.1f} %" for part in result.explained]
    for name, title, places, axes in (
        ("pca", "PCA", result.pca, [f"PC {i} ({part})" for i, part in enumerate(share, 1)]),
        ("umap", "UMAP", result.umap, ["UMAP 1", "UMAP 2"]),
    ):
        columns = {population: (xy[:, 0], xy[:, 1]) for population, xy in places.items()}
        train = columns.pop(TRAIN)
        figures += [
            Figure(
                f"{name}_accuracy",
                f"Train members by accuracy ({title})",
                scatter.by_value(train, 100 * result.quality, *axes, "validation accuracy (%)"),
                alt=f"Train latents in two dimensions by {title}, coloured by accuracy",
            ),
            Figure(
                f"{name}_samplers",
                f"Samples of each sampler ({title})",
                scatter.panels(columns, (TRAIN, train), *axes),
                alt=f"Samples of each sampler and held-out members in two dimensions by {title}, "
                "before the train latents",
            ),
        ]
    return figures
