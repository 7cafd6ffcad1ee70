"""Tables of results: their rounding for the eye, and CSV in full precision."""

import csv
import dataclasses
import io
import itertools
import math
import numbers
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_MISSING = "&ndash;"


class Spread(NamedTuple):
    """A cell "mean ± std". In the CSV it takes two columns."""

    mean: float
    std: float


Cell = str | float | int | None | Spread


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; the first cell of a row is its name.

    The page rounds numbers by their column's title: one decimal if it holds "%" (cells are in
    percent), three for p-values, if it begins with the word "p", else four significant digits
    of the column's largest number.

    Attributes:
      name: of the CSV file: letters, digits, "_" and "-".
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def column(self, index: int) -> list[Cell]:
        return [row[index] for row in self.rows]


def to_csv(table: Table) -> str:
    """A table as CSV text in full precision. None is an empty cell, NaN is "nan".

    A column with a `Spread` in it becomes two, "X" and "X std".
    """
    spreads = [
        any(isinstance(cell, Spread) for cell in table.column(index))
        for index in range(len(table.columns))
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = [
        [column, f"{column} std"] if spread else [column]
        for column, spread in zip(table.columns, spreads, strict=True)
    ]
    writer.writerow(itertools.chain.from_iterable(header))
    for row in table.rows:
        cells = []
        for cell, spread in zip(row, spreads, strict=True):
            parts = (cell if isinstance(cell, Spread) else (cell, None)) if spread else (cell,)
            cells += [_plain(part) for part in parts]
        writer.writerow(cells)
    return text.getvalue()


def format_cell(cell: Cell, column: str = "", decimals: int | None = None) -> str:
    """A cell as HTML text, rounded as its column's title asks (see `Table`).

    Other fractions get `decimals`, or four significant digits where it is None.
    """
    if isinstance(cell, Spread):
        mean, std = (format_cell(part, column, decimals) for part in cell)
        return mean if mean == _MISSING else f"{mean} &plusmn; {std}"
    cell = _plain(cell)
    if cell is None or cell != cell:
        return _MISSING
    if isinstance(cell, str):
        return escape(cell)
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if math.isinf(cell):
        text = "&infin;" if cell > 0 else "-&infin;"
    elif "%" in column:
        text = f"{cell:.1f}"
    elif re.match(r"p\b", column):
        text = "&lt; 0.001" if cell < 0.001 else f"{cell:.3f}"
    elif isinstance(cell, int):
        text = str(cell)
    else:
        text = f"{cell:.4g}" if decimals is None else f"{cell:.{decimals}f}"
    return text.replace("-", "&minus;")


def column_decimals(cells: Sequence[Cell]) -> int | None:
    """Decimals that give the largest of a column's numbers four digits, and lose none of them."""
    parts = [part for cell in cells for part in (cell if isinstance(cell, Spread) else (cell,))]
    sizes = [abs(part) for part in map(_plain, parts) if isinstance(part, numbers.Real)]
    sizes = [size for size in sizes if size and math.isfinite(size)]
    if not sizes:
        return None
    decimals = max(0, 3 - math.floor(math.log10(max(sizes))))
    return decimals if min(sizes) >= 10**-decimals else None


def is_numeric(cells: Sequence[Cell]) -> bool:
    """Whether a column holds numbers and nothing else but gaps."""
    present = [_plain(cell) for cell in cells if cell is not None]
    return bool(present) and all(isinstance(cell, numbers.Real | Spread) for cell in present)


def _plain(cell: Cell) -> str | bool | int | float | None:
    """A NumPy or JAX scalar as a Python one."""
    return cell.item() if hasattr(cell, "item") else cell
