"""A run: the whole Ray Data graph, on a cluster that is there or on this machine."""

import logging
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from pipeline import manifest, storage
from pipeline.buckets import hashes_of
from pipeline.config import RunConfig
from pipeline.ledger import held
from pipeline.models.weights import weights_digest
from pipeline.plan import CheckpointFacts, InvalidManifestError, RunError, RunPlan, plan_run, write_run
from pipeline.progress import Figures, ProgressDisplay, Reporter, duration_of, rate_of
from pipeline.provenance import now
from pipeline.sink import LedgerDatasink
from pipeline.stages import Denoise, EncodeImages, LoadMachinery, PrepareRows, Report, row_ids

__all__ = ["InvalidManifestError", "RunError", "RunSummary", "run_job"]

_MEMORY_A_CHECKPOINT: Final = 3
"""How many times its weights' size an actor takes, and no less than _MEMORY_AN_ACTOR."""
_MEMORY_AN_ACTOR: Final = 2**30
_CALLS_AN_ACTOR: Final = 2
"""Batches that share an actor's lanes: while the first one's last rows run, the second fills the lanes."""


_PATIENCE: Final = 6 * 3600
"""Seconds without a finished block after which Ray Data gives up: a block of large pictures on a CPU takes long."""
_REMOTE: Final = re.compile("\x1b\\[[0-9;]*m")
_CLEAR: Final = ("CheckpointError", "StorageError", "ActorError", "RunError", "ManifestError")
"""Errors of our own, whose text says all."""


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
    occupancy: float
    """The part of the U-Net's evaluations that were some row's own."""
    output: str
    run_id: str

    @property
    def data(self) -> str:
        return storage.join(self.output, "data")

    @property
    def failed_rows(self) -> str:
        return storage.join(self.output, "failed")

    def __str__(self) -> str:
        earlier = f"{self.already_done:,} rows were there already. " if self.already_done else ""
        pace = f" in {duration_of(self.seconds)} ({rate_of(self.images_per_second)})" if self.made else ""
        text = f"{earlier}{self.made:,} rows made{pace}: {self.ok:,} pictures are in {storage.shown(self.data)}"
        if self.failed:
            text += f"\n{self.failed:,} rows failed; the reasons are in {storage.shown(self.failed_rows)}"
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Actors:
    """How many actors hold the model, and what Ray reserves for each."""

    count: int
    device: str
    cpus: float
    gpus: int


def run_job(
    config: RunConfig, *, load: LoadMachinery | None = None, checkpoint: CheckpointFacts | None = None
) -> RunSummary:
    """Make what is missing of a run's output. RunError: it could not start or did not finish, in one line.

    `load` makes the model of another thing than a checkpoint folder, of which `checkpoint` then tells. On
    KeyboardInterrupt what is committed stays, and the same config goes on."""
    started = time.monotonic()
    plan = plan_run(config, checkpoint)
    figures: Counter[str] = Counter()
    if plan.todo:
        try:
            with _ray(config, plan.checkpoint) as actors:
                _write_start(config, plan, actors)
                figures = _execute(config, plan, actors, load)
        except KeyboardInterrupt:
            write_run(config, plan, {"status": "stopped"})
            raise
        except RunError:
            raise
        except Exception as error:
            reason = f"the run did not finish: {one_line(error)}; the same command goes on"
            write_run(config, plan, {"status": "failed", "reason": reason})
            raise RunError(reason) from error
    seconds = time.monotonic() - started
    made = figures["ok"] + figures["failed"]
    summary = RunSummary(
        ok=plan.committed.ok + figures["ok"],
        failed=plan.committed.failed + figures["failed"],
        already_done=plan.already_done,
        made=made,
        seconds=seconds,
        images_per_second=figures["ok"] / seconds,
        occupancy=figures["lanes_filled"] / figures["lanes_run"] if figures["lanes_run"] else 0.0,
        output=config.output,
        run_id=plan.run_id,
    )
    if made:
        _write_end(config, plan, summary, figures)
    if made < plan.todo:
        raise RunError(f"{plan.todo - made:,} rows of the manifest are missing; the same command makes them")
    return summary


