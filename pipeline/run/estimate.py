"""The estimate of a run: a few of its rows are processed and timed in this process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, ManifestError, RunError
from pipeline.inference.checkpoint_info import CheckpointInfo, read_checkpoint_info
from pipeline.manifest.read import read_batches, read_schema
from pipeline.run.check import rules_for_run
from pipeline.run.plan import count_run_rows
from pipeline.stages.denoise import Denoise, LoadModel
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The measured speed of one actor, and the number of rows."""

    rows: int
    """Rows of the run."""
    timed: int
    """Rows that were processed for the estimate, after one that warmed up the model."""
    failed: int
    """Those of them that failed; they take almost no time and are not counted in the averages."""
    load_seconds: float
    seconds_per_row: float
    bytes_per_row: float
    device: str

    def hours(self, actors: int) -> float:
        """Return the duration of the whole run with this many actors."""
        return (self.load_seconds + self.rows * self.seconds_per_row / actors) / 3600

    def actor_hours(self, actors: int) -> float:
        return actors * self.hours(actors)

    @property
    def output_bytes(self) -> float:
        return self.rows * self.bytes_per_row


def estimate(
    config: RunConfig, rows: int, *, load: LoadModel | None = None, checkpoint: CheckpointInfo | None = None
) -> Estimate:
    """Process `rows` rows, taken evenly from the manifest, and estimate the whole run from them. Nothing is written.

    `load` and `checkpoint` as for run_job. RunError if the run cannot start or no row can be processed."""
    try:
        checkpoint = checkpoint or read_checkpoint_info(config)
        sample = _sample(config.manifest, count_run_rows(replace(config, shard=None)), rows + 1)
        if sample.num_rows < 2:
            raise RunError(
                f"{storage.redact_url(config.manifest)}: has {sample.num_rows} rows; an estimate needs 2 or more"
            )
        return _measure(config, sample, count_run_rows(config), checkpoint, load)
    except (storage.StorageError, ManifestError, CheckpointError) as error:
        raise RunError(str(error)) from error


def _sample(url: str, total: int, count: int) -> pa.Table:
    """Return at most `count` of the first `total` rows, taken evenly."""
    wanted = {index * total // count for index in range(count)} if count < total else set(range(total))
    sample, first = list[pa.RecordBatch](), 0
    for batch in read_batches(url):
        sample += [batch.slice(index - first, 1) for index in sorted(wanted) if first <= index < first + batch.num_rows]
        first += batch.num_rows
        if first > max(wanted, default=0):
            break
    return pa.Table.from_batches(sample)


def _measure(
    config: RunConfig, sample: pa.Table, total: int, checkpoint: CheckpointInfo, load: LoadModel | None
) -> Estimate:
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    schema = read_schema(config.manifest)
    rules = rules_for_run(config, checkpoint)
    prepare = PrepareRows(config=config, rules=rules, manifest=schema)
    encode = EncodeImages(config=config, manifest=schema)
    started = time.perf_counter()
    denoise = Denoise(config, "estimate", device, _discard, load)
    loaded = time.perf_counter()
    try:
        denoise(prepare(sample.slice(0, 1)))
        measured_from = time.perf_counter()
        output = encode(denoise(prepare(sample.slice(1))))
        ended = time.perf_counter()
    finally:
        denoise.close()
    sizes = [len(image["bytes"]) for image in output["image"].to_pylist() if image and image["bytes"]]
    if not sizes:
        raise RunError(f"none of {output.num_rows} rows succeeded: {output['error_message'][0].as_py()}")
    return Estimate(
        rows=total,
        timed=output.num_rows,
        failed=output.num_rows - len(sizes),
        load_seconds=loaded - started,
        seconds_per_row=(ended - measured_from) / len(sizes),
        bytes_per_row=sum(sizes) / len(sizes),
        device=device,
    )


def _discard(amounts: Mapping[str, float]) -> None:
    """Report to nobody."""
