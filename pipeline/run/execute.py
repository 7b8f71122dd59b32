"""The execution of a run: its graph, written through its sink, under its watchdog."""

from collections import Counter
from contextlib import suppress
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.errors import RunError
from pipeline.inference.journal import Journal
from pipeline.inference.node_cache import WeightHashes
from pipeline.output.lease import Lease
from pipeline.output.sink import LedgerDatasink
from pipeline.run.cluster import ActorPool
from pipeline.run.graph import build_graph
from pipeline.run.metrics import PublishedTotals, RemoteTotals
from pipeline.run.plan import RunPlan
from pipeline.run.progress import ProgressDisplay
from pipeline.run.rates import Rates, write_rates
from pipeline.run.remote_journal import RemoteJournal
from pipeline.run.source import read_missing_rows
from pipeline.run.stages import build_stages
from pipeline.run.watchdog import Watchdog
from pipeline.stages.denoise import LoadModel

_ACTORS_PER_SHARD: Final = 64
"""Actors that share a shard of the journal and of the totals."""
_MAX_SHARDS: Final = 32


def execute_plan(
    plan: RunPlan, pool: ActorPool, weights: WeightHashes, lease: Lease, load: LoadModel | None
) -> Counter[str]:
    """Run the graph of a plan; return the totals by name. KeyboardInterrupt if a signal stopped it early."""
    config = plan.config
    totals = RemoteTotals(_driver_actors(pool, PublishedTotals, plan.state.record.run_id))
    journal = RemoteJournal(_driver_actors(pool, Journal))
    stages = build_stages(
        config,
        plan.checked.checkpoint,
        plan.checked.rules,
        plan.checked.schema,
        run_id=plan.state.record.run_id,
        device=pool.device,
        report=totals,
        weights=weights,
        duplicates=plan.checked.duplicates,
        journal=journal,
        load=load,
    )
    rows = build_graph(read_missing_rows(plan), config, stages, pool, plan.rows_per_block(pool.count))
    sink = _sink(plan, pool, totals, lease)
    _write(rows, sink, plan, Rates(totals.total, pool.count), journal, lease)
    return Counter({**totals.total(), "ok": sink.ok, "failed": sink.failed, "actors": pool.count})


def _driver_actors(pool: ActorPool, kind: type, *arguments: Any) -> tuple[Any, ...]:
    """Start the actors that the run's actors share, on the driver's node, so that no other node's loss ends them."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    shared: Any = ray.remote(num_cpus=0)(kind).options(scheduling_strategy=node)  # pyright: ignore
    count = min(-(-pool.max_count // _ACTORS_PER_SHARD), _MAX_SHARDS)
    return tuple(shared.remote(*arguments) for _ in range(count))


def _sink(plan: RunPlan, pool: ActorPool, totals: RemoteTotals, lease: Lease) -> LedgerDatasink:
    return LedgerDatasink(
        plan.config.output,
        plan.checked.schema,
        totals,
        fence=lease.next_url,
        rows_per_file=plan.rows_per_file(pool.count),
        store=plan.config.store,
        task=plan.config.task,
    )


def _write(
    rows: ray.data.Dataset, sink: LedgerDatasink, plan: RunPlan, rates: Rates, journal: RemoteJournal, lease: Lease
) -> None:
    """Write the rows through the sink until they end or the watchdog ends the run."""
    watchdog = Watchdog(
        poll=rates.poll,
        stop=journal.stop,
        lost=lambda: lease.lost,
        stall_timeout=plan.config.stall_timeout,
        grace=plan.config.grace,
    )
    try:
        with watchdog, ProgressDisplay(rates.totals, todo=plan.todo, done=plan.already_done):
            rows.write_datasink(sink)
    except KeyboardInterrupt:
        if watchdog.reason:
            raise RunError(
                f"the run did not finish: {watchdog.reason}; run the same command again to continue"
            ) from None
        raise
    finally:
        if not lease.lost:
            with suppress(storage.StorageError):
                write_rates(plan.config.output, plan.state.record.attempt, rates.table())
    if watchdog.stopped and sink.ok + sink.failed < plan.todo:
        raise KeyboardInterrupt
