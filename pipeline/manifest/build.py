"""Writing manifests from a source: ids, constants, copies, and an atomic Parquet file.

The id of a row depends on its content (prompt, parameters, images). When a manifest is built again from a longer list,
old rows keep their ids, and therefore their seeds and images.
"""

import hashlib
import itertools
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import BuildError
from pipeline.manifest.duplicates import duplicate_ids
from pipeline.manifest.sources import Row, Source
from pipeline.manifest.values import column_type, convert_value, wider_type
from pipeline.schema import MANIFEST_VERSION, PARAMETERS, SOURCES

_ROW_GROUP_ROWS: Final = 8192
_MAX_SLUG_LENGTH: Final = 40


def build(
    source: Source,
    output: str,
    *,
    images_per_prompt: int = 1,
    constants: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> int:
    """Write a source's rows as a manifest and return their number.

    `constants` are the values for rows without one. Copies of a row get numbered ids and, if the row has a seed, the
    seeds after it. BuildError if there is no row, an invalid value, or an id that is not unique."""
    if not output.endswith(".parquet"):
        raise BuildError(f"{storage.redact_url(output)}: the name of a manifest must end with .parquet")
    values = {name: convert_value(name, value, "--set") for name, value in (constants or {}).items()}
    rows = itertools.islice(_complete_rows(source.rows(), values, images_per_prompt), limit)
    schema = _schema(source.columns | _constant_types(values, source), source.metadata)
    with tempfile.TemporaryDirectory(prefix="latentmill-") as folder:
        path = Path(folder) / "manifest.parquet"
        count = _write(rows, schema, path)
        if not count:
            raise BuildError("the source contains no row")
        if duplicates := duplicate_ids(str(path)):
            examples = ", ".join(f'"{name}"' for name in sorted(duplicates)[:3])
            raise BuildError(f"ids that are not unique: {len(duplicates)} ({examples}); make them unique, or omit them")
        storage.put_file(str(path), output)
    return count


def slug(text: str) -> str:
    """Return text as ASCII letters, digits and hyphens, shortened at the end of a word."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) <= _MAX_SLUG_LENGTH:
        return words
    return words[: _MAX_SLUG_LENGTH + 1].rpartition("-")[0] or words[:_MAX_SLUG_LENGTH]


def _complete_rows(rows: Iterable[Row], constants: Mapping[str, Any], images_per_prompt: int) -> Iterator[Row]:
    """Add constants, copies and ids. Memory: about 100 bytes per row that has no id of its own."""
    counts: dict[int, int] = {}
    for row in rows:
        row = row | {name: value for name, value in constants.items() if row.get(name) is None}
        for copy in range(images_per_prompt):
            completed = dict(row)
            if copy and completed.get("seed") is not None:
                completed["seed"] += copy
            if completed.get("id") is None:
                completed["id"] = _content_id(row, counts)
            elif copy:
                completed["id"] = f"{completed['id']}-{copy + 1}"
            yield completed


def _content_id(row: Row, counts: dict[int, int]) -> str:
    """Return a readable id that depends on the row's content; `counts` numbers the rows with the same content."""
    content = {name: str(row[name]) for name in (*PARAMETERS, *SOURCES) if row.get(name) not in (None, "")}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    key = int(digest, 16)
    counts[key] = counts.get(key, 0) + 1
    words = row.get("prompt") or (row.get("image") if isinstance(row.get("image"), str) else None) or "row"
    number = f"-{counts[key]}" if counts[key] > 1 else ""
    return f"{slug(words) or 'row'}-{digest}{number}"


def _constant_types(values: Mapping[str, Any], source: Source) -> dict[str, pa.DataType]:
    """Return the types of the columns that constants fill; seeds of 64 unsigned bits in the source stay such."""
    types = {
        name: column_type(name, wider_type("nothing", value)) if name in PARAMETERS else pa.string()
        for name, value in values.items()
    }
    return {name: kind for name, kind in types.items() if source.columns.get(name) != pa.uint64()}


def _schema(columns: Mapping[str, pa.DataType], metadata: Mapping[bytes, bytes]) -> pa.Schema:
    """Return `id`, the parameters and images in the order of `pipeline.schema`, then the source's other columns."""
    known = ["id", *PARAMETERS, *SOURCES]
    types = {"id": pa.string(), **columns}
    names = [*(name for name in known if name in types), *(name for name in types if name not in known)]
    version = {b"latentmill_manifest_version": str(MANIFEST_VERSION).encode()}
    return pa.schema([(name, types[name]) for name in names], metadata={**metadata, **version})


def _write(rows: Iterator[Row], schema: pa.Schema, path: Path) -> int:
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP_ROWS)):
            try:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
            except (pa.ArrowException, OverflowError) as error:
                raise BuildError(f"rows {count} to {count + len(group) - 1}: {str(error).splitlines()[0]}") from error
            count += len(group)
    return count
