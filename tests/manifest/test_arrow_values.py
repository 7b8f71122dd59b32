"""Columns of every Arrow type become plain, and every value has a Python value and a JSON form."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings

from pipeline.manifest.arrow_values import (
    Unreadable,
    column_values,
    plain_array,
    plain_table,
    plain_type,
    row_to_json,
    rows_to_json,
)
from tests.arrow_columns import columns


@settings(max_examples=200)
@given(columns())
def test_every_column_becomes_plain_and_keeps_its_values(column: pa.Array) -> None:
    plain = plain_array(column)
    plain.validate(full=False)
    assert plain.type == plain_type(column.type)
    assert [value.is_valid for value in plain] == [value.is_valid for value in column]
    table = plain_table(pa.table({"c": column}))
    for kernel in (lambda: table.take([3, 0]), lambda: table.filter(pa.array([True, False, True, False]))):
        assert kernel().num_rows == 2
    assert pa.concat_tables([table, table]).combine_chunks().num_rows == 8
    assert repr(column_values(plain)) == repr(column_values(table["c"]))


@settings(max_examples=200)
@given(columns())
def test_every_row_has_a_json_form_that_depends_on_the_row_alone(column: pa.Array) -> None:
    table = plain_table(pa.table({"id": list("abcd"), "c": column}))
    rows = rows_to_json(table)
    assert [json.loads(row)["id"] for row in rows] == list("abcd")
    assert rows == [rows_to_json(table.slice(index, 1))[0] for index in range(4)]
    try:
        before = [row_to_json(row) for row in table.to_pylist()]
    except Exception:  # noqa: BLE001 - such rows had no JSON form
        return
    assert rows == before


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([2**62], pa.timestamp("s")), "4611686018427387904 timestamp[s]"),
        (pa.array([5], pa.timestamp("ms", tz="Nowhere/Land")), "5 timestamp[ms, tz=Nowhere/Land]"),
        (pa.array([2**63 - 1], pa.duration("s")), "9223372036854775807 duration[s]"),
        (pa.array([[2**31 - 1]], pa.list_(pa.date32())), ["2147483647 date32[day]"]),
        (pa.array([b"caf\xe9"]).view(pa.string()), "caf\\xe9"),
    ],
    ids=str,
)
def test_a_value_that_python_does_not_have_is_text(column: pa.Array, value: Any) -> None:
    [read] = column_values(column)
    assert read == value
    assert isinstance(read[0] if isinstance(read, list) else read, Unreadable)
