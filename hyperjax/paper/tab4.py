"""Table 4: architectures that the hyper-representation has not seen."""

import jax
import numpy as np

from hyperjax.analysis import unseen
from hyperjax.analysis.unseen import RANDOM, Population, Unseen
from hyperjax.app.context import Context, Target
from hyperjax.app.populations import available, drawn, finetuned, pretrained, sources
from hyperjax.errors import HyperJaxError
from hyperjax.models import variants
from hyperjax.models.architectures import is_zoo_cnn
from hyperjax.models.variants import VARIANTS
from hyperjax.paper.common import band, effects_table
from hyperjax.population.lockstep import make_engine
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Spread, Table
from hyperjax.rng import experiment_key
from hyperjax.zoo import Zoo

_POPULATIONS = ("S_kde30", "S_kde_anchor30", "S_joint30", "diffusion")
_CONTROL = "S_kde_anchor30"  # whose weights are also shuffled: the sampler of the paper's figures

# (architecture, initial weights) -> epochs 1, 5 and 50, of Table 4: MNIST's weights on SVHN.
PUBLISHED = {
    ("3-conv + res-skip", "random"): ("18.9 ± 1.6", "31.4 ± 17", "50.6 ± 28"),
    ("3-conv + res-skip", "generated"): ("34.5 ± 14", "60.5 ± 21", "68.0 ± 21"),
    ("4-conv", "random"): ("19.2 ± 1.0", "19.2 ± 0.9", "55.2 ± 11"),
    ("4-conv", "generated"): ("44.0 ± 4.5", "57.8 ± 3.5", "67.6 ± 1.9"),
    ("4-conv + id.-skip", "random"): ("18.9 ± 1.0", "19.6 ± 1.7", "56.4 ± 7.9"),
    ("4-conv + id.-skip", "generated"): ("48.0 ± 4.0", "59.9 ± 2.5", "66.4 ± 1.7"),
}


def run(context: Context) -> Unseen:
    target, spec = _target(context), context.trained.zoo.spec
    if not is_zoo_cnn(spec):
        raise HyperJaxError(
            "tab4 hands the weights of the paper's CNN on to other networks; those here have "
            f"the layers {', '.join(spec.names)}"
        )
    labels = available(context, _POPULATIONS) or list(sources(context))[:3]
    starts = {label: np.asarray(drawn(context, label).weights[:, 0]) for label in labels}
    starts["B_F"] = np.asarray(pretrained(context))
    limit = context.trained.config.evaluation.unseen_models
    count = min(limit, *map(len, starts.values()))
    starts = {name: vectors[:count] for name, vectors in starts.items()}
    populations = {name: _finetuned(context, target, name, starts) for name in VARIANTS}
    config = context.trained.config
    return unseen.compare(
        populations,
        target.config.evaluation.epochs,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )


def _target(context: Context) -> Target:
    return context.targets[0] if context.targets else context.home


def _finetuned(
    context: Context, target: Target, name: str, zoo_cnns: dict[str, np.ndarray]
) -> dict[str, Zoo]:
    """All populations of the architecture `name`, trained on the target."""
    config, variant = target.config, VARIANTS[name]
    source = context.trained.zoo.spec
    spec = variant.spec(source.channels, config.zoo.activation)
    engine = make_engine(config.zoo, spec, model=variant.model, draw=variants.init_vector)
    seed, number = context.trained.config.seed, list(VARIANTS).index(name)
    key = experiment_key(seed, "tab4")
    starts = unseen.starts(
        jax.random.fold_in(key, number),
        source,
        spec,
        zoo_cnns,
        rule=context.trained.config.evaluation.assign,
        init=config.zoo.init,
        control=_CONTROL if _CONTROL in zoo_cnns else next(iter(zoo_cnns)),
    )
    task = target.task._replace(engine=engine)
    return {
        label: finetuned(
            context, f"{name}-{label.replace(', ', '-')}", vectors, target,
            config.evaluation.epochs, task,
        )
        for label, vectors in starts.items()
    }  # fmt: skip


def section(context: Context, result: Unseen) -> Section:
    target, evaluation = _target(context), context.trained.config.evaluation
    count = next(iter(next(iter(result.populations.values())).values())).accuracy
    models = len(next(iter(count.values())))
    tables, figures = [], []
    for name, rows in result.populations.items():
        title = VARIANTS[name].title
        tables += [_accuracy_table(name, title, rows), _comparison_table(name, title, result)]
        figures.append(_curves(name, title, rows, context))
    return Section(
        "tab4",
        "Unseen architectures (Table 4)",
        text=(
            f"Generated weights of the zoo CNN as initial weights of three other architectures, "
            f"trained on {target.name} with the hyper-parameters of its zoo; {models} models per "
            "population, all with the same seeds and orders of images. random is "
            f"{target.config.zoo.init}, as the zoo of {target.name} is initialised; B_F are "
            "trained members of the zoo, assigned in the same way.",
            _RULES[evaluation.assign] + " In 3-conv + res-skip the zoo CNN's five layers are "
            "copied and the skip paths are random.",
            "shuffled: the same initial weights, shuffled within every layer. It keeps the "
            "weights' scale and nothing else: what it gains over random is due to scale, and what "
            "generated weights gain over it is due to structure.",
        ),
        tables=(*tables, _paper_table()),
        figures=tuple(figures),
        data={"populations": result.populations, "comparisons": result.comparisons},
    )


_RULES = {
    "transplant": "Every layer of the 4-conv architectures is given the layer that plays its role "
    "(transplant); as the paper may have done it, parameters are filled in order (refill).",
    "refill": "The 4-conv architectures' parameters are filled in order from the flat vector "
    "(refill); with transplant, every layer is given the layer that plays its role.",
}


def _curves(name: str, title: str, rows: dict[str, Population], context: Context) -> Figure:
    config = context.trained.config
    series = {
        label: band(np.array(list(row.accuracy)), [100 * a for a in row.accuracy.values()], config)
        for label, row in rows.items()
    }
    return Figure(
        name,
        title,
        plots.curves(series, "epoch", "test accuracy (%)"),
        alt=f"Mean test accuracy of {title} against epochs of training, by initialisation",
        note="Bands: 95 % bootstrap interval of the mean.",
    )


def _accuracy_table(name: str, title: str, rows: dict[str, Population]) -> Table:
    epochs = list(rows[RANDOM].summary)
    return Table(
        name,
        title,
        ("initial weights", *(f"epoch {epoch} (%)" for epoch in epochs), "diverged"),
        tuple(
            (
                label,
                *(Spread(100 * s.mean, 100 * s.std) for s in row.summary.values()),
                max(s.excluded for s in row.summary.values()),
            )
            for label, row in rows.items()
        ),
        note="test accuracy, mean ± standard deviation over models",
    )


def _comparison_table(name: str, title: str, result: Unseen) -> Table:
    return effects_table(
        f"{name}_tests",
        f"{title}: differences",
        ("populations", "epoch"),
        {
            (f"{pair.name} - {pair.against}", pair.epoch): pair.comparison
            for pair in result.comparisons
            if pair.architecture == name
        },
        note="Positive: the first is above the second. Two-sided, Holm-corrected over all "
        "architectures, populations and epochs.",
    )


def _paper_table() -> Table:
    return Table(
        "paper",
        "The paper's Table 4",
        ("architecture", "initial weights", *(f"epoch {e} (%)" for e in (1, 5, 50))),
        tuple((*names, *cells) for names, cells in PUBLISHED.items()),
        note="Generated by a hyper-representation of MNIST models, trained on SVHN. The zoos' "
        "initial weights there are uniform in [0, 1), a poor start.",
    )
