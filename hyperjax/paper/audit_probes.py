"""Linear probes: accuracy, epoch and generalisation gap from latents and from weights."""

import dataclasses

import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import probes
from hyperjax.analysis.probes import Parts, Probe
from hyperjax.app import progress
from hyperjax.app.context import Context
from hyperjax.app.run import Run
from hyperjax.hyperrep import HyperRep
from hyperjax.paper.common import HYPERREPS
from hyperjax.population.evaluation import tested
from hyperjax.report import plots
from hyperjax.report.page import Figure, Section
from hyperjax.report.tables import Table
from hyperjax.rng import Stream, root_key
from hyperjax.types import Array

ACCURACY, EPOCH, GAP = "test accuracy", "epoch", "generalisation gap"
TARGETS = (ACCURACY, EPOCH, GAP)
_RANDOM = "latents, untrained encoder"
_COMPONENTS = "principal components"
_ALIGNED, _RAW, _STATISTICS = "aligned weights", "weights as trained", "layer statistics"

Result = dict[tuple[str, str], Probe]


def run(context: Context) -> Result:
    trained = context.trained
    evaluation, rows = trained.config.evaluation, _members(trained)
    epochs, ends = _epochs(trained), np.cumsum([len(part) for part in rows])[:-1]
    together = np.concatenate(rows)

    def parts(values: Array) -> Parts:
        return Parts(*np.split(values, ends))

    targets = {name: parts(values) for name, values in _targets(trained, together, epochs).items()}
    with progress.bar("probes", len(trained.pair) + 5) as advance:
        features = _features(trained, together, epochs)
        return probes.probe(
            {name: parts(values) for name, values in features.items()},
            targets,
            bootstrap=evaluation.bootstrap,
            seed=trained.config.seed,
            advance=advance,
        )


def _members(trained: Run) -> list[np.ndarray]:
    """Rows of train, validation and test members: at most `probe_members`, in the same shares."""
    parts, rng = trained.split, np.random.default_rng(trained.config.seed)
    share = min(1.0, trained.config.evaluation.probe_members / sum(map(len, parts)))
    sizes = [max(1, round(share * len(part))) for part in parts]
    return [
        np.sort(rng.choice(part, size, replace=False))
        for part, size in zip(parts, sizes, strict=True)
    ]


def _epochs(trained: Run) -> np.ndarray:
    """Evenly spaced snapshots of the zoo, first and last included.

    Untrained networks are left out, where there are others: everything tells them apart, and
    with them R² of the accuracy would say nothing else.
    """
    all_of = np.asarray(trained.zoo.epochs)
    all_of = all_of[all_of > 0] if all_of[-1] else all_of
    count = min(len(all_of), trained.config.evaluation.probe_snapshots)
    return all_of[np.unique(np.linspace(len(all_of) - 1, 0, count).round().astype(int))]


