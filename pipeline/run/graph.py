"""The Ray Data graph: rows are prepared, go through the model, and are encoded."""

import math
from typing import Final

from ray.data import ActorPoolStrategy, Dataset

from pipeline.config import RunConfig
from pipeline.run.cluster import ActorPool
from pipeline.run.stages import Stages

_CALLS_PER_ACTOR: Final = 2
"""Blocks that share an actor's lanes: while the last rows of one run, the next one fills the lanes."""
_MAX_CALLS_PER_ACTOR: Final = 16
"""The same for blocks of few rows: as many as fill the lanes, up to this."""


def build_graph(rows: Dataset, config: RunConfig, stages: Stages, pool: ActorPool, rows_per_block: int) -> Dataset:
    """Return the output rows of manifest rows."""
    rows = rows.repartition(target_num_rows_per_block=rows_per_block)
    rows = rows.map_batches(stages.prepare, batch_format="pyarrow", batch_size=None, num_cpus=0.5)
    rows = rows.map_batches(
        stages.model,
        fn_constructor_args=stages.model_arguments,
        batch_format="pyarrow",
        batch_size=rows_per_block,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        memory=pool.memory,
        compute=_actor_pool(config, pool, rows_per_block),
    )
    if stages.encode is not None:
        rows = rows.map_batches(stages.encode, batch_format="pyarrow", batch_size=None)
    return rows


def _actor_pool(config: RunConfig, pool: ActorPool, rows_per_block: int) -> ActorPoolStrategy:
    calls_per_actor = max(_CALLS_PER_ACTOR, min(math.ceil(config.lanes / rows_per_block), _MAX_CALLS_PER_ACTOR))
    if config.task == "classify":  # a call has the network for itself
        calls_per_actor = 1
    return ActorPoolStrategy(
        min_size=pool.count,
        max_size=pool.max_count,
        max_tasks_in_flight_per_actor=calls_per_actor + 1,
        max_concurrent_calls_per_actor=calls_per_actor,
        enable_true_multi_threading=True,
    )
