"""The Ray Data sink: it writes the output in parts and commits each part with a ledger entry."""

import errno
import time
from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa
from ray.data import Datasink
from ray.data.datasource.datasink import WriteResult

from pipeline import storage
from pipeline.config import Store, Task
from pipeline.manifest.identity import hash_rows
from pipeline.output.image_files import image_path
from pipeline.output.ledger import encode_entry, entry_url, part_key
from pipeline.output.parquet import encode_data_file, encode_failed_file, encode_or_halve, split_by_size
from pipeline.schema import DATA, FAILED_FOLDER, FAILED_STATUS, IMAGE_TYPE, OK, ROW
from pipeline.stages.rows import Report, output_schema, with_error

_NAME_ERRNOS: Final = frozenset((errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR))
"""Errors that a file's name causes: it is too long or has characters that the file system does not have."""


class LedgerDatasink(Datasink[tuple[int, int]]):
    """Writes the rows that EncodeImages or Classify returns; a part is committed once its ledger entry exists.

    A part's name is a hash of its sorted row ids. If its ledger entry exists already, nothing is written: a task that
    Ray retries writes nothing twice. Otherwise the good rows are written first, then the failed ones, then the entry.
    Each file is written by one PUT or one rename, so that no reader sees an incomplete file."""

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
        """`fence` is a URL that exists once another run has taken over the output; then nothing is written any more.
        It is asked for before every attempt at a write, so that a slow commit cannot follow a takeover.
        Small blocks are combined until they have `rows_per_file` rows. `store` is "files" to write each image to a
        file of its own."""
        self.output = output
        self._fence, self._rows_per_file, self._store = fence, rows_per_file, store
        self.report = report
        self.ok = self.failed = 0
        """Rows written; set once the run is complete."""
        self._schema = output_schema(manifest, task)

    def on_write_complete(self, write_result: WriteResult[tuple[int, int]]) -> None:
        self.ok = sum(ok for ok, _ in write_result.write_returns)
        self.failed = sum(failed for _, failed in write_result.write_returns)

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_file

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> tuple[int, int]:
        """Write and commit one part; return its numbers of good and of failed rows."""
        tables = [block for block in blocks if block.num_rows]
        if not tables:
            return 0, 0
        started = time.perf_counter()
        table = pa.concat_tables(tables)
        failed = table.filter(table["error_type"].is_valid())
        good = table.filter(table["error_type"].is_null())
        entry = entry_url(self.output, key := part_key(table["id"].to_pylist()))
        counts = good.num_rows, failed.num_rows
        if not storage.exists(entry):
            counts = self._write_part(key, entry, good, failed)
        spent = time.perf_counter() - started
        self.report({"ok": counts[0], "failed": counts[1], "write_seconds": spent, **storage.take_fault_counts()})
        return counts

    def _write_part(self, key: str, entry: str, good: pa.Table, failed: pa.Table) -> tuple[int, int]:
        """Write and commit one part; return its numbers of good and of failed rows.

        A good row that cannot be written as Parquet, or whose image's name the file system refuses, fails."""
        ledger_rows: list[dict[str, Any]] = []
        if self._store == "files":
            good, refused = self._write_image_files(good)
            failed = pa.concat_tables([failed, *refused])
        parts = (pair for part in split_by_size(good) for pair in encode_or_halve(part, self._encode))
        ok = files = 0
        for part, content in parts:
            if isinstance(content, Exception):
                failed = pa.concat_tables([failed, with_error(part, content)])
                continue
            file = f"{DATA}/{key}{f'-{files}' if files else ''}.parquet"
            self._write_file(file, content)
            ledger_rows += _ledger_rows(part, OK, file)
            ok, files = ok + part.num_rows, files + 1
        if failed.num_rows:
            file = f"{FAILED_FOLDER}/{key}.parquet"
            self._write_file(file, encode_failed_file(failed))
            ledger_rows += _ledger_rows(failed, FAILED_STATUS, file)
        storage.write_bytes(entry, encode_entry(ledger_rows), fence=self._fence)
        return ok, failed.num_rows

    def _encode(self, rows: pa.Table) -> bytes:
        return encode_data_file(rows, self._schema)

    def _write_file(self, path: str, content: bytes) -> None:
        storage.write_bytes(storage.join(self.output, path), content, fence=self._fence)

    def _write_image_files(self, rows: pa.Table) -> tuple[pa.Table, list[pa.Table]]:
        """Write each image to its path in the output.

        Returns the rows without the images' bytes, and those whose path the file system refuses."""
        images: list[Any] = []
        errors: list[Exception | None] = []
        for value in rows["image"]:
            image, error = value.as_py(), None
            try:
                self._write_file(image["path"], image["bytes"])
            except storage.StorageError as reason:
                if getattr(reason.__cause__, "errno", None) not in _NAME_ERRNOS:
                    raise
                error = reason
            images.append({"bytes": None, "path": image_path(self.output, image["path"])})
            errors.append(error)
        position = rows.schema.get_field_index("image")
        rows = rows.set_column(position, rows.schema.field(position), pa.array(images, IMAGE_TYPE))
        refused = [with_error(rows[index : index + 1], error) for index, error in enumerate(errors) if error]
        return rows.filter(pa.array([error is None for error in errors], pa.bool_())), refused


def _ledger_rows(rows: pa.Table, status: str, file: str) -> list[dict[str, Any]]:
    hashes = hash_rows(row or "{}" for row in rows[ROW].to_pylist())
    return [
        {"id": row_id, "status": status, "file": file, "row": bytes(digest).ljust(16, b"\0")}
        for row_id, digest in zip(rows["id"].to_pylist(), hashes, strict=True)
    ]
