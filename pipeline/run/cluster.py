"""A Ray cluster that is there, or one of this machine's for the time of a run, and the actors that fit on it."""

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

_MEMORY_A_CHECKPOINT: Final = 3
"""How many times its weights' size an actor takes, and no less than _MEMORY_AN_ACTOR."""
_MEMORY_AN_ACTOR: Final = 2**30
_NEVER: Final = 30 * 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Actors:
    """How many actors hold the model, and what Ray reserves for each."""

    count: int
    device: str
    cpus: float
    gpus: float
    memory: int | None
    """Bytes."""


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
def cluster_for(config: RunConfig, checkpoint: CheckpointInfo) -> Iterator[Actors]:
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


def actors_on(config: RunConfig, checkpoint: CheckpointInfo, resources: Mapping[str, float]) -> Actors:
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
