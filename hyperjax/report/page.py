"""A report: one self-contained HTML page, and its numbers as CSV and JSON.

The page needs no network and no scripts; pictures are part of it. Layout of the folder:

    index.html
    <section>.json              data of a section, if it has any
    <section>/<table>.csv       every table, in full precision
    <section>/<figure>.svg      every picture (or .png)
    <section>/section.html      the section as it stands in the page,
    <section>/section.json      and when and by what it was made

so that a report grows: sections that are not written again stay as they are.
"""

import base64
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hyperjax.errors import HyperJaxError
from hyperjax.report.tables import (
    Cell,
    Table,
    column_decimals,
    format_cell,
    is_numeric,
    to_csv,
)
from hyperjax.store.files import atomic_write, remove, to_jsonable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture, as the bytes of an SVG or PNG file. `alt` says in words what it shows."""

    name: str
    title: str
    image: bytes
    alt: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """Paragraphs, then figures, then tables.

    Attributes:
      id: anchor of the section and name of its files: letters, digits, "_" and "-".
      text: paragraphs of plain text.
      data: what `<id>.json` holds: mappings, sequences, dataclasses, arrays and scalars.
      overview: rows of the table that has a line of each population, for whoever makes it.
    """

    id: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    data: Mapping[str, Any] | None = None
    overview: tuple[tuple[str | float | None, ...], ...] = ()


def write_report(
    folder: Path,
    title: str,
    meta: Mapping[str, str],
    sections: Sequence[Section],
    *,
    made: str = "",
    order: Sequence[str] = (),
) -> Path:
    """Write sections and the page of all that are there; returns its path.

    Every file appears by write-then-rename, the page last, so that it never links to a file
    that is missing.

    Args:
      meta: facts (seed, data set, hardware), shown as a list.
      made: when and by what the sections were made.
      order: ids of the sections of the page, as far as there are such; default: those given.

    Raises HyperJaxError if a name is no file name or is used twice, if a row does not fit its
    columns, if a picture is neither SVG nor PNG, or if a file cannot be written.
    """
    folder = Path(folder)
    _check(sections)
    fragments = [_section(section) for section in sections]  # all, before any is written
    stale: list[Path] = []
    for section, fragment in zip(sections, fragments, strict=True):
        stale += _write_section(folder, section, fragment, made)
    found = _stored(folder, order or [section.id for section in sections])
    atomic_write(folder / "index.html", _page(title, meta, folder, found).encode())
    remove(*stale)  # once no page links to them any more
    return folder / "index.html"


def mark_failed(folder: Path, section: str, reason: str) -> None:
    """Let the page say that making a section anew has failed, if it is there from earlier."""
    for name, about in _stored(folder, [section]).items():
        about["failed"] = reason
        atomic_write(folder / name / "section.json", json.dumps(about).encode())


def overview(folder: Path, order: Sequence[str]) -> list[list[str | float | None]]:
    """The overview rows of all sections that are there."""
    return [row for about in _stored(folder, order).values() for row in about["overview"]]


def _write_section(folder: Path, section: Section, fragment: str, made: str) -> list[Path]:
    """Returns what is there of an earlier result and is no part of this one."""
    files = {f"{table.name}.csv": to_csv(table).encode() for table in section.tables}
    files |= {f"{f.name}.{_kind(f)}": f.image for f in section.figures}
    about = {"title": section.title, "made": made, "overview": section.overview, "failed": ""}
    files |= {"section.html": fragment.encode()}
    files |= {"section.json": json.dumps(to_jsonable(about), allow_nan=False).encode()}
    for name, content in files.items():
        atomic_write(folder / section.id / name, content)
    if section.data is not None:
        text = json.dumps(to_jsonable(section.data), indent=1, allow_nan=False)
        atomic_write(folder / f"{section.id}.json", text.encode())
    there = (folder / section.id).glob("*")  # nothing, where another process writes
    stale = [path for path in there if path.name not in files]
    return stale if section.data is not None else [*stale, folder / f"{section.id}.json"]


def _stored(folder: Path, order: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is known of the sections that are there, by id."""
    found = {}
    for name in order:
        path = folder / name / "section.json"
        try:
            if path.exists() and (folder / name / "section.html").exists():
                about = json.loads(path.read_text())
                found[name] = {key: about[key] for key in ("title", "made", "overview", "failed")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HyperJaxError(f"cannot read {path}: {error!r}; delete {path.parent}") from error
    return found


def _check(sections: Sequence[Section]) -> None:
    _check_names("section", [section.id for section in sections])
    for section in sections:
        _check_names(f"table of section {section.id}", [table.name for table in section.tables])
        _check_names(f"figure of section {section.id}", [figure.name for figure in section.figures])
        for table in section.tables:
            for number, row in enumerate(table.rows):
                if len(row) != len(table.columns):
                    raise HyperJaxError(
                        f"table {section.id}/{table.name}: row {number} has {len(row)} cells, "
                        f"expected {len(table.columns)}"
                    )


def _check_names(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise HyperJaxError(
                f"{kind}: got the name {name!r}, expected letters, digits, '_' and '-' only"
            )
    twice = {name for name in names if [n.lower() for n in names].count(name.lower()) > 1}
    if twice:  # regardless of case, as on some file systems
        raise HyperJaxError(f"{kind}: name used more than once: {', '.join(sorted(twice))}")


def _page(
    title: str, meta: Mapping[str, str], folder: Path, sections: Mapping[str, dict[str, Any]]
) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>\n"
        for name, value in meta.items()
    )
    links = "".join(
        f'<li><a href="#{name}">{escape(about["title"])}</a></li>\n'
        for name, about in sections.items()
    )
    body = "".join(
        f'<section id="{name}">\n<h2>{escape(about["title"])}</h2>\n{_origin(about)}'
        f"{(folder / name / 'section.html').read_text()}</section>\n"
        for name, about in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{f"<dl>{facts}</dl>" if facts else ""}
{f'<nav aria-label="Sections"><ol>{links}</ol></nav>' if links else ""}
</header>
<main>
{body}</main>
</body>
</html>
"""


def _origin(about: Mapping[str, Any]) -> str:
    text = f'<p class="files">{escape(about["made"])}</p>\n' if about["made"] else ""
    if about["failed"]:
        text += f'<p class="failed">An older result: {escape(about["failed"])}</p>\n'
    return text


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(paragraph)}</p>\n" for paragraph in section.text)
    figures = "".join(map(_figure, section.figures))
    tables = "".join(_table(section, table) for table in section.tables)
    data = f'<p class="files"><a href="{section.id}.json">Data of this section (JSON)</a></p>\n'
    return (
        text
        + (f'<div class="figures">\n{figures}</div>\n' if figures else "")
        + tables
        + (data if section.data is not None else "")
    )


def _figure(figure: Figure) -> str:
    note = f"<p>{escape(figure.note)}</p>" if figure.note else ""
    return (
        f"<figure>\n<figcaption><h3>{escape(figure.title)}</h3>{note}</figcaption>\n"
        f'<img src="{_data_uri(figure)}" alt="{escape(figure.alt)}">\n</figure>\n'
    )


def _kind(figure: Figure) -> str:
    if figure.image.startswith(b"\x89PNG"):
        return "png"
    if figure.image.lstrip().startswith((b"<?xml", b"<svg")):
        return "svg"
    raise HyperJaxError(f"figure {figure.name}: expected the bytes of an SVG or PNG picture")


def _data_uri(figure: Figure) -> str:
    kind = {"png": "image/png", "svg": "image/svg+xml"}[_kind(figure)]
    return f"data:{kind};base64,{base64.b64encode(figure.image).decode()}"


def _table(section: Section, table: Table) -> str:
    columns = [table.column(index) for index in range(len(table.columns))]
    kinds = [' class="number"' if is_numeric(cells) else "" for cells in columns]
    decimals = [column_decimals(cells) for cells in columns]
    head = "".join(
        f'<th scope="col"{kind}>{_wrapped(_title(column), column, 16)}</th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    body = "".join(f"<tr>{_row(table, row, kinds, decimals)}</tr>\n" for row in table.rows)
    note = f"<p>{escape(table.note)}</p>\n" if table.note else ""
    return (
        f'<div class="table">\n<h3>{escape(table.title)}</h3>\n{note}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
        f'<p class="files"><a href="{section.id}/{table.name}.csv">CSV, full precision</a></p>\n'
        "</div>\n"
    )


def _title(column: str) -> str:
    return escape(column).replace(" (%)", "&nbsp;(%)")  # the unit stays with its word


def _wrapped(text: str, plain: str, limit: int) -> str:
    """Long titles may wrap, but not to one word a line."""
    return f'<div class="long">{text}</div>' if len(plain) > limit else text


def _row(
    table: Table, row: Sequence[Cell], kinds: Sequence[str], decimals: Sequence[int | None]
) -> str:
    cells = []
    for index, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
        tag, scope = ("td", "") if index else ("th", ' scope="row"')
        text = format_cell(cell, column, decimals[index])
        if index == 0:
            text = _wrapped(text, str(cell), 24)
        cells.append(f"<{tag}{scope}{kinds[index]}>{text}</{tag}>")
    return "".join(cells)


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing from the network
_CSS = """
:root {
  --text: #1d2127; --soft: #59616b; --ground: #f5f6f8; --card: #fff; --line: #dde1e6;
  --link: #0060a8; --stripe: #f8f9fb; --warn: #a33c00;
  --fact: 13rem;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e4e7eb; --soft: #a2abb6; --ground: #14171b; --card: #1d2126; --line: #363c44;
    --link: #7cc0f5; --stripe: #21262c; --warn: #ffb38a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 72rem; padding: 1.5rem clamp(.8rem, 3vw, 2rem) 4rem;
  color: var(--text); background: var(--ground);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word;
}
h1, h2, h3 { line-height: 1.25; margin: 0; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); }
h2 { font-size: 1.35rem; margin-bottom: .6rem; }
.failed { color: var(--warn); }
h3 { font-size: 1.02rem; }
p { margin: .4rem 0 .8rem; max-width: 70ch; }
a { color: var(--link); }
figcaption p, .table > p, .files, dt { color: var(--soft); }
figcaption p, .table > p, .files { font-size: .9rem; margin: .2rem 0 .5rem; }
dl {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--fact), 1fr));
  gap: .5rem 1.5rem; margin: 1rem 0;
}
dt { font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
nav ol {
  display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; list-style: none; margin: 1rem 0 0;
  padding: 0;
}
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.5rem; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: 1rem; align-items: start; margin: 1rem 0;
}
figure, .table {
  margin: 0; padding: 1rem; min-width: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem;
}
.table { margin: 1rem 0; }
figure { max-width: 43rem; }
img {
  display: block; width: 100%; height: auto; margin-top: .5rem; padding: .4rem;
  background: #fff; border-radius: .3rem;
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; min-width: 60%; }
tr { background: var(--card); }
th, td { padding: .35rem .8rem; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; white-space: normal; }
.long { min-width: 9rem; white-space: normal; }
tbody th { font-weight: 600; }
tr > :first-child { position: sticky; left: 0; background: inherit; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) {
  :root { --fact: 9.5rem; }
  figure, .table { padding: .7rem; }
  img { padding: 0; }
  th, td { padding: .3rem .5rem; }
}
@media print {
  body { background: none; max-width: none; }
  figure, .table { break-inside: avoid; }
}
"""
