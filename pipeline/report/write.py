"""Writing a run's report into OUTPUT/report."""

import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import storage
from pipeline.errors import RunError
from pipeline.images.decode import MAX_PIXELS
from pipeline.output.image_files import read_image_bytes
from pipeline.output.run_record import read_run
from pipeline.report.contact_sheet import SHEET_PICTURES, THUMBNAIL, contact_sheet, fit_image
from pipeline.report.page import page
from pipeline.report.sources import sources_of
from pipeline.schema import DATA, FAILED_FOLDER

MAX_PICTURES: Final = 120
"""How many pictures the gallery shows, taken evenly from all files."""
MAX_FAILURES: Final = 50


def write_report(output: str) -> str:
    """Write a run's report from what is in its output; gives the path of its index.html."""
    run = read_run(output)
    if run.get("task") == "classify":
        raise RunError(f"{storage.redact_url(output)}: holds labels; a report shows pictures")
    data = storage.list_files(storage.join(output, DATA), ".parquet")
    if not data and not run:
        raise RunError(f"{storage.redact_url(output)}: is no run's output; there is no run.json and no data")
    rows = _sample(output, data, MAX_PICTURES)
    failures = _failures(storage.list_files(storage.join(output, FAILED_FOLDER), ".parquet"))
    folder = storage.join(output, "report")
    sources = sources_of(run, rows, THUMBNAIL)
    panels = [(*sources.get(str(row["id"]), ()), _shrunk(_opened(read_image_bytes(output, row)))) for row in rows]
    if rows:
        sheet = contact_sheet(rows[:SHEET_PICTURES], panels[:SHEET_PICTURES])
        storage.write_bytes(storage.join(folder, "contact_sheet.png"), sheet)
    index = storage.join(folder, "index.html")
    storage.write_bytes(index, page(run, rows, panels, failures).encode())
    return index


def _sample(output: str, files: Sequence[str], most: int) -> list[dict[str, Any]]:
    """At most `most` rows, evenly from at most that many files, but for what is too large to show.

    A damaged file is one line."""
    chosen = [files[index * len(files) // most] for index in range(most)] if len(files) > most else list(files)
    each = -(-most // max(1, len(chosen)))
    rows = [row for file in chosen for row in _rows(file, each) if row["width"] * row["height"] <= MAX_PIXELS]
    return sorted(rows, key=lambda row: str(row["id"]))[:most]


def _rows(file: str, most: int) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.arrow_filesystem(file)
    try:
        yield from next(pq.ParquetFile(path, filesystem=filesystem).iter_batches(batch_size=most)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{storage.redact_url(file)}: cannot be read: {str(error).splitlines()[0]}") from error


def _failures(files: Sequence[str]) -> list[dict[str, Any]]:
    return [row for file in files[:MAX_FAILURES] for row in _rows(file, MAX_FAILURES)][:MAX_FAILURES]


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _shrunk(picture: Image.Image) -> Image.Image:
    """No larger than the gallery shows it."""
    return fit_image(picture, THUMBNAIL) if max(picture.size) > THUMBNAIL else picture
