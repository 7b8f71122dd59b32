"""What a run would take: a few of its rows are made on one actor's machinery, in this process, and timed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.diffusion.samplers import SAMPLERS
from pipeline.errors import CheckpointError, ManifestError, RunError
from pipeline.inference.checkpoint_info import CheckpointInfo, read_checkpoint_info
from pipeline.manifest.read import read_batches, read_schema
from pipeline.manifest.rules import Rules
from pipeline.run.plan import count_rows_to_make
from pipeline.stages.denoise import Denoise, LoadModel
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What one actor does, and what there is to do."""

    rows: int
    """Of the whole manifest."""
    timed: int
    """Rows that were made for it, after one that is not counted."""
    failed: int
    """Of them; a failed row takes next to no time."""
    load_seconds: float
    seconds_per_row: float
    bytes_per_row: float
    device: str

    def hours(self, actors: int) -> float:
        """Until the whole manifest is made, with so many actors."""
        return (self.load_seconds + self.rows * self.seconds_per_row / actors) / 3600

    def actor_hours(self, actors: int) -> float:
        return actors * self.hours(actors)

    @property
    def output_bytes(self) -> float:
        return self.rows * self.bytes_per_row


def estimate(
    config: RunConfig, rows: int, *, load: LoadModel | None = None, checkpoint: CheckpointInfo | None = None
) -> Estimate:
    """Make `rows` of the manifest's rows, taken evenly from it, and say what all of them would take.

    `load` and `checkpoint` as for run_job. RunError says in one line why it cannot be told; nothing is written."""
    try:
        facts = checkpoint or read_checkpoint_info(config)
        sample = _sample(config.manifest, count_rows_to_make(replace(config, shard=None)), rows + 1)
        if sample.num_rows < 2:
            raise RunError(f"{storage.redact_url(config.manifest)}: has too few rows to tell anything from")
        return _timed(config, sample, count_rows_to_make(config), facts, load)
    except (storage.StorageError, ManifestError, CheckpointError) as error:
        raise RunError(str(error)) from error


def _sample(url: str, total: int, count: int) -> pa.Table:
    """At most `count` of the first `total` rows, evenly."""
    wanted = {index * total // count for index in range(count)} if count < total else set(range(total))
    found, first = list[pa.RecordBatch](), 0
    for batch in read_batches(url):
        found += [batch.slice(index - first, 1) for index in sorted(wanted) if first <= index < first + batch.num_rows]
        first += batch.num_rows
        if first > max(wanted, default=0):
            break
    return pa.Table.from_batches(found)


def _timed(config: RunConfig, sample: pa.Table, total: int, facts: CheckpointInfo, load: LoadModel | None) -> Estimate:
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    schema = read_schema(config.manifest)
    rules = Rules(task=config.task, samplers=tuple(SAMPLERS), size_multiple=facts.downsample_factor)
    prepare = PrepareRows(config=config, rules=rules, manifest=schema)
    encode = EncodeImages(config=config, manifest=schema)
    started = time.perf_counter()
    denoise = Denoise(config, "estimate", device, _nowhere, load)
    loaded = time.perf_counter()
    try:
        denoise(prepare(sample.slice(0, 1)))
        began = time.perf_counter()
        made = encode(denoise(prepare(sample.slice(1))))
        ended = time.perf_counter()
    finally:
        denoise.close()
    sizes = [len(image["bytes"]) for image in made["image"].to_pylist() if image and image["bytes"]]
    if not sizes:
        raise RunError(f"none of {made.num_rows} rows could be made: {made['error_message'][0].as_py()}")
    return Estimate(
        rows=total,
        timed=made.num_rows,
        failed=made.num_rows - len(sizes),
        load_seconds=loaded - started,
        seconds_per_row=(ended - began) / len(sizes),
        bytes_per_row=sum(sizes) / len(sizes),
        device=device,
    )


def _nowhere(amounts: Mapping[str, float]) -> None:
    """The figures of an estimate are its own."""
