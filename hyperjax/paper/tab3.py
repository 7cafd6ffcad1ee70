"""Table 3: conditioning on the models of unseen zoos."""

import numpy as np

from hyperjax.analysis import reconstruction
from hyperjax.analysis.reconstruction import Conditioned
from hyperjax.app.context import Context
from hyperjax.app.populations import from_scratch
from hyperjax.errors import HyperJaxError
from hyperjax.paper.common import percent
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.zoo import snapshot_index

# (training zoo, unseen zoo) -> one model mean, max; ensemble mean, max, in %, of Table 3.
PUBLISHED = {
    ("mnist", "svhn"): (12.7, 19.8, 13.4, 18.7),
    ("svhn", "mnist"): (16.2, 26.0, 22.1, 29.8),
    ("cifar10", "stl10"): (18.0, 24.4, 23.8, 26.7),
    ("stl10", "cifar10"): (16.3, 21.2, 20.0, 23.0),
}


def run(context: Context) -> dict[str, Conditioned]:
    """For every target: its zoo's test members, or models trained now, at the last epoch that an
    autoencoder of that zoo would see."""
    trained, evaluation = context.trained, context.trained.config.evaluation
    model = trained.hyperreps[trained.main]
    result = {}
    for target in context.targets:
        last = target.config.autoencoder.data.epochs_seen[-1:]
        models = from_scratch(context, target, epochs=last)
        unseen = models.weights[:, snapshot_index(models, last)[0]]
        unseen = unseen[np.isfinite(unseen).all(axis=1)]
        if not len(unseen):
            raise HyperJaxError(f"target {target.name}: every model has diverged")
        result[target.name] = reconstruction.condition(
            model,
            unseen,
            trained.data.train[: context.num_samples, -1],
            target.task,
            ensemble_size=evaluation.ensemble_sizes[-1],
            draws=evaluation.ensemble_draws,
            seed=trained.config.seed,
        )
    return result


def section(context: Context, result: dict[str, Conditioned]) -> Section:
    own, rows, boxes = context.trained.config.dataset, [], {}
    for name, r in result.items():
        for what, accuracy, ensembles, r2 in (
            (f"{name} models, decoded", r.decoded, r.ensembles, r.r2),
            (f"{own} models, decoded, on {name}", r.control, r.control_ensembles, None),
            (f"{name} models themselves", r.original, None, None),
        ):
            together = (None, None)
            if ensembles is not None:
                together = (100 * float(ensembles.mean()), 100 * float(ensembles.max()))
            rows.append((what, len(accuracy), percent(accuracy), 100 * float(accuracy.max()),
                         *together, r2))  # fmt: skip
            boxes[what] = 100 * accuracy
        known = PUBLISHED.get((own, name))
        if known:
            rows.append((f"{name} models, decoded (paper)", None, *known, None))
    sizes = ", ".join(str(r.ensemble_size) for r in result.values())
    return Section(
        "tab3",
        "Conditioning on unseen zoos (Table 3)",
        text=(
            "Models that were trained on another data set pass through the autoencoder of the "
            f"{own} zoo, which never saw such models, and are evaluated on their own data set. "
            f"Chance is 10 %. Below each stand {own} models, decoded and evaluated there: what is "
            "reached without conditioning. Only a difference to them is due to what the latents "
            "say of the unseen models.",
        ),
        tables=(
            Table(
                "conditioning",
                "Test accuracy on the unseen data set",
                ("models", "number", "one model (%)", "best model (%)", "ensemble (%)",
                 "best ensemble (%)", "R²"),
                tuple(rows),
                note=f"mean ± standard deviation over models; ensembles of {sizes} models. R² of 0 "
                f"is no better than the mean of the {own} members.",
            ),
        ),
        figures=(
            Figure("conditioning", "Accuracy on the unseen data set",
                   plots.population_boxes(boxes, "test accuracy (%)"),
                   alt="Accuracy of decoded models of an unseen zoo beside controls"),
        ),
        data={name: r._asdict() for name, r in result.items()},
    )  # fmt: skip
