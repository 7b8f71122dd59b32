"""Hypothesis strategies for Arrow columns of every type: extreme, nested, encoded, and values that are not valid."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
UNITS = ["s", "ms", "us", "ns"]
TEMPORAL = [
    *(pa.timestamp(unit, zone) for unit in UNITS[1:] for zone in (None, "UTC", "Europe/Berlin", "Nowhere/Land")),
    *(pa.duration(unit) for unit in UNITS),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
]
DECIMALS = [pa.decimal32(9, 2), pa.decimal64(18, 4), pa.decimal128(38, 10), pa.decimal256(76, 0)]


class Mood(pa.ExtensionType):
    """An extension type that no library knows."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.mood")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Mood":
        return cls(storage)


def _mask(draw: Draw, rows: int) -> pa.Array:
    return pa.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), pa.bool_())


def _nulled(draw: Draw, array: pa.Array) -> pa.Array:
    """The array with some nulls."""
    return pc.call_function("if_else", [_mask(draw, len(array)), array, pa.nulls(len(array), array.type)])


def _bytes(draw: Draw, rows: int) -> pa.Array:
    return pa.array(draw(st.lists(st.binary(max_size=9), min_size=rows, max_size=rows)), pa.binary())


def _text(draw: Draw, rows: int) -> pa.Array:
    """Strings, some of which are not UTF-8."""
    data = _bytes(draw, rows)
    return pa.Array.from_buffers(pa.string(), rows, data.buffers())


def _raw(draw: Draw, rows: int, kind: pa.DataType) -> pa.Array:
    """Values of any bits, the largest ones among them."""
    width = kind.bit_width // 8
    numbers = st.one_of(st.binary(min_size=width, max_size=width), st.just(b"\xff" * (width - 1) + b"\x7f"))
    data = b"".join(draw(st.lists(numbers, min_size=rows, max_size=rows)))
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(data)])


def _simple(draw: Draw, rows: int) -> pa.Array:
    kind = draw(st.sampled_from(["raw", "decimal", "text", "binary", "view", "bool", "null", "fixed"]))
    if kind == "raw":
        return _raw(draw, rows, draw(st.sampled_from([*INTEGERS, *TEMPORAL, pa.float16(), pa.float32(), pa.float64()])))
    if kind == "decimal":
        numbers = draw(st.lists(st.integers(-9999, 9999), min_size=rows, max_size=rows))
        return (
            pa.array(numbers, pa.int64()).cast(pa.decimal128(21, 2)).cast(draw(st.sampled_from(DECIMALS)), safe=False)
        )
    if kind == "text":
        return _text(draw, rows)
    if kind == "view":
        if draw(st.booleans()):
            return _bytes(draw, rows).cast(pa.binary_view())
        return _bytes(draw, rows).cast(pa.binary_view()).view(pa.string_view())
    if kind == "fixed":
        return _raw(draw, rows, pa.binary(3))
    return {"binary": _bytes(draw, rows), "bool": _mask(draw, rows), "null": pa.nulls(rows)}[kind]


def _list(draw: Draw, rows: int, depth: int) -> pa.Array:
    lengths = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    values = _array(draw, sum(lengths), depth - 1)
    kind = draw(st.sampled_from(["list", "large", "view", "map", "fixed"]))
    if kind == "large":
        return pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), values)
    if kind == "view":
        return pa.ListViewArray.from_arrays(offsets[:-1], pa.array(lengths, pa.int32()), values)
    if kind == "map":
        keys = pa.array([f"k{index}" for index in range(len(values))], pa.string())
        return pa.MapArray.from_arrays(offsets, keys, values)
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(_array(draw, 2 * rows, depth - 1), 2)
    return pa.ListArray.from_arrays(offsets, values)


def _encoded(draw: Draw, rows: int) -> pa.Array:
    kind = draw(st.sampled_from(["dictionary", "runs", "uuid", "json", "mood"]))
    if kind == "dictionary":
        return _text(draw, rows).dictionary_encode()
    if kind == "runs":
        return pc.call_function("run_end_encode", [_text(draw, rows)])
    if kind == "uuid":
        return pa.ExtensionArray.from_storage(pa.uuid(), _raw(draw, rows, pa.binary(16)))
    if kind == "json":
        return pa.ExtensionArray.from_storage(pa.json_(), _text(draw, rows))
    return pa.ExtensionArray.from_storage(Mood(pa.string()), _text(draw, rows))


def _array(draw: Draw, rows: int, depth: int) -> pa.Array:
    kind = draw(st.sampled_from(["simple", "simple", "nulls", "encoded", "list", "struct"] if depth else ["simple"]))
    if kind == "list":
        return _list(draw, rows, depth)
    if kind == "struct":
        children = [_array(draw, rows, depth - 1) for _ in range(2)]
        return pa.StructArray.from_arrays(children, ["x", "y"], mask=_mask(draw, rows))
    if kind == "encoded":
        return _encoded(draw, rows)
    array = _simple(draw, rows)
    plain = not pa.types.is_null(array.type) and "view" not in str(array.type)
    return _nulled(draw, array) if kind == "nulls" and plain else array


@st.composite
def columns(draw: Draw, rows: int = 4, depth: int = 2) -> pa.Array:
    """Arrays of any type with any values."""
    array = _array(draw, rows + 1, depth)
    return array[1:]
