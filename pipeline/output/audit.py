"""The audit of an output: every row exists once, every file is readable, every image matches its columns."""

import posixpath
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import ImageError, one_line
from pipeline.images.decode import MAX_BYTES, MAX_PIXELS, counted_pixels, decode_image
from pipeline.manifest.identity import Shard
from pipeline.output.id_sets import HashBuckets, isin_sorted, read_manifest_ids
from pipeline.output.image_files import read_image_bytes
from pipeline.output.ledger import find_orphans, list_data_files, read_entry_urls
from pipeline.output.run_record import read_run
from pipeline.schema import DATA, FAILED_FOLDER, FAILED_STATUS, OK
from pipeline.stages.rows import sha256_of

_BATCH_ROWS: Final = 100
_MAX_PROBLEMS: Final = 20
_COLUMNS: Final = ("id", "image", "width", "height", "sha256")


@dataclass(kw_only=True, slots=True)
class Audit:
    """The result of an audit. `problems` has a line for each of the first 20 problems, `count` is their number."""

    ok: int = 0
    failed: int = 0
    files: int = 0
    count: int = 0
    problems: list[str] = field(default_factory=list)
    damaged_files: set[str] = field(default_factory=set)
    """Committed files that are missing, unreadable, or hold other rows or images than they should."""

    def add_damage(self, file: str, text: str) -> None:
        self.damaged_files.add(file)
        self.add_problem(f"{file}: {text}")

    def add_problem(self, text: str, count: int = 1) -> None:
        self.count += count
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(text)

    def __str__(self) -> str:
        lines = [f"{self.ok:,} pictures and {self.failed:,} failed rows in {self.files:,} files"]
        lines += self.problems
        if self.count:
            lines.append(f"{self.count:,} problems")
        return "\n".join(lines)


def check_output(output: str, manifest_url: str | None = None) -> Audit:
    """Audit a whole output, and compare it with its manifest if one is given.

    Needs memory for one file, one bucket of ids, and the files' names. StorageError if the output does not exist,
    ManifestError if the manifest cannot be read."""
    if not storage.is_folder(output):
        raise storage.StorageError(f"{storage.redact_url(output)}: there is no such output")
    audit = Audit()
    with HashBuckets() as ledger_ids, HashBuckets() as ok_ids, HashBuckets() as file_ids:
        listed = list_data_files(output)
        row_counts = _read_ledger(output, listed, ledger_ids, ok_ids, audit)
        for file, count in sorted(row_counts.items()):
            _check_file(output, file, count, file_ids, audit)
        for url in find_orphans(output, listed, row_counts):
            audit.add_problem(f"{storage.redact_url(url)}: no ledger entry names it")
        _compare_ids(ledger_ids, ok_ids, file_ids, audit)
        run = read_run(output)
        if manifest_url is not None:
            shard = run.get("config", {}).get("shard")
            _compare_manifest(manifest_url, shard and Shard(**shard), ledger_ids, audit)
    for name, count in (("ok", audit.ok), ("failed", audit.failed)):
        if run.get("status") == "finished" and run.get(name) != count:
            audit.add_problem(f"run.json says {run.get(name)} {name} rows, there are {count}")
    return audit


def _read_ledger(
    output: str, listed: Collection[str], ledger_ids: HashBuckets, ok_ids: HashBuckets, audit: Audit
) -> dict[str, int]:
    """Add the committed ids to `ledger_ids`, those of good rows to `ok_ids`; return the committed rows of each file."""
    row_counts: dict[str, int] = {}
    for _, entry in read_entry_urls(output, listed):
        ledger_ids.add(entry["id"].to_pylist())
        ok_ids.add(entry.filter(pc.call_function("equal", [entry["status"], OK]))["id"].to_pylist())
        for row in entry.select(["status", "file"]).to_pylist():
            row_counts[row["file"]] = row_counts.get(row["file"], 0) + 1
            if row["file"].split("/")[0] != {OK: DATA, FAILED_STATUS: FAILED_FOLDER}.get(row["status"]):
                audit.add_problem(f"{row['file']}: has a row whose status in the ledger is {row['status']}")
    return row_counts


