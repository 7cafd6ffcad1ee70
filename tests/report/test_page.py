import dataclasses
import html.parser
import json
import os
from urllib.parse import urlparse

import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.errors import HyperJaxError
from hyperjax.report.page import Figure, Section, mark_failed, overview, write_report
from hyperjax.report.tables import Spread, Table, to_csv
from hyperjax.store.files import to_jsonable

NASTY = "<script>alert(\"1\")</script> & 'quoted' http://example.org"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "link", "img", "br"}
TABLE = Table(
    "accuracy",
    "Accuracy",
    ("population", "epoch", "test (%)", "p (Holm)"),
    (("B_T", 0, Spread(68.64, 6.7), 0.04321), ("S_U", 25, None, np.float32("nan"))),
)


class Page(html.parser.HTMLParser):
    """Checks the nesting; gathers attributes, and the text of every table by row."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.rows, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def written(folder, sections, **kwargs):
    path = write_report(folder, NASTY, {"seed": "0", NASTY: NASTY}, sections, **kwargs)
    assert path == folder / "index.html"
    return Page(path.read_text(encoding="utf-8"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sections():
    nasty = Table("nasty", NASTY, (NASTY, "b"), ((NASTY, 1),), note=NASTY)
    figure = Figure("boxes", NASTY, SVG, NASTY, note=NASTY)
    return [
        Section("first", NASTY, (NASTY, "two"), (TABLE, nasty), (figure,), data={"a": [1, np.nan]}),
        Section("second", "Second", figures=(dataclasses.replace(figure, image=PNG),)),
    ]


def test_page_is_well_formed_and_needs_nothing_else(tmp_path, sections):
    page = written(tmp_path, sections, made=NASTY)
    targets = [value for _, name, value in page.attributes if name in ("src", "href", "action")]
    assert not [t for t in targets if urlparse(t).scheme not in ("", "data") or "//" in t[:2]]
    for target in targets:
        kind = urlparse(target).scheme
        if target.startswith("#"):
            assert target[1:] in page.ids
        elif kind != "data":
            assert (tmp_path / target).is_file()
    tags = {tag for tag, *_ in page.attributes}
    assert not tags & {"script", "iframe", "object", "embed"}
    style = (tmp_path / "index.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert [image.split(",")[0] for image in images] == [
        "data:image/svg+xml;base64",
        "data:image/png;base64",
    ]


def test_everything_is_escaped(tmp_path, sections):
    page = written(tmp_path, sections, made=NASTY)
    # title, heading, both sides of the facts, link, section, text, both figures and their notes,
    # table, its note, a column and a cell; how each of both sections was made
    assert page.words.count(NASTY) == 15 + 2
    values = [value for _, name, value in page.attributes if name in ("alt", "aria-label")]
    assert values.count(NASTY) == 3


def test_table_of_the_page(tmp_path, sections):
    rows = written(tmp_path, sections).rows
    assert rows[0] == ["population", "epoch", "test\N{NO-BREAK SPACE}(%)", "p (Holm)"]
    assert rows[1] == ["B_T", "0", "68.6 ± 6.7", "0.043"]
    assert rows[2] == ["S_U", "25", "\N{EN DASH}", "\N{EN DASH}"]


def test_a_column_has_as_many_decimals_throughout(tmp_path):
    columns = ("name", "d", "U", "rate", "norm")
    rows = (("a", 1.0, 2500.0, 1e-5, Spread(12.0, 1.23456)), ("b", 0.12345, 721.5, 10.0, None))
    page = written(tmp_path, [Section("s", "S", tables=(Table("t", "T", columns, rows),))])
    assert page.rows[1] == ["a", "1.000", "2500", "1e\N{MINUS SIGN}05", "12.00 ± 1.23"]
    assert page.rows[2] == ["b", "0.123", "722", "10", "\N{EN DASH}"]


@dataclasses.dataclass(frozen=True)
class Result:
    name: str
    interval: tuple[float, float]


def test_json(tmp_path, sections):
    written(tmp_path, sections)
    assert json.loads((tmp_path / "first.json").read_text()) == {"a": [1, None]}
    assert not (tmp_path / "second.json").exists()
    value = {
        "result": Result("é", (0.1, float("inf"))),
        25: np.array([[1, 2]]),
        "jax": jnp.array([1.5, jnp.nan]),
        "scalar": np.float32(0.5),
        "none": None,
    }
    assert to_jsonable(value) == {
        "result": {"name": "é", "interval": [0.1, None]},
        "25": [[1, 2]],
        "jax": [1.5, None],
        "scalar": 0.5,
        "none": None,
    }


def test_files_and_no_others(tmp_path, sections):
    written(tmp_path, sections)
    written(tmp_path, sections)  # again, over the first
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [
        "first.json", "first/accuracy.csv", "first/boxes.svg", "first/nasty.csv",
        "first/section.html", "first/section.json", "index.html", "second/boxes.png",
        "second/section.html", "second/section.json",
    ]  # fmt: skip
    assert (tmp_path / "first" / "accuracy.csv").read_text() == to_csv(TABLE)
    assert (tmp_path / "first" / "boxes.svg").read_bytes() == SVG
    assert (tmp_path / "second" / "boxes.png").read_bytes() == PNG


def test_a_failing_write_leaves_the_old_report_whole(tmp_path, sections, monkeypatch):
    written(tmp_path, sections)
    before = contents(tmp_path)
    replace = os.replace

    def full(source, target):
        if str(target).endswith("index.html"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(HyperJaxError, match=r"index\.html: No space left"):
        write_report(tmp_path, "another", {}, sections)
    assert contents(tmp_path) == before
    # nor is a file removed that the old page still links to
    fewer = dataclasses.replace(sections[0], tables=(), data=None)
    with pytest.raises(HyperJaxError, match=r"index\.html: No space left"):
        write_report(tmp_path, "another", {}, [fewer])
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([Section("../up", "")], r"section: got the name '\.\./up'"),
        ([Section("a", ""), Section("A", "")], "section: name used more than once: A, a"),
        ([Section("a", "", tables=(TABLE, TABLE))], "table of section a: .*accuracy"),
        ([Section("a", "", tables=(Table("t", "", ("x",), ((1,), (1, 2))),))], "a/t: row 1 has 2"),
        ([Section("a", "", figures=(Figure("f", "", b"GIF89a", ""),))], "figure f: expected"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, sections, message):
    with pytest.raises(HyperJaxError, match=message):
        write_report(tmp_path / "report", "", {}, sections)
    assert not (tmp_path / "report").exists()


def test_empty_report(tmp_path):
    page = Page(write_report(tmp_path, "Nothing yet", {}, []).read_text())
    assert "Nothing yet" in page.words


# --- a report that grows ----------------------------------------------------------------------

ORDER = ("second", "third", "first")


def anchors(page):
    return [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]


def test_sections_of_an_earlier_call_stay(tmp_path, sections):
    """Byte for byte, and in the page, in the order that is asked for, each with what made it."""
    written(tmp_path, sections, made="on Monday", order=ORDER)
    before = contents(tmp_path)
    page = written(tmp_path, [Section("third", "Third")], made="on Tuesday", order=ORDER)
    assert anchors(page) == list(ORDER)
    assert [word for word in page.words if word.startswith("on ")] == [
        "on Monday", "on Tuesday", "on Monday"
    ]  # fmt: skip
    assert ["B_T", "0", "68.6 ± 6.7", "0.043"] in page.rows
    after = contents(tmp_path)
    for path, content in before.items():
        assert (after[path] == content) == (path.name != "index.html")
    new = {str(path.relative_to(tmp_path)) for path in after.keys() - before.keys()}
    assert new == {"third/section.html", "third/section.json"}


def test_without_an_order_the_page_has_the_given_sections_alone(tmp_path, sections):
    written(tmp_path, sections)
    page = written(tmp_path, sections[1:])
    assert anchors(page) == ["second"]
    assert (tmp_path / "first" / "accuracy.csv").exists()


def test_a_section_made_anew_replaces_its_files(tmp_path, sections):
    """Those that it does not have any more are gone; those of other sections are not."""
    written(tmp_path, sections, made="on Monday", order=ORDER)
    (tmp_path / "first" / "run.json").write_text("{}")
    changed = dataclasses.replace(TABLE, rows=TABLE.rows[:1])
    anew = Section("first", "Anew", tables=(changed,), figures=(Figure("boxes", "", PNG, ""),))
    page = written(tmp_path, [anew], made="on Tuesday", order=ORDER)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in contents(tmp_path))
    assert found == [
        "first/accuracy.csv", "first/boxes.png", "first/section.html", "first/section.json",
        "index.html", "second/boxes.png", "second/section.html", "second/section.json",
    ]  # fmt: skip
    assert (tmp_path / "first" / "accuracy.csv").read_text() == to_csv(changed)
    assert (tmp_path / "first" / "boxes.png").read_bytes() == PNG
    assert {"Anew", "on Tuesday"} <= set(page.words)
    assert not [row for row in page.rows if row[0] == "S_U"]


def test_a_failure_marks_the_older_result_and_changes_nothing_else(tmp_path, sections):
    written(tmp_path, sections, made="on Monday", order=ORDER)
    before = contents(tmp_path)
    mark_failed(tmp_path, "first", NASTY)
    mark_failed(tmp_path, "third", NASTY)  # that is not there
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {tmp_path / "first" / "section.json"}
    page = written(tmp_path, [], order=ORDER)
    assert page.words.count(f"An older result: {NASTY}") == 1
    assert page.words.count("on Monday") == 2
    assert ["B_T", "0", "68.6 ± 6.7", "0.043"] in page.rows
    page = written(tmp_path, sections[:1], order=ORDER)  # made anew after all
    assert not [word for word in page.words if "older result" in word]


def test_overview_rows_come_back(tmp_path):
    """Of sections that are there, in the order asked for; what is not finite, as nothing."""
    rows = {"a": (("S_kde", 3, 12.5, None), ("S_U", 3, float("nan"), 0.25)), "b": (("B_T", 1),)}
    made = [Section(name, "", overview=of) for name, of in rows.items()]
    written(tmp_path, made, order=("a", "b"))
    assert overview(tmp_path, ("b", "none", "a")) == [
        ["B_T", 1], ["S_kde", 3, 12.5, None], ["S_U", 3, None, 0.25]
    ]  # fmt: skip
    mark_failed(tmp_path, "a", "no")
    assert overview(tmp_path, ("a",))[0] == ["S_kde", 3, 12.5, None]
    assert overview(tmp_path / "nowhere", ("a",)) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"title": "x"}', "\udce4"])
def test_a_damaged_section_is_one_clear_error(tmp_path, sections, text):
    written(tmp_path, sections, order=ORDER)
    path = tmp_path / "first" / "section.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for call in (
        lambda: write_report(tmp_path, "", {}, sections[1:], order=ORDER),
        lambda: mark_failed(tmp_path, "first", "no"),
        lambda: overview(tmp_path, ORDER),
    ):
        with pytest.raises(HyperJaxError, match=r"cannot read .*section\.json.*delete") as caught:
            call()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == text.encode(errors="surrogateescape")
