"""What manifests are made of: CSV, JSONL, text and Parquet files, folders of pictures, and prompt templates.

A source knows its columns before its rows are read, so that any number of rows can be written as they come. Its rows
may lack an `id`; `manifest_build` gives them one.
"""

import csv
import fnmatch
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pyarrow as pa

from pipeline import storage
from pipeline.errors import BuildError
from pipeline.manifest.read import read_batches, read_schema
from pipeline.manifest.values import Row, Source, as_column_type, column_type, convert_value, wider_type
from pipeline.schema import PARAMETERS

PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


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
    raise BuildError(f"{storage.redact_url(url)}: cannot tell what it is; name it .csv, .tsv, .jsonl, .txt or .parquet")


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
        raise BuildError(f"{storage.redact_url(url)}: no picture was found there ({', '.join(PICTURE_SUFFIXES)})")
    return Source(columns={"image": pa.string()}, rows=lambda: ({"image": picture} for picture in found))


# ---- files


def read_lines(url: str) -> Iterator[str]:
    """Lines of UTF-8 text, with or without a byte order mark."""
    filesystem, path = storage.locate(url)
    try:
        with filesystem.open(path, "r", encoding="utf-8-sig", newline="") as stream:
            yield from stream  # type: ignore[misc]
    except UnicodeDecodeError as error:
        raise BuildError(f"{storage.redact_url(url)}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise BuildError(
            f"{storage.redact_url(url)}: cannot be read; there is no such file, or access is denied"
        ) from error


def _text_rows(url: str) -> Iterator[Row]:
    return ({"prompt": line.strip()} for line in read_lines(url) if line.strip())


def _csv_rows(url: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(read_lines(url), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise BuildError(f"{storage.redact_url(url)}: two columns have one name in its first line")
        reader.fieldnames = names
        for row in reader:
            where = f"{storage.redact_url(url)}, line {reader.line_num}"
            if None in row:
                raise BuildError(f"{where}: it has more fields than the first line; quote a field that holds commas")
            yield where, row
    except csv.Error as error:
        raise BuildError(f"{storage.redact_url(url)}, line {reader.reader.line_num}: {error}") from error


def _json_rows(url: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_lines(url), 1):
        if not line.strip():
            continue
        where = f"{storage.redact_url(url)}, line {number}"
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
            kinds[name] = wider_type(kinds.get(name, "nothing"), value)
    if not kinds:
        raise BuildError(f"{storage.redact_url(url)}: holds no row")
    _check_prompt(url, list(kinds), prompt_column)
    names = {name: "prompt" if name == prompt_column else name for name in kinds}
    columns = {names[name]: column_type(names[name], kind) for name, kind in kinds.items()}

    def rows() -> Iterator[Row]:
        for where, row in read():
            renamed = ((names[name], value) for name, value in row.items())
            yield {name: as_column_type(convert_value(name, value, where), columns[name]) for name, value in renamed}

    return Source(columns=columns, rows=rows)


def _check_prompt(url: str, columns: list[str], prompt_column: str) -> None:
    if prompt_column in columns or (prompt_column == "prompt" and "image" in columns):
        return
    there = ", ".join(columns)
    raise BuildError(
        f'{storage.redact_url(url)}: has no column "{prompt_column}" (there are {there}); '
        "say which holds the prompts with --prompt-column"
    )


def _from_parquet(url: str, prompt_column: str) -> Source:
    schema = read_schema(url)
    _check_prompt(url, schema.names, prompt_column)
    names = {name: "prompt" if name == prompt_column else name for name in schema.names}
    columns = {names[name]: PARAMETERS.get(names[name], schema.field(name).type) for name in schema.names}
    if "id" in columns:
        columns["id"] = pa.string()

    def rows() -> Iterator[Row]:
        count = itertools.count()
        for batch in read_batches(url, rows=1024):
            for row in batch.to_pylist():
                where = f"{storage.redact_url(url)}, row {next(count)}"
                yield {names[name]: convert_value(names[name], value, where) for name, value in row.items()}

    return Source(columns=columns, rows=rows)


# ---- folders


def _inside(picture: str, folder: str) -> str:
    filesystem, root = storage.locate(folder)
    return str(filesystem._strip_protocol(picture)).removeprefix(root.rstrip("/") + "/")


def _is_picture(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return path.lower().endswith(PICTURE_SUFFIXES) and not hidden
