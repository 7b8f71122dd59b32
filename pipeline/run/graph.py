"""The Ray Data graph of a run."""

from collections.abc import Callable
from typing import Final

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.inference.node_cache import Weights
from pipeline.manifest.identity import Shard, hash_ids, in_shard
from pipeline.manifest.read import excluded_columns, manifest_files, read_batches, take_rows
from pipeline.output.id_sets import isin_buckets
from pipeline.run.cluster import Actors
from pipeline.run.plan import RunPlan
from pipeline.run.remote_journal import RemoteJournal
from pipeline.stages.classify import Classify
from pipeline.stages.denoise import Denoise, LoadModel
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from pipeline.stages.rows import Report, row_ids

_CALLS_AN_ACTOR: Final = 2
"""Batches that share an actor's lanes: while the first one's last rows run, the second fills the lanes."""
_MAX_UPSCALES_AN_ACTOR: Final = 16
"""The same where each holds but one picture, for pictures of any size: as many as there are lanes, up to this."""


def build_graph(
    config: RunConfig,
    plan: RunPlan,
    actors: Actors,
    load: LoadModel | None,
    report: Report,
    journal: RemoteJournal,
    weights: Weights,
) -> ray.data.Dataset:
    """The whole pipeline, but for the sink."""
    rows_per_block = plan.rows_per_block(config, actors.count)
    prepare = PrepareRows(
        config=config,
        rules=plan.rules,
        manifest=plan.schema,
        duplicates=plan.duplicates,
        journal=journal,
        report=report,
        square=plan.checkpoint.square,
    )
    encode = EncodeImages(config=config, manifest=plan.schema, report=report)
    calls = min(config.lanes, _MAX_UPSCALES_AN_ACTOR) if config.task == "upscale" else _CALLS_AN_ACTOR

    stage, arguments = Denoise, (config, plan.run_id, actors.device, report, load, journal, weights)
    if config.task == "classify":
        stage, arguments, calls = Classify, (config, plan.run_id, actors.device, report, journal, weights), 1

    rows = _read(config, plan)
    if config.shard is not None:
        rows = rows.map_batches(_rows_in(config.shard), batch_format="pyarrow", batch_size=None)
    if plan.committed.id_hashes.count:
        rows = rows.map_batches(_missing_rows(plan), batch_format="pyarrow", batch_size=None)
    rows = rows.repartition(target_num_rows_per_block=rows_per_block)
    rows = rows.map_batches(prepare, batch_format="pyarrow", batch_size=None, num_cpus=0.5)
    rows = rows.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_format="pyarrow",
        batch_size=rows_per_block,
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        memory=actors.memory,
        compute=ActorPoolStrategy(
            min_size=actors.count,
            max_size=max(actors.count, config.max_actors or 0),
            max_tasks_in_flight_per_actor=calls + 1,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,
        ),
    )
    return rows if config.task == "classify" else rows.map_batches(encode, batch_format="pyarrow", batch_size=None)


def _read(config: RunConfig, plan: RunPlan) -> ray.data.Dataset:
    if config.limit is not None:  # Ray's own limit takes whichever rows come first, not the manifest's first rows
        batches = take_rows(read_batches(config.manifest), config.limit)
        return ray.data.from_arrow([pa.Table.from_batches([batch]) for batch in batches])
    filesystem = storage.arrow_filesystem(config.manifest)[0]
    paths = [storage.arrow_filesystem(file)[1] for file in manifest_files(config.manifest)]
    rows = ray.data.read_parquet(
        paths, filesystem=filesystem, schema=plan.schema, partitioning=None, file_extensions=None
    )
    return rows.select_columns(plan.schema.names) if excluded_columns(config.manifest) else rows


def _rows_in(shard: Shard) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.filter(pa.array(in_shard(table, shard)))


def _missing_rows(plan: RunPlan) -> Callable[[pa.Table], pa.Table]:
    """Drops the rows that the ledger holds; its buckets are Ray objects, of which a process maps one at a time."""
    buckets = [ray.put(bucket) for bucket in plan.committed.id_hashes]

    def missing_rows(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(~isin_buckets(hash_ids(row_ids(table)), lambda bucket: ray.get(buckets[bucket]))))

    return missing_rows
