import dataclasses
import html.parser
import json
import os
from urllib.parse import urlparse

import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.errors import HyperJaxError
from hyperjax.report.page import Figure, Section, to_jsonable, write_report
from hyperjax.report.tables import Spread, Table, to_csv

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


@pytest.fixture
def sections():
    nasty = Table("nasty", NASTY, (NASTY, "b"), ((NASTY, 1),), note=NASTY)
    figure = Figure("boxes", NASTY, SVG, NASTY, note=NASTY)
    return [
        Section("first", NASTY, (NASTY, "two"), (TABLE, nasty), (figure,), data={"a": [1, np.nan]}),
        Section("second", "Second", figures=(dataclasses.replace(figure, image=PNG),)),
    ]


def test_page_is_well_formed_and_needs_nothing_else(tmp_path, sections):
    page = written(tmp_path, sections, subtitle=NASTY)
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
    page = written(tmp_path, sections, subtitle=NASTY)
    # title, heading, subtitle, both sides of the facts, link, section, text, both figures and
    # their notes, table, its note, a column and a cell
    assert page.words.count(NASTY) == 16
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
    assert found == ["first.json", "first/accuracy.csv", "first/nasty.csv", "index.html"]
    assert (tmp_path / "first" / "accuracy.csv").read_text() == to_csv(TABLE)


def test_a_failing_write_leaves_the_old_report_whole(tmp_path, sections, monkeypatch):
    written(tmp_path, sections)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    replace = os.replace

    def full(source, target):
        if str(target).endswith("index.html"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(HyperJaxError, match=r"index\.html: No space left"):
        write_report(tmp_path, "another", {}, sections)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


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
