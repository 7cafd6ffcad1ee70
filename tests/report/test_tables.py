import csv
import io

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.report.tables import Spread, Table, column_decimals, format_cell, is_numeric, to_csv


@pytest.mark.parametrize(
    ("cell", "column", "text"),
    [
        (12.345, "accuracy (%)", "12.3"),
        (7, "share in %", "7.0"),
        (np.float32(12.345), "accuracy (%)", "12.3"),
        (jnp.float32(12.345), "accuracy (%)", "12.3"),
        (Spread(12.345, 0.06), "accuracy (%)", "12.3 &plusmn; 0.1"),
        (Spread(float("nan"), 0.06), "accuracy (%)", "&ndash;"),
        (0.0004, "p", "&lt; 0.001"),
        (0.0404, "p (Welch)", "0.040"),
        (1.0, "p-value", "1.000"),
        (0.00042, "perplexity", "0.00042"),
        (123456, "parameters", "123456"),
        (-0.123456, "R²", "&minus;0.1235"),
        (float("-inf"), "t", "&minus;&infin;"),
        (float("nan"), "t", "&ndash;"),
        (None, "t", "&ndash;"),
        (True, "aligned", "yes"),
        ("a-b <c>", "", "a-b &lt;c&gt;"),
    ],
)
def test_format_of_cells(cell, column, text):
    assert format_cell(cell, column) == text


@pytest.mark.parametrize(
    ("cells", "decimals"),
    [
        ([1.0, 0.123, None, "text", float("nan"), float("inf")], 3),
        ([2500.0, -721.5], 0),
        ([Spread(12.0, 1.2)], 2),
        ([0.0, 0.05], 5),
        ([1e-5, 10.0], None),  # the small one would vanish
        ([0.0, None], None),
    ],
)
def test_decimals_of_a_column(cells, decimals):
    assert column_decimals(cells) == decimals


def test_columns_of_numbers():
    assert is_numeric([1, None, 2.5, Spread(1, 2), np.float32(1), jnp.float32(1)])
    assert not is_numeric([1, "text"])
    assert not is_numeric([None])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\0")),
            st.floats(),
            st.integers(),
            st.floats(width=32).map(np.float32),
        ),
        max_size=5,
    )
)
def test_csv_round_trip(rows):
    table = Table("t", "T", ("a, b", 'c "d"', "e", "f"), tuple(rows))
    header, *lines = csv.reader(io.StringIO(to_csv(table), newline=""))
    assert tuple(header) == table.columns
    for (text, number, integer, single), line in zip(rows, lines, strict=True):
        assert line[0] == text
        assert int(line[2]) == integer
        np.testing.assert_array_equal([float(line[1])], [number])
        np.testing.assert_array_equal(np.float32(line[3]), single)


def test_csv_of_spreads_and_missing_cells():
    table = Table(
        "t",
        "T",
        ("population", "epoch", "test (%)", "p (Holm)"),
        (("B_T", 0, Spread(68.65, 6.7), 0.04321), ("S_U", 25, None, np.float32("nan"))),
    )
    assert to_csv(table).splitlines() == [
        "population,epoch,test (%),test (%) std,p (Holm)",
        "B_T,0,68.65,6.7,0.04321",
        "S_U,25,,,nan",
    ]
