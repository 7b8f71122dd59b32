"""The speed of the pipeline without the network: rows per second from read to write, and the driver's CPU and memory.

    python -m tests.benchmarks.bench_pipeline --rows 1000 100000
    python -m tests.benchmarks.bench_pipeline --rows 400000 --blank 512
    python -m tests.benchmarks.bench_pipeline --rows 10000000 --blank 64

The network returns at once, and every image is noise, so encoding and writing cost as much as usual. With --blank all
images have one color, and blocks have as many rows as for images of that size, so that only the driver has work."""

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.inference.loaded_model import LoadedModel
from pipeline.run.job import run_job
from pipeline.tasks.rows import PreparedRow
from tests.benchmarks.bench_resume import manifest_tables
from tests.cheap import FACTS, SIDE, CheapTask, load_cheap


class NoiseTask(CheapTask):
    """Images that cannot be compressed."""

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Callable[[], None]) -> NDArray[np.uint8]:
        return np.random.default_rng(int(latents.sum())).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def load_noise(config: RunConfig, device: str) -> LoadedModel:
    return replace(load_cheap(config, device), task=NoiseTask())


@dataclass
class Memory:
    """The peak of the driver's resident memory in MB, measured ten times per second."""

    peak: float = 0.0
    ended: bool = False

    def watch(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, resident_memory())
            time.sleep(0.1)


def resident_memory() -> float:
    """Return this process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument(
        "--blank", type=int, metavar="SIDE", help="images of one color, in blocks as for images of SIDE x SIDE pixels"
    )
    options = parser.parse_args()
    print(f"images of {SIDE} x {SIDE} pixels, PNG; {options.actors} actors")
    print(f"{'rows':>10} {'seconds':>8} {'rows/s':>8} {'driver before':>14} {'driver peak':>12} {'driver CPU':>11}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            measure(rows, Path(folder), options.actors, options.lanes, blank=options.blank)


def measure(rows: int, folder: Path, actors: int, lanes: int, *, blank: int | None) -> None:
    (folder / "manifest").mkdir()
    for number, part in enumerate(manifest_tables(rows)):
        pq.write_table(part, folder / "manifest" / f"{number:04}.parquet")
    config = RunConfig(
        task="generate",
        manifest=str(folder / "manifest"),
        output=str(folder / "out"),
        lanes=lanes,
        actors=actors,
        device="cpu",
    )
    before, memory = resident_memory(), Memory()
    watcher = threading.Thread(target=memory.watch, daemon=True)
    watcher.start()
    checkpoint = replace(FACTS, native_pixels=blank * blank) if blank else FACTS
    started, cpu_started = time.monotonic(), time.process_time()
    summary = run_job(config, load=load_cheap if blank else load_noise, checkpoint=checkpoint)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    memory.ended = True
    assert summary.ok == rows
    memory_columns = f"{before:>11.0f} MB {memory.peak:>9.0f} MB"
    print(f"{rows:>10,} {seconds:>8.1f} {rows / seconds:>8.1f} {memory_columns} {cpu_seconds:>9.1f} s", flush=True)


if __name__ == "__main__":
    main()
