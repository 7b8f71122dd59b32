"""Conversion of values to the types of a manifest's columns."""

import re
from typing import Any

import pyarrow as pa

from pipeline.errors import BuildError
from pipeline.schema import PARAMETERS, SOURCES


def convert_value(name: str, value: Any, location: str) -> Any:
    """Convert a parameter's value to the type of its column. Empty text becomes None; other columns stay as they are.

    BuildError with `location` if the value cannot be converted."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    target = PARAMETERS.get(name)
    if target is None:
        return value
    try:
        if pa.types.is_string(target):
            return str(value)
        if pa.types.is_floating(target):
            return float(value)
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(value)
    except (TypeError, ValueError) as error:
        kind = "a number" if pa.types.is_floating(target) else "a whole number"
        raise BuildError(f'{location}: {name} is "{value}"; give {kind}') from error


def wider_type(kind: str, value: Any) -> str:
    """Return the narrowest of nothing < int64 < uint64 < double < string that holds both `kind` and this value.

    uint64 stands for whole numbers of which one is over 2**63 - 1: the seeds of other programs."""
    text = "" if value is None else str(value).strip()
    value_kind = "string"
    if not text:
        value_kind = "nothing"
    elif re.fullmatch(r"-?(0|[1-9]\d{0,19})", text) and -(2**63) <= int(text) < 2**64:
        value_kind = "int64" if int(text) < 2**63 else "uint64"
    elif re.fullmatch(r"-?\d+(\.\d*)?([eE][-+]?\d+)?|-?\.\d+", text) and not re.match(r"-?0\d", text):
        value_kind = "double"
    order = ("nothing", "int64", "uint64", "double", "string")
    return max(kind, value_kind, key=order.index)


def column_type(name: str, kind: str) -> pa.DataType:
    """Return the Arrow type of a column whose values are of a kind of `wider_type`."""
    if name == "seed" and kind == "uint64":
        return pa.uint64()
    if name in PARAMETERS:
        return PARAMETERS[name]
    if name == "id" or name in SOURCES:
        return pa.string()
    return {"int64": pa.int64(), "uint64": pa.float64(), "double": pa.float64()}.get(kind, pa.string())


def as_column_type(value: Any, target: pa.DataType) -> Any:
    """Convert a value to the Python type for an Arrow type: None, str, int or float."""
    if value is None or pa.types.is_null(target):
        return None
    if pa.types.is_string(target):
        return str(value)
    return int(value) if pa.types.is_integer(target) else float(value)
