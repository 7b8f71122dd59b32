"""A run: the whole Ray Data graph, on a cluster that is there or on this machine."""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.config import RunConfig, Task
from pipeline.errors import RunError, one_line
from pipeline.inference.checkpoint_info import CheckpointInfo
from pipeline.inference.journal import Journal
from pipeline.inference.node_cache import Weights
from pipeline.models.checkpoint.weights import weights_digest
from pipeline.output.lease import Lease
from pipeline.output.ledger import delete_uncommitted, read_ledger
from pipeline.output.provenance import utc_now
from pipeline.output.run_record import read_run, refuse_differences, write_run
from pipeline.output.sink import LedgerDatasink
from pipeline.run.cluster import Actors, cluster_for
from pipeline.run.graph import build_graph
from pipeline.run.metrics import MeteredFigures, Reporter
from pipeline.run.plan import RunPlan, plan_run
from pipeline.run.progress import ProgressDisplay, duration_of, rate_of
from pipeline.run.rates import Rates, summary_of, write_rates
from pipeline.run.remote_journal import RemoteJournal
from pipeline.run.watchdog import Watchdog
from pipeline.stages.denoise import LoadModel


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """How a run ended."""

    ok: int
    """Pictures in the output, earlier attempts' included."""
    failed: int
    """Failed rows in the output, earlier attempts' included."""
    already_done: int
    """Rows that were committed before this attempt."""
    made: int
    """Rows that this attempt committed."""
    seconds: float
    images_per_second: float
    """Of this attempt, with the loading of the model."""
    output: str
    run_id: str
    task: Task = "generate"

    @property
    def data(self) -> str:
        return storage.join(self.output, "data")

    @property
    def failed_rows(self) -> str:
        return storage.join(self.output, "failed")

    def __str__(self) -> str:
        earlier = f"{self.already_done:,} rows were there already. " if self.already_done else ""
        pace = f" in {duration_of(self.seconds)} ({rate_of(self.images_per_second)})" if self.made else ""
        made = "labeled pictures" if self.task == "classify" else "pictures"
        text = f"{earlier}{self.made:,} rows made{pace}: {self.ok:,} {made} are in {storage.redact_url(self.data)}"
        if self.failed:
            text += f"\n{self.failed:,} rows failed; the reasons are in {storage.redact_url(self.failed_rows)}"
        return text


def run_job(
    config: RunConfig, *, load: LoadModel | None = None, checkpoint: CheckpointInfo | None = None
) -> RunSummary:
    """Make what is missing of a run's output. RunError: it could not start or did not finish, in one line.

    `load` makes the model of another thing than a checkpoint folder, of which `checkpoint` then tells. On
    KeyboardInterrupt what is committed stays, and the same config goes on."""
    started = time.monotonic()
    lease = Lease(config.output)
    try:
        plan = plan_run(config, lease, checkpoint)
        figures = _run(config, plan, lease, load) if plan.todo else Counter[str]()
    finally:
        with suppress(storage.StorageError):  # a lease that nobody renews ends by itself
            lease.release()
    seconds = time.monotonic() - started
    made = figures["ok"] + figures["failed"]
    summary = RunSummary(
        ok=plan.committed.ok + figures["ok"],
        failed=plan.committed.failed + figures["failed"],
        already_done=plan.already_done,
        made=made,
        seconds=seconds,
        images_per_second=figures["ok"] / seconds,
        output=config.output,
        run_id=plan.run_id,
        task=config.task,
    )
    if made:
        _write_end(config, plan, summary, figures)
    if made < plan.todo:
        raise RunError(f"{plan.todo - made:,} rows of the manifest are missing; the same command makes them")
    return summary


def _run(config: RunConfig, plan: RunPlan, lease: Lease, load: LoadModel | None) -> Counter[str]:
    """What was done, by name; run.json says how it ended."""
    try:
        with cluster_for(config, plan.checkpoint) as actors:
            weights = _write_start(config, plan, actors)
            figures = _execute(config, plan, actors, lease, load, weights)
        if not lease.is_taken():  # by a run that would not have its files committed yet
            delete_uncommitted(config.output, read_ledger(config.output))
    except KeyboardInterrupt:
        _write_stop(config, plan, lease, {"status": "stopped"})
        raise
    except RunError as error:
        _write_stop(config, plan, lease, {"status": "failed", "reason": str(error)})
        raise
    except Exception as error:
        reason = f"the run did not finish: {one_line(error)}; the same command goes on"
        _write_stop(config, plan, lease, {"status": "failed", "reason": reason})
        raise RunError(reason) from error
    return figures