def _targets(trained: Run, rows: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
    """Each float64[M, E]; without those that are not known, as the gap of networks that were
    trained elsewhere."""
    models = tested(trained.task, trained.zoo.select(rows, epoch=epochs))
    train, test = (
        models.metrics[f"{part}_accuracy"].astype(np.float64) for part in ("train", "test")
    )
    shown = np.broadcast_to(epochs.astype(np.float64), test.shape)
    found = dict(zip(TARGETS, (test, shown, train - test), strict=True))
    return {name: values for name, values in found.items() if np.isfinite(values).all()}


def _features(trained: Run, rows: np.ndarray, epochs: np.ndarray) -> dict[str, np.ndarray]:
    """Each f[M, E, F]."""
    aligned = trained.trajectories(rows, epochs, aligned=True)
    vectors = aligned.reshape(-1, aligned.shape[-1])
    flat = {
        f"latents, {HYPERREPS[name]}": hyperrep.encode(model, vectors, aligned=True)
        for name, model in trained.pair.items()
    }
    flat[_RANDOM] = hyperrep.encode(_untrained(trained), vectors, aligned=True)
    flat[_COMPONENTS] = _components(trained, vectors)
    raw = trained.trajectories(rows, epochs)
    flat[_STATISTICS] = probes.layer_statistics(trained.zoo.spec, raw.reshape(vectors.shape))
    shaped = {name: values.reshape(*aligned.shape[:2], -1) for name, values in flat.items()}
    return shaped | {_ALIGNED: aligned, _RAW: raw}


def _untrained(trained: Run) -> HyperRep:
    """The attention encoder as it is initialised: without the linear path, beside which it would
    start at zero."""
    model = trained.hyperreps[trained.main]
    architecture = dataclasses.replace(model.config.architecture, linear_path=False)
    config = dataclasses.replace(model.config, architecture=architecture)
    trainer = hyperrep.make_trainer(config, model.spec)
    key = root_key(trained.config.seed, Stream.HYPERREP)
    return dataclasses.replace(model, config=config, params=hyperrep.init(trainer, key).params)


def _components(trained: Run, vectors: Array) -> np.ndarray:
    """As many components of what the autoencoder was trained on as it has latents."""
    data = trained.data.train_vectors
    count = min(trained.config.autoencoder.architecture.latent, *data.shape)
    mean, components = probes.principal_components(data, count)
    return ((vectors - mean) @ components).astype(np.float32)


def section(context: Context, result: Result) -> Section:
    trained = context.trained
    epochs, counts = _epochs(trained), [len(part) for part in _members(trained)]
    seen = trained.config.autoencoder.data.epochs_seen
    main = f"latents, {HYPERREPS[trained.main]}"
    return Section(
        "probes",
        "What a linear probe reads off latents and weights",
        text=(
            f"Ridge regression on {counts[0]} train members, its penalty chosen on {counts[1]} "
            f"validation members, judged on {counts[2]} test members; {len(epochs)} snapshots of "
            f"each, from epoch {epochs[0]} to {epochs[-1]}, of which the autoencoder saw epochs "
            f"{seen[0]} to {seen[-1]} of the train members only. Untrained networks are left out: "
            "anything tells them apart. R² is against the mean of the test members: 0 says "
            "nothing, below 0 is worse than that.",
            "The generalisation gap is train less test accuracy; train accuracy is the running "
            "mean over an epoch, as the published zoos record it"
            + ("" if GAP in _known(result) else ", and not known here")
            + ". Accuracy and gap change with "
            "the epoch, so that a probe may do no more than tell the time: τ of the last epoch "
            "ranks members of equal age.",
            _words(result, main),
        ),
        tables=(_summary(result), _intervals(result)),
        figures=(_figure(result, main, epochs),),
        data={f"{name}/{target}": probe._asdict() for (name, target), probe in result.items()},
    )


def _known(result: Result) -> list[str]:
    """Targets."""
    return list(dict.fromkeys(target for _, target in result))


def _names(result: Result) -> list[str]:
    return list(dict.fromkeys(name for name, _ in result))


def _words(result: Result, main: str) -> str:
    """What the latents add to the weights that they come from."""
    sentences = []
    for target in _known(result):
        latents, others = result[main, target], (_ALIGNED, _STATISTICS, _RANDOM)
        best = max(_names(result), key=lambda name: _sortable(result[name, target].r2))
        sentences.append(
            f"{target}: {main} R² {latents.r2:.2f}, "
            + ", ".join(f"{name} {result[name, target].r2:.2f}" for name in others)
            + f"; best of all: {best} ({result[best, target].r2:.2f})"
        )
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences) + "."


def _sortable(value: float) -> float:
    return value if np.isfinite(value) else -np.inf


def _summary(result: Result) -> Table:
    short = {ACCURACY: "accuracy", EPOCH: "epoch", GAP: "gap"}
    rows = []
    for name in _names(result):
        of = [result[name, target] for target in _known(result)]
        rows.append((name, *(p.r2 for p in of), *(p.tau for p in of), of[0].last_tau))
    columns = [f"{what} {short[target]}" for what in ("R²", "τ") for target in _known(result)]
    return Table(
        "summary",
        "Linear prediction on test members",
        ("features", *columns, "τ accuracy, last epoch"),
        tuple(tuple(round(c, 3) if isinstance(c, float) else c for c in row) for row in rows),
        note="R²: coefficient of determination; τ: Kendall's tau-b of predicted and true values.",
    )


def _intervals(result: Result) -> Table:
    rows = []
    for (name, target), p in result.items():
        numbers = (p.train_r2, p.r2, *p.r2_ci, p.tau, *p.tau_ci)
        rows.append((name, target, *(round(x, 3) for x in numbers), f"{p.strength:g}"))
    columns = ("features", "target", "R² train", "R² test", "from", "to", "τ test", "from ", "to ",
               "penalty")  # fmt: skip
    note = "95 % percentile bootstrap, test members resampled with all their snapshots."
    return Table("intervals", "Intervals", columns, tuple(rows), note=note)


def _figure(result: Result, main: str, epochs: np.ndarray) -> Figure:
    probe = result[main, ACCURACY]
    true, predicted = 100 * probe.true, 100 * probe.predicted
    groups = {f"epoch {epochs[-1]}": (true[:, -1], predicted[:, -1])}
    if len(epochs) > 1:
        earlier = (true[:, :-1].ravel(), predicted[:, :-1].ravel())
        groups = {f"epochs {epochs[0]} to {epochs[-2]}": earlier} | groups
    return Figure(
        "accuracy",
        f"Test accuracy, predicted from {main}",
        plots.predictions(groups, "test accuracy (%)", "predicted test accuracy (%)"),
        alt="Predicted against true test accuracy of test members",
        note="Test members; dotted: prediction equals truth.",
    )
