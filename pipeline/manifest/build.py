"""Writing manifests: ids, constants, copies, and a Parquet file that is there whole or not at all.

An id is made of what makes the picture (prompt, parameters, source), so a manifest that is built again from a longer
list gives the rows that it had their old ids, hence their old seeds and pictures.
"""

import hashlib
import itertools
import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import BuildError
from pipeline.manifest.validate import duplicate_ids
from pipeline.manifest.values import Row, Source, convert_value
from pipeline.schema import MANIFEST_VERSION, PARAMETERS, SOURCES

_ROW_GROUP_ROWS: Final = 8192
_SLUG_LETTERS: Final = 40


def build(
    source: Source,
    output: str,
    *,
    images_per_prompt: int = 1,
    constants: Mapping[str, Any] | None = None,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write a source's rows as a manifest; the number of rows.

    `constants` fill a column where the source says nothing. A row that is repeated gets an id with a number after it,
    and where it names a seed, the next seed. BuildError: no row, or an id that stands twice."""
    if not output.endswith(".parquet"):
        raise BuildError(f"{storage.redact_url(output)}: name the manifest .parquet")
    given = {name: convert_value(name, value, "--set") for name, value in (constants or {}).items()}
    rows = itertools.islice(_finished(source.rows(), given, images_per_prompt), limit)
    schema = _schema(source.columns | {name: PARAMETERS.get(name, pa.string()) for name in given})
    with tempfile.TemporaryDirectory(prefix="latentmill-") as folder:
        path = Path(folder) / "manifest.parquet"
        count = _write(rows, schema, path, progress)
        if not count:
            raise BuildError("the source holds no row")
        if duplicates := duplicate_ids(str(path)):
            some = ", ".join(f'"{name}"' for name in sorted(duplicates)[:3])
            raise BuildError(f"{len(duplicates)} ids stand more than once: {some}; make them unique, or leave them out")
        storage.put_file(str(path), output)
    return count


def slug(text: str) -> str:
    """Text as an id can hold it: ASCII letters, digits and hyphens, cut at a word."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return (
        words if len(words) <= _SLUG_LETTERS else words[: _SLUG_LETTERS + 1].rpartition("-")[0] or words[:_SLUG_LETTERS]
    )


def _finished(rows: Iterable[Row], constants: Mapping[str, Any], images_per_prompt: int) -> Iterator[Row]:
    """Rows with constants, copies and ids. Memory: about 100 bytes a row that came without an id."""
    seen: dict[int, int] = {}
    for row in rows:
        row = row | {name: value for name, value in constants.items() if row.get(name) is None}
        for copy in range(images_per_prompt):
            made = dict(row)
            if copy and made.get("seed") is not None:
                made["seed"] += copy
            if made.get("id") is None:
                made["id"] = _made_id(row, seen)
            elif copy:
                made["id"] = f"{made['id']}-{copy + 1}"
            yield made


def _made_id(row: Row, seen: dict[int, int]) -> str:
    """Readable, and the same for the same contents; `seen` numbers the rows that have the same."""
    content = {name: str(row[name]) for name in (*PARAMETERS, *SOURCES) if row.get(name) is not None}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    key = int(digest, 16)
    seen[key] = seen.get(key, 0) + 1
    words = row.get("prompt") or (row.get("image") if isinstance(row.get("image"), str) else None) or "row"
    number = f"-{seen[key]}" if seen[key] > 1 else ""
    return f"{slug(words) or 'row'}-{digest}{number}"


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """`id`, the parameters and the pictures in the order of the schema's home, then the source's own columns."""
    known = ["id", *PARAMETERS, *SOURCES]
    types = {"id": pa.string(), **columns}
    names = [*(name for name in known if name in types), *(name for name in types if name not in known)]
    metadata = {"latentmill_manifest_version": str(MANIFEST_VERSION)}
    return pa.schema([(name, types[name]) for name in names], metadata=metadata)


def _write(rows: Iterator[Row], schema: pa.Schema, path: Path, progress: Callable[[int], None]) -> int:
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP_ROWS)):
            try:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
            except (pa.ArrowException, OverflowError) as error:
                raise BuildError(f"rows {count} to {count + len(group) - 1}: {str(error).splitlines()[0]}") from error
            count += len(group)
            progress(count)
    return count
