"""Write the report of a run into OUTPUT/report: index.html and contact_sheet.png."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import storage
from pipeline.errors import RunError
from pipeline.images.decode import MAX_PIXELS, counted_pixels, decode_image
from pipeline.output.image_files import read_image_bytes
from pipeline.output.run_record import read_run
from pipeline.report.contact_sheet import THUMBNAIL_SIZE, render_contact_sheet, resize_image
from pipeline.report.page import render_page
from pipeline.report.sources import read_sources
from pipeline.schema import DATA, FAILED_FOLDER

_PAGE_IMAGES: Final = 120
"""The maximum number of images on the page; they are sampled evenly from all files."""
_SHEET_IMAGES: Final = 48
_PAGE_FAILURES: Final = 50


def write_report(output: str) -> str:
    """Write the report of a run and return the URL of its index.html. RunError if `output` is not a run with images."""
    run = read_run(output)
    if run.get("task") == "classify":
        raise RunError(f"{storage.redact_url(output)}: has labels, not images; a report needs a run that makes images")
    files = storage.list_files(storage.join(output, DATA), ".parquet")
    if not files and not run:
        raise RunError(f"{storage.redact_url(output)}: is not the output of a run; it has no run.json and no data")
    rows = _sample_rows(files, _PAGE_IMAGES)
    failures = _read_failures(storage.list_files(storage.join(output, FAILED_FOLDER), ".parquet"))
    folder = storage.join(output, "report")
    sources = read_sources(run, rows, THUMBNAIL_SIZE)
    panels = [(*sources.get(str(row["id"]), ()), _thumbnail(read_image_bytes(output, row))) for row in rows]
    if rows:
        sheet = render_contact_sheet(rows[:_SHEET_IMAGES], panels[:_SHEET_IMAGES])
        storage.write_bytes(storage.join(folder, "contact_sheet.png"), sheet)
    index = storage.join(folder, "index.html")
    storage.write_bytes(index, render_page(run, rows, panels, failures).encode())
    return index


def _sample_rows(files: Sequence[str], max_rows: int) -> list[dict[str, Any]]:
    """Return at most `max_rows` rows, sampled evenly from the files; images too large to decode are omitted."""
    if len(files) > max_rows:
        files = [files[index * len(files) // max_rows] for index in range(max_rows)]
    rows_per_file = -(-max_rows // max(1, len(files)))
    rows = [row for file in files for row in _read_rows(file, rows_per_file)]
    decodable = [row for row in rows if counted_pixels(row["width"], row["height"]) <= MAX_PIXELS]
    return sorted(decodable, key=lambda row: str(row["id"]))[:max_rows]


def _read_rows(file: str, max_rows: int) -> Iterator[dict[str, Any]]:
    """Yield the first rows of a file; RunError if it is damaged."""
    filesystem, path = storage.arrow_filesystem(file)
    try:
        yield from next(pq.ParquetFile(path, filesystem=filesystem).iter_batches(batch_size=max_rows)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{storage.redact_url(file)}: cannot be read: {str(error).splitlines()[0]}") from error


def _read_failures(files: Sequence[str]) -> list[dict[str, Any]]:
    rows = [row for file in files[:_PAGE_FAILURES] for row in _read_rows(file, _PAGE_FAILURES)]
    return rows[:_PAGE_FAILURES]


def _thumbnail(data: bytes) -> Image.Image:
    image = Image.fromarray(decode_image(data, max_bytes=max(len(data), 1)))
    return resize_image(image, THUMBNAIL_SIZE) if max(image.size) > THUMBNAIL_SIZE else image
