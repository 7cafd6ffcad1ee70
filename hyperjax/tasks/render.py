"""Results of experiments as sections of the report: words, tables, pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table as ConsoleTable

from hyperjax import samplers
from hyperjax.experiments.fig2 import Fig2, Reconstruction
from hyperjax.experiments.tab1 import Tab1
from hyperjax.io import plots
from hyperjax.io.progress import console
from hyperjax.io.report import Figure, Section
from hyperjax.io.tables import Spread, Table
from hyperjax.tasks.train import Trained

_NAMES = {"lwln": "with LWLN", "no_lwln": "without LWLN"}
_PARTS = {"train": "train members", "heldout": "held-out members"}
_CURVES = ("S_uniform", "S_kde30", "S_kde_anchor30", "S_joint", "aligned_mean", "B_kde30")
# Epoch -> population -> data set -> "mean ± std" of the paper's Table 1.
PAPER = {
    0: {
        "B_kde30": {"mnist": "63.2 ± 7.2", "svhn": "10.1 ± 3.2", "cifar10": "15.5 ± 3.4",
                    "stl10": "12.7 ± 3.4"},
        "S_kde30": {"mnist": "68.6 ± 6.7", "svhn": "51.5 ± 5.9", "cifar10": "26.9 ± 4.9",
                    "stl10": "19.7 ± 2.1"},
    },
    1: {
        "B_T": {"mnist": "20.6 ± 1.6", "svhn": "19.4 ± 0.6", "cifar10": "27.5 ± 2.1",
                "stl10": "15.4 ± 1.8"},
        "B_kde30": {"mnist": "83.2 ± 1.2", "svhn": "67.4 ± 2.0", "cifar10": "39.7 ± 0.6",
                    "stl10": "26.4 ± 1.6"},
        "S_kde30": {"mnist": "83.7 ± 1.3", "svhn": "69.9 ± 1.6", "cifar10": "44.0 ± 0.5",
                    "stl10": "25.9 ± 1.6"},
    },
    25: {
        "B_T": {"mnist": "83.3 ± 2.6", "svhn": "66.7 ± 8.5", "cifar10": "46.1 ± 1.3",
                "stl10": "35.0 ± 1.3"},
        "B_kde30": {"mnist": "93.2 ± 0.6", "svhn": "75.4 ± 0.9", "cifar10": "48.1 ± 0.6",
                    "stl10": "38.4 ± 0.9"},
        "S_kde30": {"mnist": "93.0 ± 0.7", "svhn": "74.2 ± 1.4", "cifar10": "48.6 ± 0.5",
                    "stl10": "38.1 ± 1.1"},
    },
    50: {
        "B_T": {"mnist": "91.1 ± 2.6", "svhn": "70.7 ± 8.8", "cifar10": "48.7 ± 1.4",
                "stl10": "39.0 ± 1.0"},
    },
}  # fmt: skip


def facts(trained: Trained, run_info: dict, num_samples: int, seconds: float) -> dict[str, str]:
    """What the report's figures were made with and on."""
    config, data, parts = trained.config, trained.images, trained.split
    device = f"{len(run_info['devices'])} x {run_info['devices'][0]} ({run_info['cores']} cores)"
    versions = run_info["versions"]
    return {
        "data set": f"{data.name} ({data.source}, fingerprint {data.fingerprint})",
        "images": f"{len(data.train.labels)} train, {len(data.val.labels)} validation, "
        f"{len(data.test.labels)} test",
        "zoo": f"{len(trained.zoo.members)} members, {config.zoo.epochs} epochs; split by member "
        f"{len(parts.train)} / {len(parts.val)} / {len(parts.test)}; "
        f"{len(trained.zoo.members) - sum(map(len, parts))} left out (diverged)",
        "hyper-representations": _chosen(trained),
        "samples": f"{num_samples} per population",
        "seed": str(config.seed),
        "hardware": device,
        "software": f"hyperjax {versions['hyperjax']}, jax {versions['jax']}, "
        f"Python {run_info['python']}",
        "command": run_info["command"],
        "evaluation time": f"{seconds:.0f} s",
        "date": run_info["time"],
    }


def _chosen(trained: Trained) -> str:
    """What the autoencoders are, in a line."""
    c = trained.config.autoencoder
    kind = "attention beside fixed principal components" if c.linear_path else "attention"
    return f"{', '.join(trained.hyperreps)}; {kind}, latent {c.latent}, {c.steps} steps"


def sections(trained: Trained, results: Mapping[str, Any]) -> list[Section]:
    """The overview, then a section per experiment."""
    made = []
    if results:
        made.append(Section(
            "overview",
            "Side by side",
            text=(
                "Accuracy on test images of the zoo, of reconstructions, of the weight-space "
                "baselines and of each sampler as decoded, before any step of training. "
                "Disagreement is the mean share of test images on which two models of a "
                "population differ: a population that collapsed to one model has 0. Novelty is "
                "the mean distance to the nearest train model, in units of the same distance "
                "among train models: 0 is a replay of train models, 1 is as far as an unrelated "
                "member. The best 30 % of train models are chosen by accuracy on validation "
                "images.",
                "kde draws every latent dimension independently (the paper's text); kde_anchor "
                "draws one train model and adds one shared scalar of noise (the published "
                "code): it replays train models. B_ are samples of the autoencoder without "
                "layer-wise loss normalisation (LWLN).",
            ),
            tables=(overview(results, trained),),
        ))  # fmt: skip
    if "fig2" in results:
        made.append(_fig2(results["fig2"], trained))
    if "tab1" in results:
        made.append(_tab1(results["tab1"], trained))
    return made