def _graph(
    config: RunConfig, plan: RunPlan, actors: Actors, load: LoadMachinery | None, report: Report
) -> ray.data.Dataset:
    """The whole pipeline, but for the sink."""
    rows_a_block = plan.rows_a_block(config, actors.count)
    prepare = PrepareRows(config=config, rules=plan.rules, manifest=plan.schema, duplicates=plan.duplicates)
    encode = EncodeImages(config=config, manifest=plan.schema)

    rows = _read(config, plan)
    if plan.committed.hashes.count:
        rows = rows.map_batches(_missing_rows(plan), batch_format="pyarrow", batch_size=None)
    rows = rows.repartition(target_num_rows_per_block=rows_a_block)
    rows = rows.map_batches(prepare, batch_format="pyarrow", batch_size=None, num_cpus=0.5)
    rows = rows.map_batches(
        Denoise,
        fn_constructor_args=(config, plan.run_id, actors.device, report, load),
        batch_format="pyarrow",
        batch_size=rows_a_block,
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        compute=ActorPoolStrategy(
            size=actors.count,
            max_tasks_in_flight_per_actor=_CALLS_AN_ACTOR + 1,
            max_concurrent_calls_per_actor=_CALLS_AN_ACTOR,
            enable_true_multi_threading=True,
        ),
    )
    return rows.map_batches(encode, batch_format="pyarrow", batch_size=None)


def _read(config: RunConfig, plan: RunPlan) -> ray.data.Dataset:
    if config.limit is not None:  # Ray's own limit takes whichever rows come first, not the manifest's first rows
        batches = manifest.limited(manifest.read_batches(config.manifest), config.limit)
        return ray.data.from_arrow([pa.Table.from_batches([batch]) for batch in batches])
    filesystem = storage.arrow_filesystem(config.manifest)[0]
    paths = [storage.arrow_filesystem(file)[1] for file in manifest.manifest_files(config.manifest)]
    return ray.data.read_parquet(
        paths, filesystem=filesystem, schema=plan.schema, partitioning=None, file_extensions=None
    )


def _missing_rows(plan: RunPlan) -> Callable[[pa.Table], pa.Table]:
    """Drops the rows that the ledger holds; its buckets are Ray objects, of which a process maps one at a time."""
    buckets = [ray.put(bucket) for bucket in plan.committed.hashes]

    def missing_rows(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(~held(hashes_of(row_ids(table)), lambda bucket: ray.get(buckets[bucket]))))

    return missing_rows


def _execute(config: RunConfig, plan: RunPlan, actors: Actors, load: LoadMachinery | None) -> Counter[str]:
    """Run the graph into the sink; what was done, by name."""
    figures: Any = ray.remote(num_cpus=0)(Figures).remote()
    report = Reporter(figures)
    sink = LedgerDatasink(config.output, plan.schema, report)
    with ProgressDisplay(lambda: _total(figures), todo=plan.todo, done=plan.already_done):
        _graph(config, plan, actors, load, report).write_datasink(sink)
    return Counter({**_total(figures), "ok": sink.ok, "failed": sink.failed})


def _total(figures: Any) -> dict[str, Any]:
    """What the figures' actor has; nothing while it cannot be reached: it only tells."""
    try:
        return ray.get(figures.total.remote(), timeout=5)
    except RayError:
        return {}


def _write_start(config: RunConfig, plan: RunPlan, actors: Actors) -> None:
    dtype = config.dtype or ("float16" if actors.device == "cuda" else "float32")
    folder = plan.checkpoint.folder
    digest = None if folder is None else weights_digest(folder, half=dtype == "float16")
    about = {
        "status": "running",
        "manifest": {"rows": plan.rows, "sha256": manifest.fingerprint(config.manifest)},
        "model": {"name": None if folder is None else folder.name, "weights_sha256": digest},
        "device": actors.device,
        "dtype": dtype,
        "actors": actors.count,
    }
    write_run(config, plan, about)


