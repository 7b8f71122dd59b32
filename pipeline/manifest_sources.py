"""What manifests are made of: CSV, JSONL, text and Parquet files, folders of pictures, and prompt templates.

A source knows its columns before its rows are read, so that any number of rows can be written as they come. Its rows
may lack an `id`; `manifest_build` gives them one.
"""

import csv
import fnmatch
import itertools
import json
import math
import random
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline import manifest, storage
from pipeline.schema import PARAMETERS, SOURCES

PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Row = dict[str, Any]


class BuildError(ValueError):
    """A source that no manifest can be made of; the text is one line that says where and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    columns: dict[str, pa.DataType]
    rows: Callable[[], Iterator[Row]]


def from_file(url: str, *, prompt_column: str = "prompt") -> Source:
    """A CSV, TSV, JSONL, text (one prompt a line) or Parquet file, by its suffix; `prompt_column` becomes `prompt`."""
    suffix = url.lower().rpartition(".")[2]
    if suffix == "parquet":
        return _from_parquet(url, prompt_column)
    if suffix in ("txt", "text"):
        return Source(columns={"prompt": pa.string()}, rows=lambda: _text_rows(url))
    if suffix in ("csv", "tsv"):
        delimiter = "\t" if suffix == "tsv" else ","
        return _typed(url, lambda: _csv_rows(url, delimiter), prompt_column)
    if suffix in ("jsonl", "ndjson", "json"):
        return _typed(url, lambda: _json_rows(url), prompt_column)
    raise BuildError(f"{storage.shown(url)}: cannot tell what it is; name it .csv, .tsv, .jsonl, .txt or .parquet")


def from_folder(url: str, manifest_url: str, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Source:
    """Every picture below a folder, sorted by path; globs match the path inside it (`*` matches `/` too).

    Paths are written relative to the manifest where they lie below its folder, else as they are."""
    home = storage.parent(manifest_url).rstrip("/") + "/"
    found = []
    for picture in storage.list_files(url):
        inside = _inside(picture, url)
        wanted = any(fnmatch.fnmatch(inside, glob) for glob in include) if include else _is_picture(inside)
        if wanted and not any(fnmatch.fnmatch(inside, glob) for glob in exclude):
            found.append(picture.removeprefix(home))
    if not found:
        raise BuildError(f"{storage.shown(url)}: no picture was found there ({', '.join(PICTURE_SUFFIXES)})")
    return Source(columns={"image": pa.string()}, rows=lambda: ({"image": picture} for picture in found))


def from_template(
    template: str, lists: Mapping[str, Sequence[str]], *, sample: int | None = None, seed: int = 0
) -> Source:
    """Prompts of a template such as `"a {size} {colour} {shape}"`: every combination of the lists, in a fixed order
    (the last field runs fastest), or a seeded sample of `sample` different ones.

    `a(n)` becomes `a` or `an` by the word after it. A list that the template does not name must be one of the
    manifest's parameters (`sampler`, `num_inference_steps`, ...), and then varies that column. Each list becomes a
    column, so that the labels of a synthetic data set come with its pictures."""
    fields = _fields(template)
    _check_lists(fields, lists)
    names = [*fields, *(name for name in lists if name not in fields)]
    sizes = [len(lists[name]) for name in names]
    total = math.prod(sizes)
    if sample is not None and not 1 <= sample <= total:
        raise BuildError(f"a sample of {sample:,} cannot be drawn: there are {total:,} combinations")
    columns = {"prompt": pa.string()} | {name: PARAMETERS.get(name, pa.string()) for name in names}

    def rows() -> Iterator[Row]:
        chosen = range(total) if sample is None else random.Random(seed).sample(range(total), sample)
        for index in chosen:
            values = {name: lists[name][place] for name, place in zip(names, _places(index, sizes), strict=True)}
            typed = {name: convert(name, value, "a list") for name, value in values.items()}
            yield {"prompt": _with_articles(template.format_map(values)), **typed}

    return Source(columns=columns, rows=rows)


def read_list(text: str) -> list[str]:
    """The values of a list as it is given: `red,green,blue`, or `@FILE` with one a line."""
    if text.startswith("@"):
        return [line.strip() for line in _lines(text[1:]) if line.strip()]
    return [value.strip() for value in text.split(",") if value.strip()]


def convert(name: str, value: Any, where: str) -> Any:
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


# ---- files


def _lines(url: str) -> Iterator[str]:
    """Lines of UTF-8 text, with or without a byte order mark."""
    filesystem, path = storage.locate(url)
    try:
        with filesystem.open(path, "r", encoding="utf-8-sig", newline="") as stream:
            yield from stream  # type: ignore[misc]
    except UnicodeDecodeError as error:
        raise BuildError(f"{storage.shown(url)}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise BuildError(f"{storage.shown(url)}: cannot be read; there is no such file, or access is denied") from error


def _text_rows(url: str) -> Iterator[Row]:
    return ({"prompt": line.strip()} for line in _lines(url) if line.strip())


def _csv_rows(url: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(_lines(url), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise BuildError(f"{storage.shown(url)}: two columns have one name in its first line")
        reader.fieldnames = names
        for row in reader:
            where = f"{storage.shown(url)}, line {reader.line_num}"
            if None in row:
                raise BuildError(f"{where}: it has more fields than the first line; quote a field that holds commas")
            yield where, row
    except csv.Error as error:
        raise BuildError(f"{storage.shown(url)}, line {reader.reader.line_num}: {error}") from error


def _json_rows(url: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(url), 1):
        if not line.strip():
            continue
        where = f"{storage.shown(url)}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BuildError(f"{where}: is no JSON ({error.msg}); one object a line is read") from error
        if not isinstance(row, dict):
            raise BuildError(f"{where}: is no JSON object; one object a line is read")
        nested = {name: json.dumps(value) for name, value in row.items() if isinstance(value, dict | list)}
        yield where, row | nested


def _typed(url: str, read: Callable[[], Iterator[tuple[str, Row]]], prompt_column: str) -> Source:
    """Rows whose own columns' types are found by reading them once before they are read to be written."""
    kinds: dict[str, str] = {}
    for _, row in read():
        for name, value in row.items():
            kinds[name] = _wider(kinds.get(name, "nothing"), value)
    if not kinds:
        raise BuildError(f"{storage.shown(url)}: holds no row")
    _check_prompt(url, list(kinds), prompt_column)
    names = {name: "prompt" if name == prompt_column else name for name in kinds}
    columns = {names[name]: _column_type(names[name], kind) for name, kind in kinds.items()}

    def rows() -> Iterator[Row]:
        for where, row in read():
            renamed = ((names[name], value) for name, value in row.items())
            yield {name: _as_kind(convert(name, value, where), columns[name]) for name, value in renamed}

    return Source(columns=columns, rows=rows)


