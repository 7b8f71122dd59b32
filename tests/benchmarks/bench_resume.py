"""The cost of resuming a long run: seconds and memory to find the missing rows among N.

`python -m tests.benchmarks.bench_resume --rows 10000000` writes a manifest and the ledger of a run that lacks a few of
its rows, and then plans the same run again in a separate process. With --check the run also has images, of one pixel
each, and the whole output is audited.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import RunConfig
from pipeline.images.encode import encode_image
from pipeline.manifest.read import fingerprint
from pipeline.output.audit import check_output
from pipeline.output.lease import Lease
from pipeline.output.ledger import encode_entry, entry_url, part_key
from pipeline.run.job import prepare_run
from pipeline.stages.rows import sha256_of
from pipeline.storage import write_bytes
from tests.cheap import FACTS

ROWS_PER_ENTRY = 2_500
MISSING_ROWS = 1_000


def make_ids(start: int, count: int) -> list[str]:
    return [f"row-{index:012}" for index in range(start, start + count)]


def data_file(ids: list[str]) -> bytes:
    """Return a data file with an image of one pixel for each id."""
    pixel = encode_image(np.zeros((1, 1, 3), np.uint8))
    ones, sink = pa.repeat(pa.scalar(1, pa.int32()), len(ids)), pa.BufferOutputStream()
    image = pa.array([{"bytes": pixel, "path": None}] * len(ids))
    sha256 = pa.repeat(sha256_of(pixel), len(ids))
    table = pa.table({"id": ids, "image": image, "width": ones, "height": ones, "sha256": sha256})
    pq.write_table(table, sink, row_group_size=100)
    return sink.getvalue().to_pybytes()


def manifest_tables(rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a manifest, 100,000 at a time, so that the process needs little memory."""
    for start in range(0, rows, 100_000):
        ids = make_ids(start, min(100_000, rows - start))
        yield pa.table({"id": ids, "prompt": [f"a picture of {row_id}" for row_id in ids]})


def write_run(folder: Path, rows: int, *, images: bool) -> None:
    with pq.ParquetWriter(
        folder / "manifest.parquet", pa.schema([("id", pa.string()), ("prompt", pa.string())])
    ) as file:
        for part in manifest_tables(rows):
            file.write_table(part)
    output = str(folder / "out")
    for start in range(0, rows - MISSING_ROWS, ROWS_PER_ENTRY):
        ids = make_ids(start, min(ROWS_PER_ENTRY, rows - MISSING_ROWS - start))
        key = part_key(ids)
        entry = [{"id": row_id, "status": "ok", "file": f"data/{key}.parquet", "row": bytes(16)} for row_id in ids]
        write_bytes(entry_url(output, key), encode_entry(entry))
        if images:
            write_bytes(f"{output}/data/{key}.parquet", data_file(ids))
    sha256 = fingerprint(str(folder / "manifest.parquet"))
    write_bytes(f"{output}/run.json", f'{{"run_id": "a", "manifest": {{"sha256": "{sha256}"}}}}'.encode())


def measure_plan(folder: Path) -> None:
    config = RunConfig(task="generate", manifest=str(folder / "manifest.parquet"), output=str(folder / "out"))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    lease = Lease(config.output)
    plan = prepare_run(config, lease, FACTS)
    seconds = time.monotonic() - started
    lease.release()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{plan.rows:,} rows, {plan.already_done:,} committed, {plan.todo:,} missing: {seconds:.1f} s, "
        f"{peak / 1024:,.0f} MiB at most ({before / 1024:,.0f} before)"
    )


def measure_check(folder: Path) -> None:
    started = time.monotonic()
    audit = check_output(str(folder / "out"))
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"check: {audit.ok:,} images, {audit.count} problems: {seconds:.1f} s, {peak / 1024:,.0f} MiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--check", action="store_true", help="audit the output as well")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        return {"plan": measure_plan, "check": measure_check}[options.only[0]](Path(options.only[1]))
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder), rows, images=options.check)
            for step in ("plan", "check") if options.check else ("plan",):
                command = [sys.executable, "-m", "tests.benchmarks.bench_resume", "--only", step, folder]
                subprocess.run(command, check=True)
    return None


if __name__ == "__main__":
    main()
