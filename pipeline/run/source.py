"""The rows that a run reads: those of its manifest, without other shards' rows and without committed rows."""

from collections.abc import Callable, Iterable

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource.datasource import Datasource, ReadTask

from pipeline.config import RunConfig
from pipeline.manifest.identity import Shard, hash_ids, in_shard
from pipeline.manifest.read import ManifestSlice, manifest_slices, read_slice
from pipeline.output.id_sets import isin_buckets
from pipeline.output.ledger import LedgerState
from pipeline.run.plan import RunPlan
from pipeline.stages.rows import row_ids


def read_missing_rows(plan: RunPlan) -> ray.data.Dataset:
    """Return the rows of a run that its output lacks."""
    rows = ray.data.read_datasource(ManifestDatasource(plan.config, plan.checked.schema))
    if plan.config.shard is not None:
        rows = rows.map_batches(_keep_shard(plan.config.shard), batch_format="pyarrow", batch_size=None)
    if plan.state.ledger.id_hashes.count:
        rows = rows.map_batches(_drop_committed(plan.state.ledger), batch_format="pyarrow", batch_size=None)
    return rows


class ManifestDatasource(Datasource):
    """The rows of a manifest as a Ray datasource: each task reads a slice of a file, all in one schema."""

    def __init__(self, config: RunConfig, schema: pa.Schema) -> None:
        super().__init__()
        self._slices = manifest_slices(config.manifest, config.limit)
        self._schema = schema

    def estimate_inmemory_data_size(self) -> int:
        return sum(part.size_bytes for part in self._slices)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return one task for each slice."""
        return [
            ReadTask(
                _reader(part, self._schema),
                BlockMetadata(part.rows, part.size_bytes, None, input_files=(part.file.url,)),
                schema=self._schema,
                per_task_row_limit=per_task_row_limit,
            )
            for part in self._slices
        ]


def _reader(part: ManifestSlice, schema: pa.Schema) -> Callable[[], Iterable[pa.Table]]:
    return lambda: (pa.Table.from_batches([batch]) for batch in read_slice(part, schema))


def _keep_shard(shard: Shard) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.filter(pa.array(in_shard(table, shard)))


def _drop_committed(ledger: LedgerState) -> Callable[[pa.Table], pa.Table]:
    """The buckets of the ledger's hashes are Ray objects; a process reads one of them at a time."""
    buckets = [ray.put(bucket) for bucket in ledger.id_hashes]

    def drop_committed(table: pa.Table) -> pa.Table:
        committed = isin_buckets(hash_ids(row_ids(table)), lambda index: ray.get(buckets[index]))
        return table.filter(pa.array(~committed))

    return drop_committed
