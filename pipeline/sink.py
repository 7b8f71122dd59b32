"""The Datasink: writes parts of the output, and commits each by its ledger entry."""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.datasource.datasink import WriteResult

from pipeline import storage
from pipeline.config import Store, Task
from pipeline.ledger import DATA, FAILED_FOLDER, FAILED_STATUS, OK, entry_bytes, entry_url, part_key, row_hashes
from pipeline.schema import FAILED, IMAGE_TYPE, MAX_ROW_GROUP_ROWS
from pipeline.stages import ROW, Report, output_schema

MAX_FILE_BYTES: Final = 256 * 2**20
"""About how large a data file may become."""

_HUGGING_FACE: Final = {"info": {"features": {"image": {"_type": "Image"}}}}
"""What makes `datasets` decode the column `image`."""


class LedgerDatasink(Datasink[tuple[int, int]]):
    """Writes rows as EncodeImages gives them; a part's ledger entry is its commit.

    A part's name is a hash of its sorted row ids. If its ledger entry stands, there is nothing to do: a task that Ray
    runs again writes nothing twice. Else the failed rows are written, then the pictures, last the entry: each file by
    one PUT or one rename, so that no reader sees half of one."""

    def __init__(
        self,
        output: str,
        manifest: pa.Schema,
        report: Report,
        *,
        fence: str | None = None,
        rows_a_file: int = 1,
        store: Store = "parquet",
        task: Task = "generate",
    ) -> None:
        """`fence`: a file whose existence says that the output belongs to another run by now. `rows_a_file`: small
        blocks are put together until they have as many. `store`: "files" for pictures outside of the Parquet."""
        self.output = output
        self._fence, self._rows_a_file, self._store = fence, rows_a_file, store
        self.report = report
        self.ok = self.failed = 0
        """Rows written, once the run is complete."""
        self._schema = output_schema(manifest, task)

    def on_write_complete(self, write_result: WriteResult[tuple[int, int]]) -> None:
        self.ok = sum(ok for ok, _ in write_result.write_returns)
        self.failed = sum(failed for _, failed in write_result.write_returns)

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_a_file

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> tuple[int, int]:
        """The numbers of good and of failed rows in this part."""
        tables = [block for block in blocks if block.num_rows]
        if not tables:
            return 0, 0
        started = time.perf_counter()
        table = pa.concat_tables(tables)
        failed = table.filter(table["error_type"].is_valid())
        good = table.filter(table["error_type"].is_null())
        entry = entry_url(self.output, key := part_key(table["id"].to_pylist()))
        if not storage.exists(entry):
            self._write_part(key, entry, good, failed)
        spent = time.perf_counter() - started
        self.report({"ok": good.num_rows, "failed": failed.num_rows, "write_seconds": spent, **storage.taken_faults()})
        return good.num_rows, failed.num_rows

    def _stored(self, rows: pa.Table) -> pa.Table:
        """The rows with their pictures' bytes in files of the output, at the paths that they have."""
        pictures: list[Any] = []
        for picture in rows["image"]:
            image = picture.as_py()
            storage.write_bytes(storage.join(self.output, image["path"]), image["bytes"])
            pictures.append({**image, "bytes": None})
        place = rows.schema.get_field_index("image")
        return rows.set_column(place, "image", pa.array(pictures, IMAGE_TYPE))

    def _write_part(self, key: str, entry: str, good: pa.Table, failed: pa.Table) -> None:
        entries: list[dict[str, Any]] = []
        if failed.num_rows:
            file = f"{FAILED_FOLDER}/{key}.parquet"
            storage.write_bytes(storage.join(self.output, file), failed_file(failed))
            entries += _entries(failed, FAILED_STATUS, file)
        good = self._stored(good) if self._store == "files" else good
        for number, part in enumerate(_in_files(good)):
            file = f"{DATA}/{key}{f'-{number}' if number else ''}.parquet"
            storage.write_bytes(storage.join(self.output, file), data_file(part, self._schema))
            entries += _entries(part, OK, file)
        if self._fence is not None and storage.exists(self._fence):
            raise storage.StorageError(f"{storage.shown(self.output)}: another run has taken this output over")
        storage.write_bytes(entry, entry_bytes(entries))


def _entries(rows: pa.Table, status: str, file: str) -> list[dict[str, Any]]:
    hashes = row_hashes(rows[ROW].to_pylist())
    return [
        {"id": row_id, "status": status, "file": file, "row": bytes(digest).ljust(16, b"\0")}
        for row_id, digest in zip(rows["id"].to_pylist(), hashes, strict=True)
    ]


def data_file(rows: pa.Table, schema: pa.Schema) -> bytes:
    """A Parquet file of good rows: pictures as they are, the rest in zstd, at most MAX_ROW_GROUP_ROWS a row group."""
    narrow = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # what Hugging Face's `Image` is, to the letter
    if "image" in schema.names:
        schema = pa.schema(
            [field.with_type(narrow) if field.name == "image" else field for field in schema],
            metadata={"huggingface": json.dumps(_HUGGING_FACE)},
        )
    names = [leaf for field in schema for leaf in _leaves(field)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression={name: "none" if name == "image.bytes" else "zstd" for name in names},  # pyright: ignore
        use_dictionary=[name for name in names if name not in ("image.bytes", "id", "sha256")],  # pyright: ignore
        write_statistics=[name for name in names if name != "image.bytes"],  # pyright: ignore
    ) as writer:
        for start in range(0, rows.num_rows, MAX_ROW_GROUP_ROWS):
            group = rows.slice(start, MAX_ROW_GROUP_ROWS).select(schema.names)
            group = group.take(pa.array(range(group.num_rows)))  # a copy: a slice would keep offsets of over 2 GiB
            writer.write_table(group.cast(schema))
    return sink.getvalue().to_pybytes()


def _leaves(field: pa.Field) -> list[str]:
    """The names that Parquet gives to what a column stores."""
    kind = field.type
    if pa.types.is_struct(kind):
        return [f"{field.name}.{leaf}" for inner in kind for leaf in _leaves(inner)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [f"{field.name}.list.{leaf}" for leaf in _leaves(kind.value_field.with_name("element"))]
    return [field.name]


def failed_file(rows: pa.Table) -> bytes:
    """A Parquet file of failed rows: what is wrong, and the row as it came."""
    columns = {"id": "id", "error_type": "error_type", "error_message": "error_message", "row": ROW}
    table = pa.table({name: rows[columns[name]].cast(kind) for name, kind in FAILED.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=MAX_ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def _in_files(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows in runs of at most MAX_FILE_BYTES of pictures; where there are none, of all that they hold."""
    if "image" not in rows.column_names:
        most = max(1, MAX_FILE_BYTES * rows.num_rows // max(rows.nbytes, 1))
        yield from (rows.slice(start, most) for start in range(0, rows.num_rows, most))
        return
    start = size = 0
    lengths = pc.call_function("binary_length", [rows["image"].combine_chunks().field("bytes")]).to_pylist()
    for index, length in enumerate(lengths):
        length = length or 0  # null where they are files
        if index > start and size + length > MAX_FILE_BYTES:
            yield rows.slice(start, index - start)
            start, size = index, 0
        size += length
    if rows.num_rows > start:
        yield rows.slice(start)