def overview(results: Mapping[str, Any], trained: Trained) -> Table:
    rows = []
    for (name, part), r in results.get("fig2", {}).items():
        if name == next(iter(trained.hyperreps)):
            rows.append((f"zoo, {_PARTS[part]}", *_percent(r.original_accuracy), None, None))
    for (name, part), r in results.get("fig2", {}).items():
        label = f"reconstructed {_PARTS[part]}, {_NAMES[name]}"
        rows.append((label, *_percent(r.accuracy), 100 * r.disagreement, None))
    if "tab1" in results:
        for name, row in results["tab1"].populations.items():
            if name != "B_T":
                cells = (100 * row.disagreement, round(row.novelty, 3))
                rows.append((name, *_percent(row.accuracy[0]), *cells))
    return Table(
        "side_by_side",
        "As decoded",
        ("population", "models", "test accuracy (%)", "disagreement (%)", "novelty"),
        tuple(rows),
        note="mean ± standard deviation over models",
    )


def _percent(accuracy: np.ndarray) -> tuple[int, Spread]:
    finite = np.asarray(accuracy)[np.isfinite(accuracy)]
    return len(finite), Spread(100 * float(np.mean(finite)), 100 * float(np.std(finite)))


def _fig2(result: Fig2, trained: Trained) -> Section:
    layers = trained.zoo.spec.names
    rows = [
        (
            f"{_PARTS[part]}, {_NAMES[name]}",
            Spread(100 * float(r.accuracy.mean()), 100 * float(r.accuracy.std())),
            100 * float(r.original_accuracy.mean()),
            *(r.r2[key] for key in ("all", *layers)),
        )
        for (name, part), r in result.items()
    ]
    figures = []
    for part in _PARTS:
        columns = {
            _NAMES[name]: _panels(r, trained) for (name, p), r in result.items() if p == part
        }
        figures.append(Figure(
            f"weights_{part}",
            f"Weights of {_PARTS[part]}",
            plots.weight_histograms(columns),
            alt=f"Histograms per layer of original and reconstructed weights of {_PARTS[part]}",
        ))  # fmt: skip
    return Section(
        "fig2",
        "Reconstruction, with and without layer-wise loss normalisation (Figure 2)",
        text=(
            "Members of the train split, which the autoencoder was trained on, and of the test "
            "split, which took no part in training or selection. R² is against the mean of the "
            "train members: 0 means no better than that mean, over all epochs that the "
            "autoencoder sees. Accuracy is that of the last of these epochs.",
        ),
        tables=(
            Table(
                "reconstruction",
                "Accuracy and R² of reconstructions",
                ("members", "accuracy (%)", "before (%)", "R² all", *(f"R² {n}" for n in layers)),
                tuple(rows),
            ),
        ),
        figures=tuple(figures),
        data={
            f"{name}/{part}": {"r2": r.r2, "accuracy": r.accuracy, "before": r.original_accuracy}
            for (name, part), r in result.items()
        },
    )


def _panels(r: Reconstruction, trained: Trained) -> dict[str, plots.Panel]:
    spec = trained.zoo.spec
    return {
        name: (r.original[:, part], r.reconstructed[:, part], r.r2[name])
        for name, part in zip(spec.names, spec.slices, strict=True)
    }


def _tab1(result: Tab1, trained: Trained) -> Section:
    epochs = sorted(result.comparisons)
    dataset = trained.config.dataset
    boxes = {
        name: 100 * row.accuracy[0] for name, row in result.populations.items() if name != "B_T"
    }
    figures = [Figure(
        "epoch0",
        "Populations as decoded",
        plots.population_boxes(boxes, "test accuracy (%)",
                               highlights=[name for name in boxes if name[:2] not in ("S_", "B_")]),
        alt="Test accuracy of every population before fine-tuning",
        note="Baselines in weight space in the second colour.",
    )]  # fmt: skip
    if len(epochs) > 1:
        shift = trained.config.autoencoder.epochs_seen[-1]
        figures += [_curves(result, epochs, 0), _curves(result, epochs, shift)]
    known = samplers.describe()
    return Section(
        "tab1",
        "Populations as decoded and fine-tuned (Table 1)",
        text=(
            "Every population is fine-tuned with the zoo's own hyper-parameters and fresh "
            "optimiser states, each member with its own order of images. B_T are the zoo's test "
            "members, trained from scratch.",
        ),
        tables=(
            _accuracy_table(result, epochs, dataset),
            _interval_table(result, epochs),
            _comparison_table(result, epochs),
            Table("samplers", "Samplers", ("name", "what it draws"), tuple(known.items())),
        ),
        figures=tuple(figures),
        data={"populations": result.populations, "comparisons": result.comparisons},
    )