def _write_stop(config: RunConfig, plan: RunPlan, lease: Lease, about: dict[str, Any]) -> None:
    """Into run.json, if the output is still ours; storage that fails must not hide why the run ended."""
    with suppress(storage.StorageError):
        if not lease.is_taken():
            write_run(config, plan.run_id, plan.attempt, about)


def _execute(
    config: RunConfig,
    plan: RunPlan,
    actors: Actors,
    lease: Lease,
    load: LoadModel | None,
    weights: Weights,
) -> Counter[str]:
    """Run the graph into the sink; what was done, by name. KeyboardInterrupt, if a signal ended it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # they end with us alone
    figures: Any = ray.remote(num_cpus=0)(MeteredFigures).options(scheduling_strategy=here).remote(plan.run_id)  # pyright: ignore
    journal = RemoteJournal(ray.remote(num_cpus=0)(Journal).options(scheduling_strategy=here).remote())  # pyright: ignore
    report = Reporter(figures)
    rows_per_file = plan.rows_per_file(config, actors.count)
    sink = LedgerDatasink(
        config.output,
        plan.schema,
        report,
        fence=lease.next_url,
        rows_per_file=rows_per_file,
        store=config.store,
        task=config.task,
    )
    rates = Rates(lambda: _total(figures), actors.count)
    watch = Watchdog(
        poll=rates.poll,
        stop=journal.stop,
        lost=lambda: lease.lost,
        stall_timeout=config.stall_timeout,
        grace=config.grace,
    )
    try:
        with watch, ProgressDisplay(lambda: _total(figures), todo=plan.todo, done=plan.already_done):
            build_graph(config, plan, actors, load, report, journal, weights).write_datasink(sink)
    except KeyboardInterrupt:
        if watch.reason:
            raise RunError(f"the run did not finish: {watch.reason}; the same command goes on") from None
        raise
    finally:
        if not lease.lost:
            with suppress(storage.StorageError):
                write_rates(config.output, plan.attempt, rates.table())
    if watch.stopped and sink.ok + sink.failed < plan.todo:
        raise KeyboardInterrupt
    return Counter({**_total(figures), "ok": sink.ok, "failed": sink.failed, "actors": actors.count})


def _total(figures: Any) -> dict[str, Any]:
    """What the figures' actor has; nothing while it cannot be reached: it only tells."""
    try:
        return ray.get(figures.total.remote(), timeout=5)
    except RayError:
        return {}


def _write_start(config: RunConfig, plan: RunPlan, actors: Actors) -> Weights:
    """The sha256 of the weights; RunError where they or the device differ from those of earlier pictures."""
    dtype, folder, clip = config.dtype_on(actors.device), plan.checkpoint.folder, plan.checkpoint.clip
    weights = Weights(
        model=None if folder is None else weights_digest(folder, half=dtype == "float16"),
        clip=None if clip is None else weights_digest(clip, half=False),
    )
    about = {
        "status": "running",
        "manifest": {"rows": plan.rows, "sha256": plan.fingerprint},
        "model": {"name": None if folder is None else folder.name, "weights_sha256": weights.model},
        **({} if clip is None else {"clip": {"name": clip.name, "weights_sha256": weights.clip}}),
        "device": actors.device,
        "dtype": dtype,
        "actors": actors.count,
    }
    earlier = read_run(config.output)
    refuse_differences(config, about, earlier if earlier.get("run_id") == plan.run_id else {})
    write_run(config, plan.run_id, plan.attempt, about)
    return weights


def _write_end(config: RunConfig, plan: RunPlan, summary: RunSummary, figures: Mapping[str, float]) -> None:
    about = {
        "status": "finished" if summary.made >= plan.todo else "incomplete",
        "finished_at": utc_now().isoformat(timespec="seconds"),
        "ok": summary.ok,
        "failed": summary.failed,
        "last_attempt": {
            "made": summary.made,
            "already_done": summary.already_done,
            "seconds": round(summary.seconds, 3),
            "actors": int(figures["actors"]),
            **summary_of(figures, int(figures["actors"]), summary.seconds),
            "evaluations": int(figures.get("evaluations", 0)),
            "storage_retries": int(figures.get("storage_retries", 0)),
        },
    }
    write_run(config, plan.run_id, plan.attempt, about)
