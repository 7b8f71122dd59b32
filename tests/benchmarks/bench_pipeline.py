"""What all around the network costs: rows a second through read, actor, encode and write, and what the driver takes.

    python -m tests.benchmarks.bench_pipeline --rows 1000 100000
    python -m tests.benchmarks.bench_pipeline --rows 400000 --blank 512
    python -m tests.benchmarks.bench_pipeline --rows 10000000 --blank 64

The network returns at once, and every picture is noise, so that encoding and writing have their usual work. With
--blank pictures are of one color and rows go in blocks as those of so many pixels a side do: what is left is the
driver's."""

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.inference.loaded_model import LoadedModel
from pipeline.run.job import run_job
from tests.benchmarks.bench_resume import manifest_of
from tests.cheap import FACTS, SIDE, CheapTask, load_cheap


class NoiseTask(CheapTask):
    """Pictures that do not compress."""

    def pixels(self, latents: Tensor, row: Mapping[str, Any], beat: Callable[[], None]) -> NDArray[np.uint8]:
        return np.random.default_rng(int(latents.sum())).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def load_noise(config: RunConfig, device: str) -> LoadedModel:
    return replace(load_cheap(config, device), task=NoiseTask())


@dataclass
class Memory:
    """The driver's resident memory in MB, looked at ten times a second."""

    peak: float = 0.0
    ended: bool = False

    def watch(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, resident())
            time.sleep(0.1)


def resident() -> float:
    """MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--blank", type=int, metavar="SIDE", help="one color; blocks as of pictures of this side")
    options = parser.parse_args()
    print(f"pictures of {SIDE} x {SIDE} pixels, PNG; {options.actors} actors")
    print(f"{'rows':>10} {'seconds':>8} {'rows/s':>8} {'driver before':>14} {'driver peak':>12} {'driver CPU':>11}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            measure(rows, Path(folder), options.actors, options.lanes, blank=options.blank)


def measure(rows: int, folder: Path, actors: int, lanes: int, *, blank: int | None) -> None:
    (folder / "manifest").mkdir()
    for number, part in enumerate(manifest_of(rows)):
        pq.write_table(part, folder / "manifest" / f"{number:04}.parquet")
    config = RunConfig(
        task="generate",
        manifest=str(folder / "manifest"),
        output=str(folder / "out"),
        lanes=lanes,
        actors=actors,
        device="cpu",
    )
    before, memory = resident(), Memory()
    watcher = threading.Thread(target=memory.watch, daemon=True)
    watcher.start()
    load, facts = (load_cheap, replace(FACTS, native_pixels=blank * blank)) if blank else (load_noise, FACTS)
    started, spent = time.monotonic(), time.process_time()
    summary = run_job(config, load=load, checkpoint=facts)
    seconds, spent = time.monotonic() - started, time.process_time() - spent
    memory.ended = True
    assert summary.ok == rows
    line = (
        f"{rows:>10,} {seconds:>8.1f} {rows / seconds:>8.1f} {before:>11.0f} MB {memory.peak:>9.0f} MB {spent:>9.1f} s"
    )
    print(line, flush=True)


if __name__ == "__main__":
    main()
