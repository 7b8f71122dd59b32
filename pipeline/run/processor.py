"""The stages of a run as a function from a Ray Dataset to a Ray Dataset, without an output folder."""

import uuid
from collections.abc import Callable, Mapping
from typing import Final

import pyarrow as pa
import ray
from ray.data import Dataset

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, InvalidManifestError, RunError
from pipeline.inference.checkpoint_info import CheckpointInfo, read_checkpoint_info
from pipeline.manifest.columns import schema_problems
from pipeline.run.autoscaler import startable_resources
from pipeline.run.check import check_options, rules_for_run
from pipeline.run.cluster import plan_actors
from pipeline.run.graph import build_graph
from pipeline.run.plan import max_block_rows, source_bytes
from pipeline.run.stages import build_stages, hash_weights
from pipeline.stages.rows import ERRORS, output_schema

_OF_A_RUN: Final = ("manifest", "output", "store", "limit", "shard", "retry_failed", "new_run")
"""Fields that need a manifest file or an output folder."""

Processor = Callable[[Dataset], Dataset]


def build_processor(config: RunConfig) -> Processor:
    """Return a function from a Dataset of manifest rows to a Dataset of output rows.

    The rows go through the stages of a run, on the actors that a run would start, and give the same images. Nothing is
    written, and there is no ledger: the Dataset is lazy, and starts over when it is executed again. Output rows have
    the columns of OUTPUT/data and `error_type` and `error_message`, which are null in good rows; a bad row comes out
    with its error and without an image. The ids must be unique, and image paths in rows must lie below a folder of
    `allow_roots`; relative ones start from the first of these.

    RunError if the config cannot be used, or has a field that needs a manifest file or an output folder; the function
    raises InvalidManifestError if the Dataset's columns have wrong types."""
    check_options(config)
    defaults = RunConfig(task=config.task)
    for name in _OF_A_RUN:
        if getattr(config, name) != getattr(defaults, name):
            raise RunError(f"{name} is {getattr(config, name)!r}; a processor has no files: leave it out, or call run")
    try:
        checkpoint = read_checkpoint_info(config)
    except (storage.StorageError, CheckpointError) as error:
        raise RunError(str(error)) from error
    return lambda rows: _process(rows, config, checkpoint)


def _process(rows: Dataset, config: RunConfig, checkpoint: CheckpointInfo) -> Dataset:
    schema, rules = _schema_of(rows), rules_for_run(config, checkpoint)
    if problems := schema_problems(schema, rules):
        raise InvalidManifestError("; ".join(map(str, problems)), problems)
    pool = plan_actors(config, checkpoint, ray.cluster_resources(), startable_resources())
    stages = build_stages(
        config,
        checkpoint,
        rules,
        schema,
        run_id=uuid.uuid4().hex,
        device=pool.device,
        report=_discard,
        weights=hash_weights(config, checkpoint, pool.device),
    )
    rows_per_block = min(config.lanes, max_block_rows(config, checkpoint, source_bytes(config, schema)))
    columns = [*output_schema(schema, config.task).names, *ERRORS]
    return build_graph(rows, config, stages, pool, rows_per_block).select_columns(columns)


def _schema_of(rows: Dataset) -> pa.Schema:
    """Return the columns of a Dataset; Ray executes its first block if they are not known yet."""
    schema = rows.schema()
    if schema is None:
        raise RunError("the Dataset has no rows, so its columns are unknown")
    return pa.schema(list(zip(schema.names, schema.types, strict=True)))


def _discard(amounts: Mapping[str, float]) -> None:
    """Ignore the amounts: a processor has no progress display."""
