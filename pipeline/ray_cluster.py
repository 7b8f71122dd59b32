"""A Ray cluster that is there, or one of this machine's for the time of a run, and the actors that fit on it."""

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.data import DataContext
from ray.exceptions import RayError
from ray.util.metrics import Counter

from pipeline.config import RunConfig
from pipeline.plan import CheckpointFacts, RunError
from pipeline.progress import Figures
from pipeline.rates import SECONDS

_MEMORY_A_CHECKPOINT: Final = 3
"""How many times its weights' size an actor takes, and no less than _MEMORY_AN_ACTOR."""
_MEMORY_AN_ACTOR: Final = 2**30
_NEVER: Final = 30 * 86_400
_REMOTE: Final = re.compile("\x1b\\[[0-9;]*m")
_STORAGE: Final = ("StorageError", "StorageUnavailableError")
_CLEAR: Final = ("CheckpointError", *_STORAGE, "ActorError", "RunError", "ManifestError")
"""Errors of our own, whose text says all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Actors:
    """How many actors hold the model, and what Ray reserves for each."""

    count: int
    device: str
    cpus: float
    gpus: float
    memory: int | None
    """Bytes."""


METRICS: Final = {
    "rows": "Rows that left the lanes.",
    "ok": "Pictures committed.",
    "failed": "Failed rows committed.",
    "prepared": "Rows whose pictures were fetched and decoded.",
    "evaluations": "Calls of the U-Net.",
    "lanes_filled": "Lanes of these calls that held a row.",
    "lanes_run": "Lanes of these calls, empty ones included.",
    **{f"{name}_seconds": text for name, text in SECONDS.items()},
    "out_of_memory": "Calls of the U-Net that did not fit into memory, and were made again in parts.",
    "gpu_memory_bytes": "The most GPU memory that each process's tensors took at once, of all processes together.",
    "hung_calls": "Calls of the U-Net that hung: their processes were ended.",
    "storage_retries": "Faults of storage that passed.",
}
"""What Ray's metrics tell of a run, as `ray_latentmill_NAME`, tagged with the run's id."""


class MeteredFigures(Figures):
    """Figures that Ray's dashboard and Prometheus see as well."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._counters = {
            name: Counter(f"latentmill_{name}", description=text, tag_keys=("run",)) for name, text in METRICS.items()
        }
        self._tags = {"run": run_id}

    def add(self, amounts: Mapping[str, float]) -> None:
        super().add(amounts)
        for name, amount in amounts.items():
            if amount > 0 and name in self._counters:
                self._counters[name].inc(amount, self._tags)


@dataclass(frozen=True)
class RemoteJournal:
    """A Journal that is an actor. While it cannot be reached it knows of no deaths: it only protects."""

    actor: Any

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]:
        return self._answer(self.actor.begin.remote(caller, list(keys)), {})

    def started(self, caller: str, keys: Sequence[str]) -> None:
        self._answer(self.actor.started.remote(caller, list(keys)), None)

    def done(self, caller: str, keys: Sequence[str]) -> None:
        self.actor.done.remote(caller, list(keys))

    def stop(self) -> None:
        self.actor.stop.remote()

    def stopping(self) -> bool:
        return self._answer(self.actor.stopping.remote(), False)

    def _answer(self, reference: Any, otherwise: Any) -> Any:
        try:
            return ray.get(reference, timeout=10)
        except RayError:
            return otherwise


@contextmanager
def connected(address: str | None, start: Callable[[], None] | None = None) -> Iterator[None]:
    """A Ray that is there, at `address` or RAY_ADDRESS; else one of this machine's, which `start` begins and this ends.

    RunError if none answers at the address."""
    _quiet()
    ours = not ray.is_initialized()
    address = address or os.environ.get("RAY_ADDRESS")
    if ours and address:
        _join(address)
    elif ours:
        (start or _start)()
    _quiet()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def cluster_for(config: RunConfig, checkpoint: CheckpointFacts) -> Iterator[Actors]:
    """A Ray that is there, or one of this machine's for the time of the run."""
    with connected(config.address, lambda: _start_for(config)):
        yield actors_on(config, checkpoint, ray.cluster_resources())


def _join(address: str) -> None:
    try:
        with _quiet_start():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"no Ray cluster answers at {address}: {one_line(error)}") from error


def _start_for(config: RunConfig) -> None:
    """Start Ray on this machine: CPUs for the actors, and at least two more for reading and writing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = config.max_actors or config.actors or max(1, cores // config.threads)
    _start(
        num_cpus=max(wanted * config.threads, cores) + max(2, cores // 4),
        num_gpus=0 if config.device == "cpu" else None,
    )


def _start(*, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Start Ray on this machine; None: with what there is."""
    with _quiet_start():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def actors_on(config: RunConfig, checkpoint: CheckpointFacts, resources: Mapping[str, float]) -> Actors:
    """As many actors as were asked for; else one a GPU, or what memory and CPUs (with some left for the rest) hold."""
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    device = config.device if config.device != "auto" else "cuda" if gpus else "cpu"
    reserved = None if config.memory_per_actor is None else int(config.memory_per_actor * 2**30)
    if device == "cuda":
        each = config.gpus_per_actor
        fit = int(1 / each) * gpus if each < 1 else int(gpus / each)
        count = config.actors or fit
        if not fit or count > fit:
            raise RunError(
                f"{max(count, 1)} actors need {max(count, 1) * each:g} GPUs; the cluster has {gpus}: "
                "give --device cpu, fewer actors, or a part as --gpus-per-actor"
            )
    else:
        each = 0.0
        memory = reserved or max(_MEMORY_A_CHECKPOINT * checkpoint.size_bytes, _MEMORY_AN_ACTOR)
        by_memory = max(1, int(resources.get("memory", math.inf) // memory)) if "memory" in resources else 2**31
        by_cpus = max(1, int((cpus - max(2, cpus // 5)) // config.threads))
        count = config.actors or min(by_cpus, by_memory)
    return Actors(count=count, device=device, cpus=min(config.threads, _share(cpus, count)), gpus=each, memory=reserved)


def _share(cpus: float, actors: int) -> float:
    """CPUs that each actor may reserve so that one, or a fifth, is left for the other stages."""
    free = cpus - max(1, cpus / 5) if cpus > 1 else cpus / 2
    return max(math.floor(100 * free / actors) / 100, 0.01)


def _quiet() -> None:
    """Leave the terminal to our own progress: Ray Data's bars and logs go to Ray's files alone."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _NEVER  # the run's own watch knows more of progress
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
