"""The novelty audit as the report has it: what is compared with what, and how it is shown."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest
from population_cases import random_task

from hyperjax.analysis import novelty
from hyperjax.analysis.novelty import (
    KINDS,
    PLAIN,
    REPAIRED,
    SELECTED,
    SELECTED_REPAIRED,
    Audit,
    Novelty,
)
from hyperjax.app.populations import FILE, LATENT, TWIN, WEIGHTS, Source
from hyperjax.config import Config, EvaluationConfig, override
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.paper import audit_novelty as task
from hyperjax.paper import novelty_section as shown
from hyperjax.population.evaluation import network
from hyperjax.population.repair import fit_repair, gaussian_inputs, image_moments, repair
from hyperjax.report import page, scatter
from hyperjax.report.tables import Spread
from hyperjax.store import workdir, zoo_file
from hyperjax.symmetry import nearest
from hyperjax.zoo import Zoo

SPEC = zoo_cnn_spec(1, "tanh")
RNG = np.random.default_rng(0)
MEMBERS, SNAPSHOTS, SAMPLES = 6, 2, 4
SOURCES = {
    "S_kde": Source("kde", "lwln", LATENT),
    "S_repair:kde": Source("repair:kde", "lwln", WEIGHTS),
    "B_kde30": Source("kde30", "no_lwln", TWIN),
    "noise": Source("noise", "lwln", WEIGHTS),
    "repair:noise": Source("repair:noise", "lwln", WEIGHTS),
    "theirs": Source("", "", FILE, Path("theirs")),
}


@pytest.fixture(scope="module")
def small_task():
    return random_task(30)


@pytest.fixture(scope="module")
def vectors():
    start = RNG.normal(0, 0.3, (MEMBERS, 1, SPEC.num_params))
    steps = 0.02 * RNG.normal(size=(MEMBERS, SNAPSHOTS, SPEC.num_params))
    return (start + steps).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(small_task, vectors):
    inputs = gaussian_inputs(jax.random.key(0), image_moments(small_task.train), 8)
    return fit_repair(SPEC, vectors[:, -1], inputs)


@pytest.fixture
def context(small_task, vectors, fitted, monkeypatch, tmp_path):
    """A workdir that has moments, with two baselines of each sort; the decoder halves weights."""
    monkeypatch.setattr(task, "_NOISE", (0.0, 0.5))
    monkeypatch.setattr(task, "_AVERAGES", (2, 99))
    quality = np.linspace(0, 1, MEMBERS)[:, None] * np.ones((1, SNAPSHOTS), np.float32)
    test = vectors[:5] + np.float32(0.3) * RNG.normal(size=vectors[:5].shape).astype(np.float32)
    config = Config(evaluation=EvaluationConfig(bootstrap=49))
    trained = types.SimpleNamespace(
        config=override(config, {"samplers.best_fraction": 0.4}),
        data=types.SimpleNamespace(train=vectors, test=test, quality=quality),
        zoo=types.SimpleNamespace(spec=SPEC),
        train_models=nearest.train_models(SPEC, vectors, vectors[0, -1]),
        hyperreps={"lwln": 0.5, "no_lwln": 0.3}, task=small_task, repair=fitted, folder=tmp_path,
    )  # fmt: skip
    path = workdir.moments_path(tmp_path)
    path.parent.mkdir()
    path.touch()

    def drawn(context, label):
        decoded = 0.5 if label.startswith("S_") else 1.0
        samples = decoded * vectors[:SAMPLES, -1]
        if "repair" in label:
            samples = np.asarray(repair(SPEC, fitted, samples))
        return types.SimpleNamespace(weights=samples[:, None])

    def reconstruct(model, networks, *, aligned):
        assert aligned
        return np.float32(model) * networks

    known = dict(SOURCES)
    monkeypatch.setattr(task, "sources", lambda context: known)
    monkeypatch.setattr(shown, "sources", lambda context: known)
    monkeypatch.setattr(task, "drawn", drawn)
    monkeypatch.setattr(task.hyperrep, "reconstruct", reconstruct)
    monkeypatch.setattr(task, "_recorded", lambda path: "")
    return types.SimpleNamespace(trained=trained, num_samples=SAMPLES, known=known)


def test_each_population_is_audited_with_its_kind(context, fitted):
    """From drawing to the page, in one go."""
    result = task.run(context)
    kinds = {name: REPAIRED if "repair" in name else PLAIN for name in SOURCES}
    assert result.kinds == kinds | {shown.HELD_OUT: PLAIN, shown.REPAIRED_HELD_OUT: REPAIRED}
    plain, repaired = result.baselines[PLAIN], result.baselines[REPAIRED]
    names = ["noise 0", "noise 0.5", "average of 2", "average with nearest"]
    assert list(plain) == list(repaired) == names + [f"{name}, best 40 %" for name in names]
    # a replay of reconstructions is one with and without repair; noise 0 replays members
    for name in ("S_kde", "S_repair:kde", "noise"):
        assert novelty.shares(result.populations[name]) == (1, 0), name
    np.testing.assert_allclose(result.populations["S_repair:kde"].replica, 0, atol=1e-5)
    assert result.populations["S_repair:kde"].weights.min() > 0.2
    assert result.populations["noise"].replica is None
    assert len(result.populations[shown.REPAIRED_HELD_OUT].accuracy) == SAMPLES
    section = task.section(context, result)
    page.write_report(context.trained.folder / "report", "title", {}, [section])
    tables = {table.name: table for table in section.tables}
    assert list(tables) == ["weights", "behaviour", "copies", "baselines", "baselines_repaired"]
    assert dict(zip(result.kinds, tables["weights"].column(1), strict=True)) == result.kinds
    assert [figure.name for figure in section.figures] == ["weights", "behaviour"]
    assert any("By novelty in weights, repaired: " in line for line in section.text)
    assert sum(line.startswith("A repair gives") for line in section.text) == 1


def drawn(context, *kinds):
    """Baselines by kind and name."""
    return task._baselines(context, task._samplers(context.trained), kinds, lambda *told: None)


def test_baselines_are_repaired_one_by_one(context, fitted, monkeypatch):
    given = {}
    monkeypatch.setattr(novelty, "audit", lambda *args, **kwargs: given.update(base=args[1]))
    task.run(context)
    for name, vectors in given["base"][PLAIN].items():
        expected = repair(SPEC, fitted, vectors)
        np.testing.assert_array_equal(given["base"][REPAIRED][name], expected)


def test_baselines_of_selected_samples_are_selected(context):
    """The best by validation accuracy of so many times as many, of networks that are repaired
    first: against a choice by hand. Plain ones stay as they are."""
    context.trained.config = override(context.trained.config, {"samplers.subsample_factor": 3})
    alone = drawn(context, PLAIN)[PLAIN]
    base = drawn(context, *KINDS)
    context.num_samples = 3 * SAMPLES
    more = drawn(context, PLAIN, REPAIRED)
    net, images = network(SPEC), context.trained.task.val
    for kind, source in ((SELECTED, PLAIN), (SELECTED_REPAIRED, REPAIRED)):
        assert list(base[kind]) == list(alone)
        for name, chosen in base[kind].items():
            many = more[source][name]
            right = [net.apply(one, images).argmax(-1) == images.labels for one in many]
            accuracy = np.mean(right, axis=1)
            best = np.argsort(-accuracy, kind="stable")[:SAMPLES]
            np.testing.assert_array_equal(chosen, many[best])
    for name, vectors in alone.items():
        np.testing.assert_array_equal(base[PLAIN][name], vectors)


def test_selected_samples_are_compared_with_selected_baselines(context):
    """On the page too; kinds that no population is of are not made."""
    context.known["subsample:repair:noise"] = Source("subsample:repair:noise", "lwln", WEIGHTS)
    result = task.run(context)
    assert list(result.baselines) == [PLAIN, REPAIRED, SELECTED_REPAIRED]
    assert result.kinds["subsample:repair:noise"] == SELECTED_REPAIRED
    section = task.section(context, result)
    assert [table.name for table in section.tables][-1] == "baselines_selected_repaired"
    assert sum("what subsample: or bootstrap: chooses" in line for line in section.text) == 1
    assert any("in weights, selected, repaired: " in line for line in section.text)


def test_the_average_with_the_nearest(context, monkeypatch):
    base = drawn(context, PLAIN)[PLAIN]
    members = context.trained.data.train[:, -1]
    far = np.linalg.norm(members[:, None] - members[None], axis=2) + np.diag([np.inf] * MEMBERS)
    pairs = (members + members[far.argmin(axis=1)]) / 2
    for sample in base["average with nearest"]:
        assert np.abs(pairs - sample).max(axis=1).min() < 1e-5
    best = base["average with nearest, best 40 %"]  # of members 3, 4 and 5
    pairs = [members[[i, j]].mean(axis=0) for i, j in ((3, 4), (3, 5), (4, 5))]
    assert all(np.abs(pairs - sample).max(axis=1).min() < 1e-5 for sample in best)


def test_without_moments_there_is_only_the_plain_kind(context, monkeypatch):
    workdir.moments_path(context.trained.folder).unlink()
    given = {}
    monkeypatch.setattr(novelty, "audit", lambda *args, **kwargs: given.update(kwargs, args=args))
    for label in ("S_repair:kde", "repair:noise"):
        del context.known[label]
    task.run(context)
    assert list(given["args"][1]) == [PLAIN]
    assert set(given["kinds"].values()) == {PLAIN}
    assert shown.REPAIRED_HELD_OUT not in given["args"][0]


def test_reconstructions_of_many_members_are_their_last(context, vectors, monkeypatch):
    """And are made once for all samplers of a kind."""
    context.known["S_joint"] = Source("joint", "lwln", LATENT)
    found = task._reconstructions(context.trained, context.known)
    assert set(found) == {"S_kde", "S_repair:kde", "B_kde30", "S_joint"}
    assert found["S_kde"] is found["S_joint"]
    np.testing.assert_array_equal(found["S_kde"], np.float32(0.5) * vectors)
    np.testing.assert_array_equal(found["B_kde30"], np.float32(0.3) * vectors)
    expected = repair(SPEC, context.trained.repair, 0.5 * vectors.reshape(-1, SPEC.num_params))
    np.testing.assert_array_equal(found["S_repair:kde"], np.reshape(expected, vectors.shape))
    monkeypatch.setattr(task, "_MOST", MEMBERS * SNAPSHOTS - 1)
    last = task._reconstructions(context.trained, context.known)
    np.testing.assert_array_equal(last["S_kde"], np.float32(0.5) * vectors[:, -1:])


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("kde", PLAIN), ("repair:kde", REPAIRED), ("subsample:repair:diffusion", SELECTED_REPAIRED),
     ("refine:kde", PLAIN), ("repair:refine:kde", REPAIRED), ("", PLAIN),
     ("subsample:kde30", SELECTED), ("bootstrap:polish:kde", SELECTED_REPAIRED)],
)  # fmt: skip
def test_of_what_kind_samples_are(sampler, kind):
    assert task.kind_of(Source(sampler, "lwln", LATENT)) == kind


def test_a_file_is_of_the_kind_that_it_records(vectors, tmp_path):
    path = tmp_path / "theirs.safetensors"
    for info, kind in (({}, PLAIN), ({"sampler": "subsample:repair:kde"}, SELECTED_REPAIRED)):
        models = Zoo(SPEC, vectors, np.arange(SNAPSHOTS), np.arange(MEMBERS), {}, info)
        zoo_file.write(path, models)
        assert task.kind_of(Source("", "", FILE, path)) == kind


# --- what is shown, of made-up audits ---------------------------------------------------


def made(accuracy, x, replica=None, gap=0.1):
    spread = np.linspace(-0.01, 0.01, 9)
    replica = None if replica is None else np.full(9, replica)
    values = (accuracy + spread, x + spread, x + spread, x + spread, gap + spread)
    return Audit(*values, replica, 0)


def made_up(repaired=True):
    populations = {
        "S_kde": made(0.5, 0.9), "S_repair:kde": made(0.97, 0.9), "noise": made(0.95, 0.6),
        "S_kde_anchor": made(0.9, 0.6, replica=0.0), "repair:diffusion": made(0.9, 9.0),
        "lost": Audit(*[np.zeros(0)] * 5, None, 3), shown.HELD_OUT: made(0.97, 1.0, gap=0.26),
        shown.REPAIRED_HELD_OUT: made(0.96, 1.05, gap=0.24),
    }  # fmt: skip
    kinds = {name: REPAIRED if "repair" in name else PLAIN for name in populations}
    base = {kind: {f"noise {x}": made(1 - level * x, x) for x in (0.0, 0.5, 1.0)}
            for kind, level in ((PLAIN, 0.5), (REPAIRED, 0.1))}  # fmt: skip
    if not repaired:
        populations = {name: a for name, a in populations.items() if kinds[name] == PLAIN}
        base = {PLAIN: base[PLAIN]}
    margins, edge = {}, {}
    for axis in novelty.AXES:
        edge[axis] = {k: novelty.frontier(*novelty.points(b.values(), axis).T)
                      for k, b in base.items()}  # fmt: skip
        margins[axis] = {}
        for kind, baselines in base.items():
            alike = {name: a for name, a in populations.items() if kinds[name] == kind}
            margins[axis] |= novelty.compare(alike, baselines, axis, bootstrap=99, seed=0)
    kinds = {name: kinds[name] for name in populations}
    return Novelty(populations, kinds, base, margins, edge, 0.3, 5.0)


KNOWN = {
    "S_kde": Source("kde", "lwln", LATENT),
    "S_repair:kde": Source("repair:kde", "lwln", WEIGHTS),
    "noise": Source("noise", "lwln", WEIGHTS),
    "S_kde_anchor": Source("kde_anchor", "lwln", LATENT),
    "repair:diffusion": Source("repair:diffusion", "lwln", WEIGHTS),
    "lost": Source("", "", FILE),
}


def test_findings_by_kind():
    replays, *lines = shown.findings(made_up())
    assert replays == (
        "Mostly replays of train models: S_kde_anchor. Mostly weighted averages of train models: "
        "none."
    )
    assert lines[:2] == [
        "By novelty in weights, plain: beyond the frontier: noise; below it: S_kde; replays, not "
        "judged: S_kde_anchor; cannot be judged: lost.",
        "By novelty in weights, repaired: beyond the frontier: S_repair:kde; not told apart from "
        "it: repair:diffusion.",
    ]
    assert [line.split(":")[0] for line in lines[2:]] == [
        "By novelty in behaviour, plain", "By novelty in behaviour, repaired",
    ]  # fmt: skip
    alone = shown.findings(made_up(repaired=False))
    assert [line.split(":")[0] for line in alone[1:]] == [
        "By novelty in weights", "By novelty in behaviour",
    ]  # fmt: skip


def test_of_baselines_of_equal_novelty_the_better_is_on_the_frontier():
    result = made_up(repaired=False)
    twin = {"noise 0, best": made(0.999, 0.0), **result.baselines[PLAIN]}
    edge = novelty.frontier(*novelty.points(twin.values(), "weights").T)
    result = result._replace(baselines={PLAIN: twin}, frontier={"weights": {PLAIN: edge}})
    assert shown._on_frontier(result, "weights", PLAIN).tolist() == [False, True, True, True]
    twin["noise 0.0"] = made(0.9, 0.0)
    edge = novelty.frontier(*novelty.points(twin.values(), "weights").T)
    result = result._replace(frontier={"weights": {PLAIN: edge}})
    assert shown._on_frontier(result, "weights", PLAIN).tolist() == [True, False, True, True]


def test_margins_are_those_of_the_own_kind():
    table = shown.verdict_table(made_up(), "weights")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["S_repair:kde"]["frontier (%)"] == pytest.approx(91, abs=0.1)
    assert rows["S_kde"]["frontier (%)"] == pytest.approx(55, abs=0.1)
    assert rows["S_repair:kde"]["margin (%)"] == pytest.approx(6, abs=0.1)
    assert rows["S_repair:kde"]["frontier?"] == "beyond"
    assert rows["lost"]["frontier?"] == "unknown"


def test_parent_gaps_stand_beside_the_reference():
    table = shown.copies_table(made_up())
    gaps = dict(zip(table.column(0), table.column(table.columns.index("parent gap")), strict=True))
    assert gaps[shown.HELD_OUT] == pytest.approx(Spread(0.26, np.linspace(-0.01, 0.01, 9).std()))
    assert gaps["S_kde"].mean == pytest.approx(0.1)
    text = shown._parent_gap(made_up())
    assert text.endswith("0.26 for the held-out members and 0.24 for the held-out members, "
                         "repaired.")  # fmt: skip


def test_the_picture_tells_kinds_sources_and_replays_apart(monkeypatch):
    drawn = {}
    real = scatter.scatter
    monkeypatch.setattr(
        scatter, "scatter", lambda *args, **kwargs: drawn.update(kwargs, args=args) or real(
            *args, **kwargs)
    )  # fmt: skip
    image = shown.picture(made_up(), "weights", KNOWN, bootstrap=49, seed=0)
    assert image.lstrip().startswith(b"<?xml")
    looks = {name.removeprefix("population "): look for name, look in drawn["looks"].items()}
    colors = {kind: looks[kind].color for kind in (PLAIN, REPAIRED)}
    assert colors[PLAIN] != colors[REPAIRED]
    for name in KNOWN | {shown.HELD_OUT: 0, shown.REPAIRED_HELD_OUT: 0}:
        assert looks[name].color == colors[REPAIRED if "repair" in name else PLAIN]
    assert [name for name, look in looks.items() if look.hollow] == ["S_kde_anchor"]
    assert looks[shown.HELD_OUT].marker == looks[shown.REPAIRED_HELD_OUT].marker == "*"
    markers = [looks[name].marker for name in ("S_kde", "noise", "repair:diffusion", "lost")]
    assert len(set(markers)) == 4
    assert looks["S_repair:kde"].marker == looks["S_kde"].marker
    labels = [label.text for label in drawn["labels"]]
    assert labels == ["kde", "kde", "noise", "kde_anchor", "diffusion (9.0)", "lost",
                      shown.HELD_OUT, shown.HELD_OUT]  # fmt: skip
    assert drawn["labels"][4].x == shown._FARTHEST
    assert list(drawn["lines"]) == ["frontier, plain", "frontier, repaired"]
    for line in drawn["lines"].values():
        assert np.all(np.diff(line.x) > 0)
        assert np.all((line.low <= line.y + 1e-9) & (line.y <= line.high + 1e-9))
    line = drawn["lines"]["frontier, plain"]
    assert np.interp([0, 0.5, 1, 1.4], line.x, line.y) == pytest.approx([100, 75, 50, 50], abs=0.1)
    assert "replays" in drawn["key"]


def test_selected_populations_have_a_colour_and_a_line_of_their_own(monkeypatch):
    given, drawn = made_up(), {}
    names = {"S_subsample:kde": SELECTED, "subsample:repair:noise": SELECTED_REPAIRED}
    audits = dict.fromkeys(names, made(0.97, 0.9))
    edges = {axis: edge | dict.fromkeys(names.values(), edge[PLAIN])
             for axis, edge in given.frontier.items()}  # fmt: skip
    result = given._replace(
        populations=given.populations | audits, kinds=given.kinds | names, frontier=edges,
        baselines=given.baselines | dict.fromkeys(names.values(), given.baselines[PLAIN]),
    )  # fmt: skip
    monkeypatch.setattr(scatter, "scatter", lambda *args, **kwargs: drawn.update(kwargs))
    known = KNOWN | {name: Source(name.removeprefix("S_"), "lwln", LATENT) for name in names}
    shown.picture(result, "weights", known, bootstrap=9, seed=0)
    assert len({drawn["looks"][kind].color for kind in KINDS}) == 4
    for name, kind in names.items():
        assert drawn["looks"][f"population {name}"].color == drawn["looks"][kind].color
    assert list(drawn["lines"]) == [f"frontier, {kind}" for kind in KINDS]
    assert len({str(line.style) for line in drawn["lines"].values()}) == 4
    assert [label.text for label in drawn["labels"]][-2:] == ["kde", "noise"]


def test_the_picture_of_one_kind(monkeypatch):
    result = made_up(repaired=False)
    context = types.SimpleNamespace(
        trained=types.SimpleNamespace(config=Config(evaluation=EvaluationConfig(bootstrap=9)))
    )
    monkeypatch.setattr(shown, "sources", lambda context: KNOWN)
    figure = shown.figure(context, result, "behaviour")
    assert "repair" not in figure.alt + figure.note
