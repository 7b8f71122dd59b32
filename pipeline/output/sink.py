"""The Datasink: writes parts of the output, and commits each by its ledger entry."""

import time
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data import Datasink
from ray.data.datasource.datasink import WriteResult

from pipeline import storage
from pipeline.config import Store, Task
from pipeline.manifest.identity import hash_rows
from pipeline.output.ledger import entry_bytes, entry_url, part_key
from pipeline.output.parquet import data_file, failed_file, split_into_files
from pipeline.schema import DATA, FAILED_FOLDER, FAILED_STATUS, IMAGE_TYPE, OK
from pipeline.stages.rows import ROW, Report, output_schema


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
        rows_per_file: int = 1,
        store: Store = "parquet",
        task: Task = "generate",
    ) -> None:
        """`fence`: a file whose existence says that the output belongs to another run by now. `rows_per_file`: small
        blocks are put together until they have as many. `store`: "files" for pictures outside of the Parquet."""
        self.output = output
        self._fence, self._rows_a_file, self._store = fence, rows_per_file, store
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
        self.report(
            {"ok": good.num_rows, "failed": failed.num_rows, "write_seconds": spent, **storage.take_fault_counts()}
        )
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
        for number, part in enumerate(split_into_files(good)):
            file = f"{DATA}/{key}{f'-{number}' if number else ''}.parquet"
            storage.write_bytes(storage.join(self.output, file), data_file(part, self._schema))
            entries += _entries(part, OK, file)
        if self._fence is not None and storage.exists(self._fence):
            raise storage.StorageError(f"{storage.redact_url(self.output)}: another run has taken this output over")
        storage.write_bytes(entry, entry_bytes(entries))


def _entries(rows: pa.Table, status: str, file: str) -> list[dict[str, Any]]:
    hashes = hash_rows(rows[ROW].to_pylist())
    return [
        {"id": row_id, "status": status, "file": file, "row": bytes(digest).ljust(16, b"\0")}
        for row_id, digest in zip(rows["id"].to_pylist(), hashes, strict=True)
    ]