def _check_prompt(url: str, columns: list[str], prompt_column: str) -> None:
    if prompt_column in columns or (prompt_column == "prompt" and "image" in columns):
        return
    there = ", ".join(columns)
    raise BuildError(
        f'{storage.shown(url)}: has no column "{prompt_column}" (there are {there}); say which holds the prompts with '
        "--prompt-column"
    )


def _wider(kind: str, value: Any) -> str:
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


def _column_type(name: str, kind: str) -> pa.DataType:
    if name in PARAMETERS:
        return PARAMETERS[name]
    if name == "id" or name in SOURCES:
        return pa.string()
    return {"int64": pa.int64(), "double": pa.float64()}.get(kind, pa.string())


def _as_kind(value: Any, wanted: pa.DataType) -> Any:
    if value is None or pa.types.is_null(wanted):
        return None
    if pa.types.is_string(wanted):
        return str(value)
    return int(value) if pa.types.is_integer(wanted) else float(value)


def _from_parquet(url: str, prompt_column: str) -> Source:
    schema = manifest.read_schema(url)
    _check_prompt(url, schema.names, prompt_column)
    names = {name: "prompt" if name == prompt_column else name for name in schema.names}
    columns = {names[name]: PARAMETERS.get(names[name], schema.field(name).type) for name in schema.names}
    if "id" in columns:
        columns["id"] = pa.string()

    def rows() -> Iterator[Row]:
        count = itertools.count()
        for batch in manifest.read_batches(url, rows=1024):
            for row in batch.to_pylist():
                where = f"{storage.shown(url)}, row {next(count)}"
                yield {names[name]: convert(names[name], value, where) for name, value in row.items()}

    return Source(columns=columns, rows=rows)


# ---- folders


def _inside(picture: str, folder: str) -> str:
    filesystem, root = storage.locate(folder)
    return str(filesystem._strip_protocol(picture)).removeprefix(root.rstrip("/") + "/")


def _is_picture(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return path.lower().endswith(PICTURE_SUFFIXES) and not hidden


# ---- templates


def _fields(template: str) -> list[str]:
    """The template's fields in the order in which they first stand there."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BuildError(f'the template "{template}": {error}; write a brace as {{{{ or }}}}') from error
    for _, name, spec, conversion in parsed:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise BuildError(f'the template "{template}": a field is a plain name such as {{colour}}, not {{{name}}}')
    return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


def _check_lists(fields: list[str], lists: Mapping[str, Sequence[str]]) -> None:
    for name in fields:
        if name not in lists:
            raise BuildError(
                f"the template's {{{name}}} has no list; give --list {name}=ONE,TWO or --list {name}=@FILE"
            )
    for name, values in lists.items():
        if not values:
            raise BuildError(f'the list "{name}" is empty')
        if name not in fields and name not in PARAMETERS:
            raise BuildError(f'the list "{name}" is used nowhere: the template has no {{{name}}}')
        if name in ("id", "prompt", *SOURCES):
            raise BuildError(f'a list cannot be named "{name}": the manifest has a column of this name')


def _places(index: int, sizes: list[int]) -> list[int]:
    places = []
    for size in reversed(sizes):
        index, place = divmod(index, size)
        places.append(place)
    return places[::-1]


def _with_articles(prompt: str) -> str:
    return re.sub(r"\b([aA])\(n\)(\s+)(?=(\w))", lambda m: m[1] + ("n" if m[3] in "aeiouAEIOU" else "") + m[2], prompt)
