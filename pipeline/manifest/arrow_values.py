"""Arrow columns of any type: plain types for the run, and Python values that exist for every value.

Some types (views, run-end encoding) lack kernels that a run needs, and some values (a timestamp of the year 300000,
text that is not UTF-8, a time in an unknown time zone) cannot be Python values.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Unreadable(str):
    """The textual form of a value that cannot be a Python value of its type."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type as which a run carries a column: a view as the plain type, run-end encoding as its values."""
    types = pa.types
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_run_end_encoded(kind) or (isinstance(kind, pa.BaseExtensionType) and not _is_plain(kind.storage_type)):
        return plain_type(kind.value_type if types.is_run_end_encoded(kind) else kind.storage_type)
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, plain_type(kind.value_type), kind.ordered)
    if types.is_struct(kind):
        return pa.struct([plain_field(field) for field in kind])
    if types.is_map(kind):
        return pa.map_(plain_field(kind.key_field), plain_field(kind.item_field), kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_field(kind.value_field), kind.list_size)
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain_field(kind.value_field))
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain_field(kind.value_field))
    return kind


def plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))


def plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([plain_field(field) for field in schema], metadata=schema.metadata)


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table with columns of plain types."""
    if all(_is_plain(field.type) for field in table.schema):
        return table
    columns = [pa.chunked_array(map(plain_array, column.chunks), plain_type(column.type)) for column in table.columns]
    return pa.table(columns, schema=plain_schema(table.schema))


def column_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's Python values; Unreadable where a value cannot be one."""
    try:
        return column.to_pylist()
    except Exception:  # noqa: BLE001 - whatever a value is, the row goes on
        return [scalar_value(scalar) for scalar in column]


def scalar_value(scalar: pa.Scalar) -> Any:
    """Return the Python value of a scalar; Unreadable if it cannot be one."""
    try:
        return scalar.as_py()
    except Exception:  # noqa: BLE001 - whatever the value is, the row goes on
        return _readable_form(scalar)


def rows_to_json(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """Return each row as JSON; the size stands for a binary value, and a text for a value that JSON does not have."""
    columns = {name: _json_values(column) for name, column in zip(rows.schema.names, rows.columns, strict=True)}
    return [row_to_json({name: values[index] for name, values in columns.items()}) for index in range(rows.num_rows)]


def row_to_json(row: Mapping[str, Any]) -> str:
    """Return the row as JSON; binary values are replaced by their size."""
    return json.dumps(_to_json_value(row), ensure_ascii=False, default=str)


def _is_plain(kind: pa.DataType) -> bool:
    return plain_type(kind) == kind


def plain_array(array: pa.Array) -> pa.Array:
    """Return an array as an array of its plain type."""
    kind, types = plain_type(array.type), pa.types
    if kind == array.type:
        return array
    if types.is_run_end_encoded(array.type):
        return plain_array(pc.call_function("run_end_decode", [array]))
    if isinstance(array, pa.ExtensionArray):
        return plain_array(array.storage)
    if types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, plain_array(array.dictionary), ordered=kind.ordered)
    if types.is_struct(kind):
        children = [plain_array(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if types.is_nested(kind):
        return _plain_list(array, kind)
    return array.cast(kind)


def _plain_list(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a list, list view or map with plain values; pyarrow's cast of views gives invalid arrays (26.0)."""
    types, mask = pa.types, array.is_null()
    if types.is_fixed_size_list(kind):
        values = array.values[array.offset * kind.list_size : (array.offset + len(array)) * kind.list_size]
        return pa.FixedSizeListArray.from_arrays(plain_array(values), type=kind, mask=mask)
    if types.is_map(kind):
        offsets = pa.array(array.offsets.to_numpy(), pa.int32())
        return pa.MapArray.from_arrays(offsets, plain_array(array.keys), plain_array(array.items), type=kind, mask=mask)
    if types.is_list_view(array.type) or types.is_large_list_view(array.type):
        lengths = np.where(mask.to_numpy(zero_copy_only=False), 0, array.sizes.to_numpy())
        bounds, values = np.cumsum([0, *lengths]), array.flatten()
    else:
        bounds, values = array.offsets.to_numpy(), array.values
    offsets = pa.array(bounds, pa.int64() if types.is_large_list(kind) else pa.int32())
    lists = pa.LargeListArray if types.is_large_list(kind) else pa.ListArray
    return lists.from_arrays(offsets, plain_array(values), type=kind, mask=mask)


def _json_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the values of a column for JSON; binary values of any size are not copied."""
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in _json_values(chunk)]
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        lengths = pc.call_function("binary_length", [column]).to_pylist()
        return [None if length is None else f"<{length:,} bytes>" for length in lengths]
    names = [field.name for field in kind] if pa.types.is_struct(kind) else []
    if names and len(set(names)) == len(names):
        children = [_json_values(child) for child in column.flatten()]
        valid = column.is_valid().to_pylist()
        rows = zip(valid, zip(*children, strict=True), strict=True)
        return [dict(zip(names, values, strict=True)) if given else None for given, values in rows]
    return column_values(column)


def _readable_form(scalar: pa.Scalar) -> Any:
    kind, types = scalar.type, pa.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return Unreadable(scalar.as_buffer().to_pybytes().decode("utf-8", "backslashreplace"))
    if types.is_struct(kind):
        return _pairs((field.name, scalar_value(scalar[index])) for index, field in enumerate(kind))
    if types.is_temporal(kind):
        return Unreadable(f"{scalar.value} {kind}")
    inner = getattr(scalar, "values", None)
    if isinstance(inner, pa.Array):
        return column_values(inner)
    if isinstance(value := getattr(scalar, "value", None), pa.Scalar):
        return scalar_value(value)
    return Unreadable(repr(scalar))


def _pairs(fields: Iterable[tuple[str, Any]]) -> Any:
    """Return the fields of a struct as a dict, or as pairs if a name occurs twice."""
    pairs = list(fields)
    return dict(pairs) if len(dict(pairs)) == len(pairs) else pairs


def _to_json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity and no NaN
    if isinstance(value, Mapping):
        return {key: _to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_to_json_value(inner) for inner in value]
    return value