def _curves(result: Tab1, epochs: list[int], shift: int) -> Figure:
    """Training from scratch against a few populations; with `shift`, in epochs of training that
    went into them, the zoo's included."""
    others = [name for name in result.populations if name in _CURVES]
    others = others or [name for name in result.populations if name != "B_T"][: len(_CURVES)]
    series = {}
    for name in ["B_T", *others]:
        summary = result.populations[name].summary
        x = np.array([e for e in epochs if e in summary])
        mean = [100 * summary[e].mean for e in x]
        low, high = ([100 * summary[e].mean_ci[i] for e in x] for i in (0, 1))
        place = x if name == "B_T" else x + shift
        series[name] = (place, np.array(mean), np.array(low), np.array(high))
    axis = "epoch" if not shift else "epoch, the zoo's included"
    return Figure(
        "finetuning_shifted" if shift else "finetuning",
        "Fine-tuning at equal total training" if shift else "Fine-tuning",
        plots.curves(series, axis, "test accuracy (%)"),
        alt="Mean test accuracy against epochs of fine-tuning",
        note="Bands: 95 % bootstrap interval of the mean. B_T is trained from scratch. All "
        "populations are in the table below.",
    )


def _accuracy_table(result: Tab1, epochs: list[int], dataset: str) -> Table:
    paper = [(e, p) for e in epochs for p in PAPER.get(e, {}) if dataset in PAPER[e][p]]
    rows = []
    for name, row in result.populations.items():
        cells = [
            Spread(100 * row.summary[e].mean, 100 * row.summary[e].std)
            if e in row.summary
            else None
            for e in epochs
        ]
        models = next(iter(row.summary.values())).count
        rows.append((name, models, *cells, 100 * row.disagreement))
    for name in dict.fromkeys(p for _, p in paper):
        cells = [PAPER.get(e, {}).get(name, {}).get(dataset) for e in epochs]
        rows.append((f"{name} (paper)", None, *cells, None))
    columns = ("population", "models", *(f"epoch {e} (%)" for e in epochs), "disagreement (%)")
    return Table(
        "accuracy",
        "Test accuracy by epoch of fine-tuning",
        columns,
        tuple(rows),
        note="mean ± standard deviation over models; disagreement at epoch 0. The paper's "
        "S_KDE30 comes from what is called kde_anchor30 here. All populations share the seeds of "
        "their draws and of the order of images.",
    )


def _interval_table(result: Tab1, epochs: list[int]) -> Table:
    rows = []
    for name, row in result.populations.items():
        for epoch in epochs:
            if epoch in row.summary:
                s = row.summary[epoch]
                numbers = (s.mean, *s.mean_ci, s.median, *s.median_ci)
                rows.append((name, epoch, *(100 * float(x) for x in numbers), s.excluded))
    columns = ("population", "epoch", "mean (%)", "from (%)", "to (%)", "median (%)", "from (%) ",
               "to (%) ", "diverged")  # fmt: skip
    return Table("intervals", "95 % bootstrap intervals", columns, tuple(rows))


def _comparison_table(result: Tab1, epochs: list[int]) -> Table:
    rows = []
    for epoch in epochs:
        for a, b, c in result.comparisons[epoch]:
            if "B_T" in (a, b):
                sign, other = (1, a) if b == "B_T" else (-1, b)
                cles = c.cles if sign == 1 else 1 - c.cles
                rows.append((other, epoch, sign * c.rank_biserial, cles, c.mwu_p,
                             sign * c.cohens_d, c.welch_p))  # fmt: skip
    return Table(
        "against_b_t",
        "Against B_T at the same epoch",
        ("population", "epoch", "rank-biserial", "common-language effect", "p Mann-Whitney",
         "Cohen's d", "p Welch"),
        tuple(rows),
        note="Positive: above B_T. Two-sided, Holm-corrected over all pairs of the epoch; all "
        "pairs are in tab1.json.",
    )  # fmt: skip


def print_summary(results: Mapping[str, Any]) -> None:
    """The populations' accuracies on the console."""
    if "tab1" not in results:
        return
    tab1: Tab1 = results["tab1"]
    epochs = sorted(tab1.comparisons)
    table = ConsoleTable(
        title="test accuracy (%)",
        caption="differ: share of test images on which two models of a population disagree at "
        "epoch 0, in %",
    )
    for column in ("population", *(f"epoch {e}" for e in epochs), "differ"):
        name = column == "population"
        table.add_column(column, justify="left" if name else "right", no_wrap=name)
    for name, row in tab1.populations.items():
        cells = [
            f"{100 * row.summary[e].mean:.1f} ± {100 * row.summary[e].std:.1f}"
            if e in row.summary
            else "-"
            for e in epochs
        ]
        table.add_row(name, *cells, f"{100 * row.disagreement:.1f}")
    console.print(table)
