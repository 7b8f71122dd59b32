"""Values of a manifest's columns: conversion and column types."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import BuildError
from pipeline.schema import PARAMETERS, SOURCES

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    columns: dict[str, pa.DataType]
    rows: Callable[[], Iterator[Row]]


def convert_value(name: str, value: Any, where: str) -> Any:
    """A parameter's value as its column holds it (other columns' as they are); empty text is nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    wanted = PARAMETERS.get(name)
    if wanted is None:
        return value
    try:
        if pa.types.is_string(wanted):
            return str(value)
        if pa.types.is_floating(wanted):
            return float(value)
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(value)
    except (TypeError, ValueError) as error:
        kind = "a number" if pa.types.is_floating(wanted) else "a whole number"
        raise BuildError(f'{where}: {name} is "{value}"; give {kind}') from error


def wider_type(kind: str, value: Any) -> str:
    """The narrowest of nothing < int64 < double < string that holds what was seen, and this value."""
    text = "" if value is None else str(value).strip()
    found = "string"
    if not text:
        found = "nothing"
    elif re.fullmatch(r"-?(0|[1-9]\d{0,17})", text):
        found = "int64"
    elif re.fullmatch(r"-?\d+(\.\d*)?([eE][-+]?\d+)?|-?\.\d+", text) and not re.match(r"-?0\d", text):
        found = "double"
    order = ("nothing", "int64", "double", "string")
    return max(kind, found, key=order.index)


def column_type(name: str, kind: str) -> pa.DataType:
    if name in PARAMETERS:
        return PARAMETERS[name]
    if name == "id" or name in SOURCES:
        return pa.string()
    return {"int64": pa.int64(), "double": pa.float64()}.get(kind, pa.string())


def as_column_type(value: Any, wanted: pa.DataType) -> Any:
    if value is None or pa.types.is_null(wanted):
        return None
    if pa.types.is_string(wanted):
        return str(value)
    return int(value) if pa.types.is_integer(wanted) else float(value)