def _write_end(config: RunConfig, plan: RunPlan, summary: RunSummary, figures: Mapping[str, float]) -> None:
    about = {
        "status": "finished" if summary.made >= plan.todo else "incomplete",
        "finished_at": now().isoformat(timespec="seconds"),
        "ok": summary.ok,
        "failed": summary.failed,
        "last_attempt": {
            "made": summary.made,
            "already_done": summary.already_done,
            "seconds": round(summary.seconds, 3),
            "images_per_second": round(summary.images_per_second, 4),
            "occupancy": round(summary.occupancy, 4),
            "evaluations": int(figures.get("evaluations", 0)),
            "network_seconds": round(figures.get("network_seconds", 0.0), 3),
        },
    }
    write_run(config, plan, about)


# ---- the cluster


@contextmanager
def _ray(config: RunConfig, checkpoint: CheckpointFacts) -> Iterator[Actors]:
    """A Ray that is there, or one of this machine's for the time of the run."""
    _quiet()
    ours = not ray.is_initialized()
    address = config.address or os.environ.get("RAY_ADDRESS")
    if ours and address:
        try:
            with _quiet_start():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"no Ray cluster answers at {address}: {one_line(error)}") from error
    elif ours:
        _start_here(config, checkpoint)
    _quiet()
    try:
        yield _actors(config, checkpoint, ray.cluster_resources())
    finally:
        if ours:
            ray.shutdown()


def _start_here(config: RunConfig, checkpoint: CheckpointFacts) -> None:
    """Start Ray on this machine: CPUs for the actors, and at least two more for reading and writing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = config.actors or max(1, cores // config.threads)
    with _quiet_start():
        ray.init(
            address="local",
            num_cpus=max(wanted * config.threads, cores) + max(2, cores // 4),
            num_gpus=0 if config.device == "cpu" else None,  # None: those that there are
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _actors(config: RunConfig, checkpoint: CheckpointFacts, resources: Mapping[str, float]) -> Actors:
    """As many actors as were asked for; else one a GPU, or what memory and CPUs (with some left for the rest) hold."""
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    device = config.device if config.device != "auto" else "cuda" if gpus else "cpu"
    if device == "cuda":
        count = config.actors or gpus
        if not gpus or count > gpus:
            raise RunError(
                f"{max(count, 1)} actors need as many GPUs; the cluster has {gpus}: give --device cpu or fewer actors"
            )
        return Actors(count=count, device=device, cpus=min(config.threads, _share(cpus, count)), gpus=1)
    memory = max(_MEMORY_A_CHECKPOINT * checkpoint.size_bytes, _MEMORY_AN_ACTOR)
    by_memory = max(1, int(resources.get("memory", math.inf) // memory)) if "memory" in resources else 2**31
    by_cpus = max(1, int((cpus - max(2, cpus // 5)) // config.threads))
    count = config.actors or min(by_cpus, by_memory)
    return Actors(count=count, device=device, cpus=min(config.threads, _share(cpus, count)), gpus=0)


def _share(cpus: float, actors: int) -> float:
    """CPUs that each actor may reserve so that one is left for the other stages."""
    free = cpus - 1 if cpus > 1 else cpus / 2
    return max(math.floor(100 * free / actors) / 100, 0.01)


def _quiet() -> None:
    """Leave the terminal to our own progress: Ray Data's bars and logs go to Ray's files alone."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _PATIENCE
    context.use_datasource_v2 = False  # its reader starts tens of processes to read footers
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if not type(handler).__name__.startswith("SessionFile"):
                handler.setLevel(logging.CRITICAL)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Ray's C++ side writes warnings straight to standard error; told not to, it says that it was told, once."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def one_line(error: BaseException) -> str:
    """The first reason of what Ray raised, in one line: the innermost of the tracebacks in its text."""
    innermost = _REMOTE.sub("", str(error)).split("\n\nThe above exception was the direct cause")[0]
    lines = [line for line in innermost.splitlines() if line.strip()]
    last = next((line.strip() for line in reversed(lines) if not line.startswith(" ")), type(error).__name__)
    kind, colon, reason = last.partition(": ")
    if colon and kind.replace(".", "").replace("_", "").isalnum() and reason:
        kind = kind.rpartition(".")[2]
        return reason if kind in _CLEAR else f"{kind}: {reason}"
    return last
