"""`latentmill doctor`: diagnose a cluster, its storage and a checkpoint."""

import os
import platform
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import click

LIBRARIES: Final = ("ray", "torch", "pyarrow", "transformers", "fsspec")
MIN_FREE_BYTES: Final = 2 * 10**9
"""Free memory of a node that a model needs at least."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    ok: bool
    result: str
    remedy: str = ""
    """What to do if the check failed."""


@click.command()
@click.option("--address", metavar="ADDR", help="Address of a Ray cluster. [default: RAY_ADDRESS, else a local one]")
@click.option("--storage", "storages", metavar="URL", multiple=True, help="Folder to write and read; repeatable.")
@click.option("--model", metavar="PATH_OR_URL", default="shapes", show_default=True, help="Checkpoint to load.")
def doctor(address: str | None, storages: tuple[str, ...], model: str) -> int:
    """Diagnose a cluster, its storage and a checkpoint.

    Compares the versions on all nodes, and checks CPUs, GPUs and memory; then writes to storage and loads the
    checkpoint from a worker.

    Exit status: 0, all checks passed; 1, a check failed, and its line says what to do.
    """
    bad = 0
    for finding in examine(address, storages, model):
        bad += not finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.subject:<12} {finding.result}")
        if not finding.ok and finding.remedy:
            click.echo(f"     {'':<12} -> {finding.remedy}")
    return 1 if bad else 0


def examine(address: str | None, storages: tuple[str, ...], model: str) -> Iterator[Finding]:
    """Yield the result of each check as soon as it is known."""
    import ray
    from ray.exceptions import RayError

    from pipeline.errors import one_line
    from pipeline.run.connection import connected

    yield Finding("this host", sys.version_info >= (3, 11), versions_text(versions()), "latentmill needs Python 3.11")
    try:
        with connected(address):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            yield from _cluster(nodes)
            tasks: list[tuple[str, Callable[[], str], str]] = [
                (f"storage {url}", _storage_task(url), "check the URL, the keys and the endpoint on the workers")
                for url in storages
            ]
            tasks.append((f"model {model}", _model_task(model), "the checkpoint must be readable from every worker"))
            for subject, task, remedy in tasks:
                try:
                    yield Finding(subject, True, ray.get(ray.remote(num_cpus=0)(task).remote()))
                except RayError as error:
                    yield Finding(subject, False, one_line(error), remedy)
    except ValueError as error:
        yield Finding("cluster", False, str(error), "give --address HEAD:6379, or none for a local Ray")
    except RayError as error:
        yield Finding("cluster", False, one_line(error), "latentmill must be installed on every node")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that must agree between nodes."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def versions_text(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _cluster(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = ray.cluster_resources()
    store = resources.get("object_store_memory", 0) / 1e9
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    summary = f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs, object store {store:.1f} GB"
    yield Finding("cluster", store >= 0.1, summary, "start Ray with --object-store-memory of 1 GB or more")
    own = versions()
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probe = ray.remote(num_cpus=0)(_probe_node).options(scheduling_strategy=strategy)
        theirs, free = ray.get(probe.remote())
        different = {name: number for name, number in theirs.items() if number != own[name]}
        name = f"node {node['NodeManagerAddress']}"
        yield Finding(
            name,
            not different,
            versions_text(different) or "the same versions as this host",
            "install the same versions on all nodes",
        )
        yield Finding(
            name, free >= MIN_FREE_BYTES, f"{free / 1e9:.1f} GB of memory free", "use fewer actors or larger nodes"
        )


def _probe_node() -> tuple[dict[str, str], int]:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return versions(), free


def _storage_task(url: str) -> Callable[[], str]:
    def task() -> str:
        from pipeline import storage

        file, content = storage.join(url, f".doctor-{uuid.uuid4().hex}"), b"latentmill"
        storage.write_bytes(file, content)
        same = storage.read_bytes(file) == content
        storage.delete(file)
        if not same:
            raise OSError(f"{storage.redact_url(file)}: the bytes read differ from those written")
        return "written, read and deleted from a worker"

    return task


def _model_task(model: str) -> Callable[[], str]:
    def task() -> str:
        from pipeline.inference.node_cache import local_checkpoint
        from pipeline.models.checkpoint.folder import load_stack
        from pipeline.models.checkpoint.weights import weights_digest
        from pipeline.models.clip import load_clip

        folder = local_checkpoint(model, half=False)
        diffusion = (folder / "model_index.json").exists()
        kind, network = ("U-Net", load_stack(folder).unet) if diffusion else ("CLIP", load_clip(folder).model)
        size = sum(weight.numel() for weight in network.parameters()) / 1e6
        digest = weights_digest(folder, half=False)
        return f"loaded on a worker: a {kind} of {size:,.0f} M parameters, weights {digest[:12]}"

    return task
