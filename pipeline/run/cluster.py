"""The Ray cluster of a run, an existing one or a local one for the time of the run, and the actors that fit on it."""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import ray
from ray.data import DataContext

from pipeline.config import RunConfig
from pipeline.errors import RunError, one_line
from pipeline.inference.checkpoint_info import CheckpointInfo

_MEMORY_PER_WEIGHT_BYTE: Final = 3
"""Memory of an actor on CPUs, as a multiple of its weights' size; at least _MIN_ACTOR_BYTES."""
_MIN_ACTOR_BYTES: Final = 2**30
_NO_TIMEOUT_SECONDS: Final = 30 * 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorPool:
    """The actors that hold the model, and the resources that Ray reserves for each."""

    count: int
    device: str
    cpus: float
    gpus: float
    memory: int | None
    """Bytes."""


@contextmanager
def connected(address: str | None, start: Callable[[], None] | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at `address` or RAY_ADDRESS, or else start a local one by `start`, and disconnect.

    A Ray that is initialized already is used and left running. RunError if no cluster answers at the address."""
    _disable_ray_output()
    ours = not ray.is_initialized()
    address = address or os.environ.get("RAY_ADDRESS")
    if ours and address:
        _connect(address)
    elif ours:
        (start or _start)()
    _disable_ray_output()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def cluster_for(config: RunConfig, checkpoint: CheckpointInfo) -> Iterator[ActorPool]:
    """Connect to the cluster of a run, and yield the actors that fit on it."""
    with connected(config.address, lambda: _start_for(config)):
        yield plan_actors(config, checkpoint, ray.cluster_resources())


def _connect(address: str) -> None:
    try:
        with _silence_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"no Ray cluster answers at {address}: {one_line(error)}") from error


def _start_for(config: RunConfig) -> None:
    """Start a local Ray with CPUs for the actors and at least two more for reading and writing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = config.max_actors or config.actors or max(1, cores // config.threads)
    _start(
        num_cpus=max(wanted * config.threads, cores) + max(2, cores // 4),
        num_gpus=0 if config.device == "cpu" else None,
    )


def _start(*, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Start a local Ray; None: all CPUs or GPUs of this machine."""
    with _silence_stderr():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def plan_actors(config: RunConfig, checkpoint: CheckpointInfo, resources: Mapping[str, float]) -> ActorPool:
    """Return the actors that a config asks for, or else one per GPU, or as many as fit on memory and CPUs.

    Some CPUs are left for the other stages. RunError if the GPUs are too few."""
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    device = config.device if config.device != "auto" else "cuda" if gpus else "cpu"
    reserved = None if config.memory_per_actor is None else int(config.memory_per_actor * 2**30)
    if device == "cuda":
        gpus_per_actor = config.gpus_per_actor
        fit = int(1 / gpus_per_actor) * gpus if gpus_per_actor < 1 else int(gpus / gpus_per_actor)
        count = config.actors or fit
        if not fit or count > fit:
            raise RunError(
                f"{max(count, 1)} actors need {max(count, 1) * gpus_per_actor:g} GPUs; the cluster has {gpus}: "
                "give --device cpu, fewer actors, or a smaller --gpus-per-actor"
            )
    else:
        gpus_per_actor = 0.0
        memory = reserved or max(_MEMORY_PER_WEIGHT_BYTE * checkpoint.size_bytes, _MIN_ACTOR_BYTES)
        by_memory = max(1, int(resources.get("memory", math.inf) // memory)) if "memory" in resources else 2**31
        by_cpus = max(1, int((cpus - max(2, cpus // 5)) // config.threads))
        count = config.actors or min(by_cpus, by_memory)
    return ActorPool(
        count=count,
        device=device,
        cpus=min(config.threads, _cpus_per_actor(cpus, count)),
        gpus=gpus_per_actor,
        memory=reserved,
    )


def _cpus_per_actor(cpus: float, actors: int) -> float:
    """Return the CPUs that each actor may reserve so that one CPU, or a fifth of them, is left for the other stages."""
    free = cpus - max(1, cpus / 5) if cpus > 1 else cpus / 2
    return max(math.floor(100 * free / actors) / 100, 0.01)


def _disable_ray_output() -> None:
    """Switch off Ray Data's progress bars and its warnings on the terminal; its log files remain."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _NO_TIMEOUT_SECONDS  # the watchdog sees progress that Ray does not
    context.use_datasource_v2 = False  # its reader starts tens of processes to read Parquet footers
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if not type(handler).__name__.startswith("SessionFile"):
                handler.setLevel(logging.CRITICAL)


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard standard error while Ray starts: its C++ code writes warnings there, even when they are switched off."""
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
