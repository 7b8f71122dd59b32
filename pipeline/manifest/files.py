"""The files of a manifest: a Parquet file, a folder of Parquet files, or the output of a finished run."""

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ManifestError
from pipeline.schema import DATA, OUTPUT, PARAMETERS, PROVENANCE

_SUFFIX: Final = ".parquet"
_REUSED_COLUMNS: Final = frozenset({"id", "image", "prompt", "negative_prompt", "seed"})
"""The columns of a run's output that are read when it serves as a manifest, besides those that no run writes."""
_NULL_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"
_INT32: Final = re.compile(r"-?\d{1,10}")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A Parquet file of a manifest, and the values that the folders of its path give: `sampler=ddim/part.parquet`."""

    url: str
    partition: tuple[tuple[str, str | None], ...] = ()
    """Pairs of a column and its value as text, in the order of the folders."""


def manifest_files(path: str) -> list[ManifestFile]:
    """Return the Parquet files of a manifest, sorted by name. ManifestError if there is none.

    As in pyarrow and Spark, files and folders whose names start with `_` or `.` are not part of a folder."""
    try:
        location = storage.join(path, DATA) if is_run_output(path) else path
        if storage.is_folder(location):
            files = [_file_in_folder(url, location) for url in storage.list_files(location) if _is_part(url, location)]
            if not files:
                raise ManifestError(f"{storage.redact_url(path)}: the folder contains no {_SUFFIX} file")
            return files
        if not storage.exists(path):
            raise ManifestError(f"{storage.redact_url(path)}: there is no such file or folder")
    except storage.StorageError as error:
        raise ManifestError(str(error)) from error
    return [ManifestFile(location)]


def is_run_output(path: str) -> bool:
    """Return True if a manifest is the output of a finished run. ManifestError if the run has not finished."""
    run = storage.join(path, "run.json")
    if path.endswith(_SUFFIX) or not storage.exists(run) or not storage.is_folder(storage.join(path, DATA)):
        return False
    try:
        status = json.loads(storage.read_bytes(run))["status"]
    except (ValueError, KeyError, TypeError):
        status = None
    if status != "finished":
        raise ManifestError(
            f"{storage.redact_url(path)}: the run of this output has not finished; repeat its command to finish it"
        )
    return True


def excluded_columns(path: str) -> frozenset[str]:
    """Return the columns to ignore if the manifest is a run's output: the record of how its images were made."""
    return frozenset({*OUTPUT, *PROVENANCE, *PARAMETERS} - _REUSED_COLUMNS) if is_run_output(path) else frozenset()


def partition_types(files: Sequence[ManifestFile]) -> dict[str, pa.DataType]:
    """Return the type of each column that folders give, by pyarrow's rule: int32 if all values are, else string.

    `id` and the columns of PARAMETERS have their own types. ManifestError if a value does not have its type."""
    values: dict[str, set[str]] = {}
    for file in files:
        for name, value in file.partition:
            values.setdefault(name, set()).update(() if value is None else (value,))
    types = {}
    for name, texts in values.items():
        types[name] = pa.string() if name == "id" else PARAMETERS.get(name) or _inferred_type(texts)
        for text in texts:
            try:
                pa.scalar(text).cast(types[name])
            except pa.ArrowException as error:
                raise ManifestError(f"the folder {name}={text}: {name} must be {types[name]}") from error
    return types


def _inferred_type(texts: set[str]) -> pa.DataType:
    are_integers = bool(texts) and all(_INT32.fullmatch(text) and -(2**31) <= int(text) < 2**31 for text in texts)
    return pa.int32() if are_integers else pa.string()


def _file_in_folder(url: str, folder: str) -> ManifestFile:
    pairs: dict[str, str | None] = {}
    for part in posixpath.dirname(storage.path_below(url, folder)).split("/"):
        name, equals, text = part.partition("=")
        name, value = unquote(name), None if text == _NULL_PARTITION else unquote(text)
        if not equals or not name:
            continue
        if name in pairs:
            raise ManifestError(f'{storage.redact_url(url)}: its folders give "{name}" twice; keep one')
        pairs[name] = value
    return ManifestFile(url, tuple(pairs.items()))


def _is_part(url: str, folder: str) -> bool:
    """Return True for a Parquet file that is not hidden; `_NAME=VALUE` is a column's folder, as in Spark."""
    parts = storage.path_below(url, folder).split("/")
    hidden = any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts)
    return url.lower().endswith(_SUFFIX) and not hidden
