"""What it costs to go on with a long run: seconds and memory until it is known what of N rows is missing.

`python -m tests.benchmarks.bench_resume --rows 10000000` writes a manifest and the ledger of a run that has made all of
them but a few, and then plans the same run again, in a process of its own. With --check the run has its pictures too,
the smallest that there are, and all of it is audited.
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
from pipeline.run.plan import plan_run
from pipeline.stages.rows import sha256_of
from pipeline.storage import write_bytes
from tests.cheap import FACTS

ROWS_AN_ENTRY = 2_500
MISSING = 1_000


def ids_from(start: int, count: int) -> list[str]:
    return [f"row-{index:012}" for index in range(start, start + count)]


def pictures_of(ids: list[str]) -> bytes:
    """A data file with a picture of one pixel for each id."""
    picture = encode_image(np.zeros((1, 1, 3), np.uint8))
    ones, sink = pa.repeat(pa.scalar(1, pa.int32()), len(ids)), pa.BufferOutputStream()
    image = pa.array([{"bytes": picture, "path": None}] * len(ids))
    sha256 = pa.repeat(sha256_of(picture), len(ids))
    table = pa.table({"id": ids, "image": image, "width": ones, "height": ones, "sha256": sha256})
    pq.write_table(table, sink, row_group_size=100)
    return sink.getvalue().to_pybytes()


def manifest_of(rows: int) -> Iterator[pa.Table]:
    """The rows of a manifest of prompts, 100,000 at a time, so that the process stays small."""
    for start in range(0, rows, 100_000):
        ids = ids_from(start, min(100_000, rows - start))
        yield pa.table({"id": ids, "prompt": [f"a picture of {row_id}" for row_id in ids]})


def write_run(folder: Path, rows: int, *, pictures: bool) -> None:
    with pq.ParquetWriter(
        folder / "manifest.parquet", pa.schema([("id", pa.string()), ("prompt", pa.string())])
    ) as file:
        for part in manifest_of(rows):
            file.write_table(part)
    output = str(folder / "out")
    for start in range(0, rows - MISSING, ROWS_AN_ENTRY):
        ids = ids_from(start, min(ROWS_AN_ENTRY, rows - MISSING - start))
        key = part_key(ids)
        entry = [{"id": row_id, "status": "ok", "file": f"data/{key}.parquet", "row": bytes(16)} for row_id in ids]
        write_bytes(entry_url(output, key), encode_entry(entry))
        if pictures:
            write_bytes(f"{output}/data/{key}.parquet", pictures_of(ids))
    sha256 = fingerprint(str(folder / "manifest.parquet"))
    write_bytes(f"{output}/run.json", f'{{"run_id": "a", "manifest": {{"sha256": "{sha256}"}}}}'.encode())


def plan(folder: Path) -> None:
    config = RunConfig(task="generate", manifest=str(folder / "manifest.parquet"), output=str(folder / "out"))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    lease = Lease(config.output)
    found = plan_run(config, lease, FACTS)
    seconds = time.monotonic() - started
    lease.release()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{found.rows:,} rows, {found.already_done:,} done, {found.todo:,} to do: {seconds:.1f} s, "
        f"{peak / 1024:,.0f} MiB at most ({before / 1024:,.0f} before)"
    )


def check(folder: Path) -> None:
    started = time.monotonic()
    audit = check_output(str(folder / "out"))
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"check: {audit.ok:,} pictures, {audit.count} problems: {seconds:.1f} s, {peak / 1024:,.0f} MiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--check", action="store_true", help="audit the output as well")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        return {"plan": plan, "check": check}[options.only[0]](Path(options.only[1]))
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder), rows, pictures=options.check)
            for what in ("plan", "check") if options.check else ("plan",):
                command = [sys.executable, "-m", "tests.benchmarks.bench_resume", "--only", what, folder]
                subprocess.run(command, check=True)
    return None


if __name__ == "__main__":
    main()
