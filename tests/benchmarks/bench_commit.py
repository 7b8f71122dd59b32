"""The cost of commits: the same run with the ledger's sink and with a sink that only writes Parquet, alternately.

`python -m tests.benchmarks.bench_commit` prints the images per second per actor of both, from the first call of a
network to the end of the run, and the slowdown by the commits. A call of the network takes a fixed time, so that an
actor makes at most 4 images of 512x512 pixels per second.
"""

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.inference.checkpoint_info import CheckpointInfo
from pipeline.inference.loaded_model import LoadedModel
from pipeline.output.sink import LedgerDatasink
from pipeline.run.job import run_job
from pipeline.stages.rows import sha256_of
from pipeline.tasks.rows import PreparedRow
from tests.chaos.stories import write_rows
from tests.cheap import CheapTask, loaded_model_of, zeros
from tests.s3 import CREDENTIALS, s3_server

SIDE = 512
LANES = 4
SECONDS_PER_CALL = 1.0


class PlainDatasink(LedgerDatasink):
    """Writes its rows without committing them."""

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> tuple[int, int]:
        table = pa.concat_tables(blocks)
        filesystem, path = storage.locate(storage.join(self.output, "data", f"{uuid.uuid4().hex}.parquet"))
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        with filesystem.open(path, "wb") as file:
            pq.write_table(table, file, row_group_size=100, compression="none")
        self.report({"ok": table.num_rows})
        return table.num_rows, 0


class LargeImages(CheapTask):
    """Images of which one half is noise, so that their files have a typical size."""

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Callable[[], None]) -> NDArray[np.uint8]:
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[: SIDE // 2] = np.random.default_rng(int(latents.sum())).integers(0, 256, (SIDE // 2, SIDE, 3))
        return image


def load(config: RunConfig, device: str) -> LoadedModel:
    def slow(*arguments: Any) -> Tensor:
        if not (file := first_call_file(config.output)).exists():
            file.write_text(str(time.time()))
        time.sleep(SECONDS_PER_CALL)
        return zeros(*arguments)

    return replace(loaded_model_of(config, slow), task=LargeImages())


def first_call_file(output: str) -> Path:
    """Return the local file with the time of the first call of a network of this run."""
    return Path(tempfile.gettempdir()) / f"{sha256_of(output.encode())[:16]}.first-call"


def measure(manifest: str, output: str, actors: int, sink: type[LedgerDatasink]) -> float:
    """Return the images per second per actor."""
    config = RunConfig(task="generate", manifest=manifest, output=output, actors=actors, lanes=LANES)
    with mock.patch("pipeline.run.execute.LedgerDatasink", sink):
        summary = run_job(config, load=load, checkpoint=CheckpointInfo(native_pixels=SIDE * SIDE))
    file = first_call_file(output)
    seconds = time.time() - float(file.read_text())
    file.unlink()
    return summary.ok / seconds / actors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rows", type=int, default=240, help="rows per actor")
    parser.add_argument("--turns", type=int, default=3, help="runs with each sink")
    parser.add_argument("--s3", action="store_true", help="write to an S3 server instead of the disk")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = str(folder)
        if options.s3:
            endpoint = stack.enter_context(s3_server(folder))
            stack.enter_context(mock.patch.dict("os.environ", {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}))
            storage.locate("s3://bench")[0].mkdir("bench")
            root = "s3://bench"
        ray.init(num_cpus=options.actors + 4, include_dashboard=False, log_to_driver=False, logging_level="error")
        manifest = write_rows(folder / "manifest.parquet", options.rows * options.actors)
        ratios: list[float] = []
        for turn in range(options.turns):
            plain = measure(manifest, f"{root}/plain-{turn}", options.actors, PlainDatasink)
            committed = measure(manifest, f"{root}/committed-{turn}", options.actors, LedgerDatasink)
            ratios.append(committed / plain)
            print(f"turn {turn}: {plain:.2f} images/s per actor written, {committed:.2f} committed", flush=True)
    print(f"with the commit: {1 - median(ratios):+.1%} slower, median of {options.turns}")


if __name__ == "__main__":
    main()
