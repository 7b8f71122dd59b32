"""The audit of an output: every row once, every file readable, every picture what its provenance says."""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ImageError
from pipeline.images.decode import MAX_PIXELS, decode_image
from pipeline.manifest.identity import Shard
from pipeline.output.id_sets import HashBuckets, among, ids_of
from pipeline.output.ledger import entries_of, orphans_of
from pipeline.output.pictures import picture_bytes
from pipeline.output.run_record import read_run
from pipeline.schema import DATA, FAILED_FOLDER, FAILED_STATUS, OK
from pipeline.stages.rows import sha256_of

BATCH_ROWS: Final = 100
_SHOWN: Final = 20


@dataclass(kw_only=True, slots=True)
class Audit:
    """What was found. `problems` are one line each, the first _SHOWN of them; `count` is how many there are."""

    ok: int = 0
    failed: int = 0
    files: int = 0
    count: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str, count: int = 1) -> None:
        self.count += count
        if len(self.problems) < _SHOWN:
            self.problems.append(text)

    def __str__(self) -> str:
        lines = [f"{self.ok:,} pictures and {self.failed:,} failed rows in {self.files:,} files"]
        lines += self.problems
        if self.count:
            lines.append(f"{self.count:,} problems")
        return "\n".join(lines)


def check_output(output: str, manifest_url: str | None = None, *, tell: Callable[[int], None] | None = None) -> Audit:
    """Read all of an output. Memory: one file, one bucket of ids, and the files' names. `tell` hears the rows read.

    StorageError or ManifestError where there is nothing to read."""
    if not storage.is_folder(output):
        raise storage.StorageError(f"{storage.redact_url(output)}: there is no such output")
    audit = Audit()
    with HashBuckets() as committed, HashBuckets() as found:
        rows_in = _read_ledger(output, committed, audit)
        for file, rows in sorted(rows_in.items()):
            _check_file(output, file, rows, found, audit)
            if tell is not None:
                tell(audit.ok + audit.failed)
        for url in orphans_of(output, rows_in):
            audit.problem(f"{storage.redact_url(url)}: no ledger entry names it")
        _compare(committed, found, audit)
        run = read_run(output)
        if manifest_url is not None:
            shard = run.get("config", {}).get("shard")
            _compare_manifest(manifest_url, shard and Shard(**shard), committed, audit)
    for name, count in (("ok", audit.ok), ("failed", audit.failed)):
        if run.get("status") == "finished" and run.get(name) != count:
            audit.problem(f"run.json says {run.get(name)} {name} rows, there are {count}")
    return audit


def _read_ledger(output: str, committed: HashBuckets, audit: Audit) -> dict[str, int]:
    """The rows that the ledger gives to each file."""
    rows_in: dict[str, int] = {}
    for entry in entries_of(output):
        committed.add(entry["id"].to_pylist())
        for row in entry.select(["status", "file"]).to_pylist():
            rows_in[row["file"]] = rows_in.get(row["file"], 0) + 1
            if row["file"].split("/")[0] != {OK: DATA, FAILED_STATUS: FAILED_FOLDER}.get(row["status"]):
                audit.problem(f"{row['file']}: holds a row that the ledger calls {row['status']}")
    return rows_in


def _check_file(output: str, file: str, expected: int, found: HashBuckets, audit: Audit) -> None:
    audit.files += 1
    count = 0
    try:
        for rows in _rows_of(storage.join(output, file)):
            found.add([row["id"] for row in rows])
            count += len(rows)
            for row in rows:
                if "image" in row:
                    _check_picture(output, file, row, audit)
    except (storage.StorageError, OSError, ValueError) as error:
        audit.problem(f"{file}: cannot be read: {(str(error).splitlines() or [''])[0]}")
        return
    if posixpath.dirname(file) == DATA:
        audit.ok += count
    else:
        audit.failed += count
    if count != expected:
        audit.problem(f"{file}: has {count} rows, the ledger has {expected}")


def _rows_of(url: str) -> Iterator[list[dict[str, Any]]]:
    filesystem, path = storage.arrow_filesystem(url)
    with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as parquet:
        wanted = [name for name in ("id", "image", "width", "height", "sha256") if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted):
            yield batch.to_pylist()


def _check_picture(output: str, file: str, row: dict[str, Any], audit: Audit) -> None:
    where = f"{file}: row {row['id']!r}"
    try:
        data = picture_bytes(output, row)
    except storage.StorageError as error:
        return audit.problem(f"{where}: {error}")
    if data is None or sha256_of(data) != row["sha256"]:
        return audit.problem(f"{where}: its picture is not the one that its sha256 tells")
    if row["width"] * row["height"] > MAX_PIXELS:
        return None  # larger than is read from outside; its sha256 says that it is what was encoded
    try:
        height, width = decode_image(data).shape[:2]
    except ImageError as error:
        return audit.problem(f"{where}: {error}")
    if (width, height) != (row["width"], row["height"]):
        return audit.problem(f"{where}: is {width}x{height}, not {row['width']}x{row['height']}")
    return None


def _compare(committed: HashBuckets, found: HashBuckets, audit: Audit) -> None:
    """Every id once in the ledger and once in the files."""
    for ledger, files in zip(committed, found, strict=True):
        for place, hashes in (("the ledger", ledger), ("the files", files)):
            if twice := len(hashes) - len(np.unique(hashes)):
                audit.problem(f"{twice:,} ids are more than once in {place}", twice)
        if lacking := int(np.count_nonzero(~among(np.unique(ledger), files))):
            audit.problem(f"{lacking:,} ids of the ledger are in no file", lacking)
        if unknown := int(np.count_nonzero(~among(np.unique(files), ledger))):
            audit.problem(f"{unknown:,} ids of the files are not in the ledger", unknown)


def _compare_manifest(url: str, shard: Shard | None, committed: HashBuckets, audit: Audit) -> None:
    with ids_of(url, shard=shard) as asked:
        missing = unknown = 0
        for rows, done in zip(asked, committed, strict=True):
            missing += int(np.count_nonzero(~among(np.unique(rows), done)))
            unknown += int(np.count_nonzero(~among(np.unique(done), rows)))
    if missing:
        audit.problem(f"{missing:,} ids of the manifest are not in the output", missing)
    if unknown:
        audit.problem(f"{unknown:,} ids of the output are not in the manifest", unknown)
