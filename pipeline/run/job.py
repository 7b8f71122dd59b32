"""A run: check, acquire, read the state, plan, execute, finish."""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, ManifestError, RunError, one_line
from pipeline.inference.checkpoint_info import CheckpointInfo
from pipeline.inference.node_cache import WeightHashes
from pipeline.output.file_schema import refuse_other_columns
from pipeline.output.lease import Lease
from pipeline.output.ledger import LedgerState, delete_uncommitted, read_ledger
from pipeline.output.ledger_repair import repair_ledger
from pipeline.run.check import check_run
from pipeline.run.cluster import ActorPool, cluster_for
from pipeline.run.execute import execute_plan
from pipeline.run.plan import RunPlan, plan_run
from pipeline.run.rates import summarize_totals
from pipeline.run.stages import hash_weights
from pipeline.run.state import read_state
from pipeline.run.summary import RunSummary
from pipeline.stages.denoise import LoadModel
from pipeline.stages.rows import output_schema


def run_job(
    config: RunConfig, *, load: LoadModel | None = None, checkpoint: CheckpointInfo | None = None
) -> RunSummary:
    """Process the rows that a run's output lacks. RunError says in one line why it could not start or finish.

    `load` loads the model of something else than a checkpoint folder, which `checkpoint` then describes. After a
    KeyboardInterrupt, committed rows remain, and the same config continues the run."""
    started = time.monotonic()
    lease = Lease(config.output)
    try:
        plan = prepare_run(config, lease, checkpoint)
        totals, ledger = execute(plan, lease, load) if plan.todo else (Counter[str](), plan.state.ledger)
        if lease.is_taken():
            raise RunError(f"{storage.redact_url(config.output)}: another run has taken this output over")
        return finish(plan, totals, ledger, time.monotonic() - started)
    finally:
        with suppress(storage.StorageError):  # a lease that nobody renews expires
            lease.release()


def prepare_run(config: RunConfig, lease: Lease, checkpoint: CheckpointInfo | None = None) -> RunPlan:
    """Check a run, acquire its output, read the output's state, and plan the run. RunError if it cannot start."""
    try:
        checked = check_run(config, checkpoint)
        lease.acquire()
        state = read_state(config)
        refuse_other_columns(config.output, state.ledger.files, output_schema(checked.schema, config.task))
        return plan_run(config, checked, state)
    except (storage.StorageError, ManifestError, CheckpointError) as error:
        raise RunError(str(error)) from error


def execute(plan: RunPlan, lease: Lease, load: LoadModel | None) -> tuple[Counter[str], LedgerState]:
    """Execute a plan on a cluster; return the totals by name, and the output's ledger.

    The record says how the attempt ended."""
    try:
        with cluster_for(plan.config, plan.checked.checkpoint) as pool:
            weights = hash_weights(plan.config, plan.checked.checkpoint, pool.device)
            _record_start(plan, pool, weights)
            totals = execute_plan(plan, pool, weights, lease, load)
        ledger = read_ledger(plan.config.output)
        if not lease.is_taken():  # else another run may have files that it has not committed yet
            ledger = repair_ledger(plan.config.output, ledger)
            delete_uncommitted(plan.config.output, ledger)
    except KeyboardInterrupt:
        _record_stop(plan, lease, "stopped")
        raise
    except RunError as error:
        _record_stop(plan, lease, "failed", str(error))
        raise
    except Exception as error:
        reason = f"the run did not finish: {one_line(error)}; run the same command again to continue"
        _record_stop(plan, lease, "failed", reason)
        raise RunError(reason) from error
    return totals, ledger


def finish(plan: RunPlan, totals: Mapping[str, float], ledger: LedgerState, seconds: float) -> RunSummary:
    """Record the end of an attempt and return its summary. RunError if rows are still missing.

    Without rows to process, the record is only repaired: an earlier attempt may have died after its last commit."""
    ok, failed = int(totals.get("ok", 0)), int(totals.get("failed", 0))
    record = plan.state.record
    summary = RunSummary(
        ok=ledger.ok,
        failed=ledger.failed,
        already_done=plan.already_done,
        completed=ok + failed,
        seconds=seconds,
        images_per_second=ok / seconds,
        output=plan.config.output,
        run_id=record.run_id,
        task=plan.config.task,
    )
    before = plan.state.ledger.ok + plan.state.ledger.failed
    missing = plan.todo - min(summary.completed, ledger.ok + ledger.failed - before)
    complete = missing <= 0
    if summary.completed:
        last_attempt = {
            "completed": summary.completed,
            "already_done": summary.already_done,
            "seconds": round(seconds, 3),
            **summarize_totals(totals, int(totals["actors"]), seconds),
        }
        record.finish(complete=complete, ok=summary.ok, failed=summary.failed, last_attempt=last_attempt)
    elif complete:
        record.repair(ok=summary.ok, failed=summary.failed)
    if not complete:
        raise RunError(f"{missing:,} rows of the manifest are missing; run the same command again to complete them")
    return summary


def _record_start(plan: RunPlan, pool: ActorPool, weights: WeightHashes) -> None:
    folder, clip = plan.checked.checkpoint.folder, plan.checked.checkpoint.clip
    plan.state.record.start(
        manifest={"rows": plan.rows, "sha256": plan.state.manifest_sha256},
        model={"name": None if folder is None else folder.name, "weights_sha256": weights.model},
        clip=None if clip is None else {"name": clip.name, "weights_sha256": weights.clip},
        embeddings=weights.embeddings,
        loras={name: {"weights_sha256": sha256} for name, sha256 in weights.loras.items()},
        device=pool.device,
        dtype=plan.config.dtype_on(pool.device),
        actors=pool.count,
    )


def _record_stop(plan: RunPlan, lease: Lease, status: Literal["stopped", "failed"], reason: str | None = None) -> None:
    """Record an early end, unless another run has taken over; storage that fails must not hide the reason."""
    with suppress(storage.StorageError):
        if not lease.is_taken():
            plan.state.record.stop(status, reason)
