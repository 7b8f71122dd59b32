"""The Ray cluster of a run, and the actors that fit on it."""

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import ray

from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.inference.checkpoint_info import CheckpointInfo
from pipeline.run.autoscaler import startable_resources
from pipeline.run.connection import connected, start_local
from pipeline.run.progress import duration_of

_MEMORY_PER_WEIGHT_BYTE: Final = 3
"""Memory of an actor on CPUs, as a multiple of its weights' size; at least _MIN_ACTOR_BYTES."""
_MIN_ACTOR_BYTES: Final = 2**30
_NODE_SECONDS: Final = 3600
"""The longest wait for the first node with a GPU."""
_LINE_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorPool:
    """The actors that hold the model, and the resources that Ray reserves for each."""

    count: int
    max_count: int
    """The most actors that Ray may start while rows wait."""
    device: str
    cpus: float
    gpus: float
    memory: int | None
    """Bytes."""


@contextmanager
def cluster_for(config: RunConfig, checkpoint: CheckpointInfo) -> Iterator[ActorPool]:
    """Connect to the cluster of a run, and yield the actors that fit on it, once the first of them does."""
    local = not (ray.is_initialized() or config.address or os.environ.get("RAY_ADDRESS", "local") != "local")
    with connected(config.address, lambda: _start_for(config)):
        startable = None if local else startable_resources()
        pool = plan_actors(config, checkpoint, ray.cluster_resources(), startable)
        if pool.device == "cuda" and not ray.cluster_resources().get("GPU"):
            _await_gpu(pool)
            pool = plan_actors(config, checkpoint, ray.cluster_resources(), startable)
        yield pool


def _await_gpu(pool: ActorPool) -> None:
    """Wait until a node with a GPU has joined: a task that needs one makes an autoscaler start it."""
    probe = ray.remote(num_cpus=0, num_gpus=pool.gpus)(lambda: None).remote()
    started = time.monotonic()
    while not ray.wait([probe], timeout=_LINE_SECONDS if time.monotonic() > started + 1 else 1.0)[0]:
        waited = time.monotonic() - started
        if waited > _NODE_SECONDS:
            ray.cancel(probe)
            raise RunError(
                f"no node with {pool.gpus:g} GPUs joined the cluster in {duration_of(waited)}; "
                "add one, or give --device cpu"
            )
        sys.stderr.write(f"waiting for a node with {pool.gpus:g} GPUs: {duration_of(waited)}\n")
        sys.stderr.flush()


def _start_for(config: RunConfig) -> None:
    """Start a local Ray with CPUs for the actors and at least two more for reading and writing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = config.max_actors or config.actors or max(1, cores // config.threads)
    start_local(
        num_cpus=max(wanted * config.threads, cores) + max(2, cores // 4),
        num_gpus=0 if config.device == "cpu" else None,
    )


def plan_actors(
    config: RunConfig,
    checkpoint: CheckpointInfo,
    resources: Mapping[str, float],
    startable: Mapping[str, float] | None = None,
) -> ActorPool:
    """Return the actors that a config asks for, or else one per GPU, or as many as fit on memory and CPUs.

    `resources` are those of the running nodes. `startable` are all that the cluster can have once it has started
    further nodes, empty if that is not known, and None if none can join. Some CPUs are left for the other stages.
    RunError if the GPUs are too few."""
    gpus = int(max(resources.get("GPU", 0), min((startable or {}).get("GPU", 0), 2**31)))
    device = config.device if config.device != "auto" else "cuda" if gpus else "cpu"
    if device == "cpu":
        return _plan_cpu_actors(config, checkpoint, resources)
    fit = _actors_on(gpus, config)
    if not fit and startable is not None:  # a node may join that nobody has announced
        fit = config.actors or 1
    count = config.actors or _actors_on(int(resources.get("GPU", 0)), config) or 1
    if count > fit:
        raise RunError(
            f"{count} actors need {count * config.gpus_per_actor:g} GPUs; the cluster has {gpus}: "
            "give --device cpu, fewer actors, or a smaller --gpus-per-actor"
        )
    return ActorPool(
        count=count,
        max_count=max(count, config.max_actors or 0, 0 if config.actors else fit),
        device=device,
        cpus=min(config.threads, _cpus_per_actor(resources.get("CPU", 1.0), count)),
        gpus=config.gpus_per_actor,
        memory=_reserved_memory(config),
    )


def _plan_cpu_actors(config: RunConfig, checkpoint: CheckpointInfo, resources: Mapping[str, float]) -> ActorPool:
    cpus, reserved = resources.get("CPU", 1.0), _reserved_memory(config)
    memory = reserved or max(_MEMORY_PER_WEIGHT_BYTE * checkpoint.size_bytes, _MIN_ACTOR_BYTES)
    by_memory = max(1, int(resources.get("memory", math.inf) // memory)) if "memory" in resources else 2**31
    by_cpus = max(1, int((cpus - max(2, cpus // 5)) // config.threads))
    count = config.actors or min(by_cpus, by_memory)
    return ActorPool(
        count=count,
        max_count=max(count, config.max_actors or 0),
        device="cpu",
        cpus=min(config.threads, _cpus_per_actor(cpus, count)),
        gpus=0.0,
        memory=reserved,
    )


def _actors_on(gpus: int, config: RunConfig) -> int:
    each = config.gpus_per_actor
    return int(1 / each) * gpus if each < 1 else int(gpus / each)


def _reserved_memory(config: RunConfig) -> int | None:
    return None if config.memory_per_actor is None else int(config.memory_per_actor * 2**30)


def _cpus_per_actor(cpus: float, actors: int) -> float:
    """Return the CPUs that each actor may reserve so that one CPU, or a fifth of them, is left for the other stages."""
    free = cpus - max(1, cpus / 5) if cpus > 1 else cpus / 2
    return max(math.floor(100 * free / actors) / 100, 0.01)
