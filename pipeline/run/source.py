"""The rows that a run reads: those of its manifest, without other shards' rows and without committed rows."""

from collections.abc import Callable

import pyarrow as pa
import ray
import ray.data

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.manifest.identity import Shard, hash_ids, in_shard
from pipeline.manifest.read import excluded_columns, manifest_files, read_batches, take_rows
from pipeline.output.id_sets import isin_buckets
from pipeline.output.ledger import LedgerState
from pipeline.run.plan import RunPlan
from pipeline.stages.rows import row_ids


def read_missing_rows(plan: RunPlan) -> ray.data.Dataset:
    """Return the rows of a run that its output lacks."""
    rows = _read_manifest(plan.config, plan.checked.schema)
    if plan.config.shard is not None:
        rows = rows.map_batches(_keep_shard(plan.config.shard), batch_format="pyarrow", batch_size=None)
    if plan.state.ledger.id_hashes.count:
        rows = rows.map_batches(_drop_committed(plan.state.ledger), batch_format="pyarrow", batch_size=None)
    return rows


def _read_manifest(config: RunConfig, schema: pa.Schema) -> ray.data.Dataset:
    if config.limit is not None:  # Ray's own limit takes any rows, not the first rows of the manifest
        batches = take_rows(read_batches(config.manifest), config.limit)
        return ray.data.from_arrow([pa.Table.from_batches([batch]) for batch in batches])
    filesystem = storage.arrow_filesystem(config.manifest)[0]
    paths = [storage.arrow_filesystem(file)[1] for file in manifest_files(config.manifest)]
    rows = ray.data.read_parquet(paths, filesystem=filesystem, schema=schema, partitioning=None, file_extensions=None)
    return rows.select_columns(schema.names) if excluded_columns(config.manifest) else rows


def _keep_shard(shard: Shard) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.filter(pa.array(in_shard(table, shard)))


def _drop_committed(ledger: LedgerState) -> Callable[[pa.Table], pa.Table]:
    """The buckets of the ledger's hashes are Ray objects; a process reads one of them at a time."""
    buckets = [ray.put(bucket) for bucket in ledger.id_hashes]

    def drop_committed(table: pa.Table) -> pa.Table:
        committed = isin_buckets(hash_ids(row_ids(table)), lambda index: ray.get(buckets[index]))
        return table.filter(pa.array(~committed))

    return drop_committed
