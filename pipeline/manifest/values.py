"""Conversion of values to the types of a manifest's columns."""

import json
import re
from typing import Any

import pyarrow as pa

from pipeline.adapters import adapter_weights
from pipeline.errors import BuildError
from pipeline.manifest.arrow_values import Unreadable
from pipeline.schema import PARAMETERS, SOURCES


def convert_value(name: str, value: Any, location: str) -> Any:
    """Convert a parameter's value to the type of its column; other columns stay as they are.

    Empty text is a value where text is expected. It is None where a number is, and as an id or an image.
    BuildError with `location` if the value cannot be converted."""
    if isinstance(value, str):
        _check_text(name, value, location)
    target = PARAMETERS.get(name)
    is_text = pa.types.is_string(target) if target is not None else name != "id" and name not in SOURCES
    if value is None or (not is_text and isinstance(value, str) and not value.strip()):
        return None
    if target is None:
        return value
    if name == "loras":
        return _loras(value, location)
    try:
        if pa.types.is_string(target):
            return str(value)
        return float(value) if pa.types.is_floating(target) else _whole_number(value, _limits(name, target))
    except (TypeError, ValueError, OverflowError) as error:
        kind = "a number" if pa.types.is_floating(target) else f"a whole number of at most {_limits(name, target)[1]}"
        raise BuildError(f'{location}: {name} is "{value}"; give {kind}') from error


def _loras(value: Any, location: str) -> list[dict[str, Any]]:
    """Return a row's LoRAs as the column has them, given such a list, JSON of it, or `name:weight, name:weight`."""
    try:
        items = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
        return [used._asdict() for used in adapter_weights(items)]
    except (TypeError, ValueError) as error:
        raise BuildError(f"{location}: loras: {error}") from error


def _check_text(name: str, value: str, location: str) -> None:
    """BuildError for text that no UTF-8 file can hold: half of a surrogate pair, or bytes in another encoding."""
    if isinstance(value, Unreadable):
        raise BuildError(f"{location}: {name} is not UTF-8 text; write it in UTF-8")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ascii(value[error.start])[1:-1]
        raise BuildError(f"{location}: {name} has {code}, half of a character (a lone surrogate); remove it") from error


def _whole_number(value: Any, limits: tuple[int, int]) -> int:
    """Return an integer, also of text such as 1.0, which pandas writes for a column with missing values."""
    if isinstance(value, bool):
        raise ValueError
    is_integer = isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+\s*", value)
    number = float(value) if isinstance(value, str) and not is_integer else value
    if (isinstance(number, float) and not number.is_integer()) or not limits[0] <= int(number) <= limits[1]:
        raise ValueError
    return int(number)


def _limits(name: str, target: pa.DataType) -> tuple[int, int]:
    bits = target.bit_width - 1
    return -(2**bits), 2**64 - 1 if name == "seed" else 2**bits - 1


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
    if pa.types.is_nested(target):
        return value
    is_number = pa.types.is_integer(target) or pa.types.is_floating(target)
    if value is None or pa.types.is_null(target) or (is_number and not str(value).strip()):
        return None
    if pa.types.is_string(target):
        return str(value)
    return int(value) if pa.types.is_integer(target) else float(value)