def _check_file(output: str, file: str, expected: int, file_ids: HashBuckets, audit: Audit) -> None:
    audit.files += 1
    count = 0
    try:
        for rows in _read_batches(storage.join(output, file)):
            file_ids.add([row["id"] for row in rows])
            count += len(rows)
            for row in rows:
                if "image" in row:
                    _check_image(output, file, row, audit)
    except (storage.StorageError, OSError, ValueError) as error:
        audit.add_damage(file, f"cannot be read: {one_line(error)}")
        return
    if posixpath.dirname(file) == DATA:
        audit.ok += count
    else:
        audit.failed += count
    if count != expected:
        audit.add_damage(file, f"has {count} rows, the ledger has {expected}")


def _read_batches(url: str) -> Iterator[list[dict[str, Any]]]:
    filesystem, path = storage.arrow_filesystem(url)
    with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as parquet:
        columns = [name for name in _COLUMNS if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            yield batch.to_pylist()


def _check_image(output: str, file: str, row: dict[str, Any], audit: Audit) -> None:
    name = f"row {row['id']!r}"
    try:
        data = read_image_bytes(output, row)
    except storage.StorageError as error:
        return audit.add_damage(file, f"{name}: {error}")
    if sha256_of(data) != row["sha256"]:
        return audit.add_damage(file, f"{name}: the sha256 of its image is not the one in its column sha256")
    if counted_pixels(row["width"], row["height"]) > MAX_PIXELS:
        return None  # too large to decode; its sha256 shows that it is what was encoded
    try:
        height, width = decode_image(data, max_bytes=max(MAX_BYTES, len(data))).shape[:2]
    except ImageError as error:
        return audit.add_damage(file, f"{name}: {error}")
    if (width, height) != (row["width"], row["height"]):
        return audit.add_damage(file, f"{name}: is {width}x{height}, not {row['width']}x{row['height']}")
    return None


def _compare_ids(ledger_ids: HashBuckets, ok_ids: HashBuckets, file_ids: HashBuckets, audit: Audit) -> None:
    """Check that every id is in the files as often as in the ledger, and once if one of its rows is good.

    Rows whose ids are not unique in the manifest are failed rows."""
    for ledger, ok, files in zip(ledger_ids, ok_ids, file_ids, strict=True):
        if duplicates := int(np.count_nonzero(_counts_in(ok, ledger) > 1)):
            audit.add_problem(f"{duplicates:,} ids are more than once in the ledger", duplicates)
        if missing := _count_surplus(ledger, files):
            audit.add_problem(f"{missing:,} ids of the ledger are in no file", missing)
        if unknown := _count_surplus(files, ledger):
            audit.add_problem(f"{unknown:,} ids of the files are not in the ledger", unknown)


def _compare_manifest(url: str, shard: Shard | None, ledger_ids: HashBuckets, audit: Audit) -> None:
    missing = unknown = 0
    with read_manifest_ids(url, shard=shard) as manifest_ids:
        for manifest, ledger in zip(manifest_ids, ledger_ids, strict=True):
            missing += int(np.count_nonzero(~isin_sorted(np.unique(manifest), ledger)))
            unknown += _count_surplus(ledger, manifest)
    if missing:
        audit.add_problem(f"{missing:,} ids of the manifest are not in the output", missing)
    if unknown:
        audit.add_problem(f"{unknown:,} ids of the output are not in the manifest", unknown)


def _count_surplus(hashes: NDArray[np.bytes_], others: NDArray[np.bytes_]) -> int:
    """Return how many distinct hashes are more often in the first sorted array than in the second."""
    return int(np.count_nonzero(_counts_in(hashes, hashes) > _counts_in(hashes, others)))


def _counts_in(hashes: NDArray[np.bytes_], others: NDArray[np.bytes_]) -> NDArray[np.intp]:
    """Return how often each distinct hash of a sorted array is in another sorted array."""
    distinct = np.unique(hashes)
    return np.searchsorted(others, distinct, "right") - np.searchsorted(others, distinct, "left")
