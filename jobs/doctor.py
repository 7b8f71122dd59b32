"""`latentmill doctor`: what a person would check first when a cluster, a storage or a checkpoint is new."""

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
LEAST_MEMORY: Final = 2 * 10**9
"""Free bytes of a node below which a model hardly fits."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, whether it is well, what was seen, and what to do where it is not."""

    what: str
    ok: bool
    seen: str
    advice: str = ""


@click.command()
@click.option("--address", metavar="ADDR", help="A Ray cluster. [default: RAY_ADDRESS, else a local one]")
@click.option("--storage", "storages", metavar="URL", multiple=True, help="A folder to read and write; repeatable.")
@click.option("--model", metavar="PATH_OR_URL", default="shapes", show_default=True, help="A checkpoint to load.")
def doctor(address: str | None, storages: tuple[str, ...], model: str) -> int:
    """Check versions, nodes, GPUs and memory of a cluster, and from a worker of it a storage and a checkpoint.

    Exit status: 0, all is well; 1, something is not, and its line says what to do.
    """
    bad = 0
    for finding in examine(address, storages, model):
        bad += not finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.what:<12} {finding.seen}")
        if not finding.ok and finding.advice:
            click.echo(f"     {'':<12} -> {finding.advice}")
    return 1 if bad else 0


def examine(address: str | None, storages: tuple[str, ...], model: str) -> Iterator[Finding]:
    """The findings, each as soon as it is known."""
    import ray
    from ray.exceptions import RayError

    from pipeline.errors import one_line
    from pipeline.run.cluster import connected

    yield Finding("here", sys.version_info >= (3, 11), versions_text(versions()), "latentmill needs Python 3.11")
    try:
        with connected(address):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            yield from _cluster(nodes)
            tasks: list[tuple[str, Callable[[], str], str]] = [
                (f"storage {url}", _storage_task(url), "check the URL, the keys and the endpoint on the workers")
                for url in storages
            ]
            tasks.append((f"model {model}", _model_task(model), "the checkpoint must be readable from every worker"))
            for what, task, advice in tasks:
                try:
                    yield Finding(what, True, ray.get(ray.remote(num_cpus=0)(task).remote()))
                except RayError as error:
                    yield Finding(what, False, one_line(error), advice)
    except ValueError as error:
        yield Finding("cluster", False, str(error), "give --address HEAD:6379, or none for a local Ray")
    except RayError as error:
        yield Finding("cluster", False, one_line(error), "latentmill must be installed on every node")


def versions() -> dict[str, str]:
    """Of Python and the libraries whose difference breaks things."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def versions_text(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _cluster(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = ray.cluster_resources()
    store = resources.get("object_store_memory", 0) / 1e9
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    seen = f"{len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs, object store {store:.1f} GB"
    yield Finding("cluster", store >= 0.1, seen, "start Ray with --object-store-memory of 1 GB or more")
    ours = versions()
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        about = ray.remote(num_cpus=0)(_node).options(scheduling_strategy=strategy)
        theirs, free = ray.get(about.remote())
        different = {name: number for name, number in theirs.items() if number != ours[name]}
        name = f"node {node['NodeManagerAddress']}"
        yield Finding(
            name,
            not different,
            versions_text(different) or "the same versions as here",
            "install the same versions on the workers and here",
        )
        yield Finding(
            name, free >= LEAST_MEMORY, f"{free / 1e9:.1f} GB of memory are free", "fewer actors, or larger nodes"
        )


def _node() -> tuple[dict[str, str], int]:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return versions(), free


def _storage_task(url: str) -> Callable[[], str]:
    def task() -> str:
        from pipeline import storage

        place, content = storage.join(url, f".doctor-{uuid.uuid4().hex}"), b"latentmill"
        storage.write_bytes(place, content)
        same = storage.read_bytes(place) == content
        storage.delete(place)
        if not same:
            raise OSError(f"{storage.redact_url(place)}: was read otherwise than written")
        return "written, read and deleted from a worker"

    return task


def _model_task(model: str) -> Callable[[], str]:
    def task() -> str:
        from pipeline.inference.node_cache import local_checkpoint
        from pipeline.models.checkpoint.folder import load_stack
        from pipeline.models.checkpoint.weights import weights_digest
        from pipeline.models.clip import load_clip

        folder = local_checkpoint(model)
        diffusion = (folder / "model_index.json").exists()
        what, network = ("U-Net", load_stack(folder).unet) if diffusion else ("CLIP", load_clip(folder).model)
        size = sum(weight.numel() for weight in network.parameters()) / 1e6
        digest = weights_digest(folder, half=False)
        return f"loaded on a worker: a {what} of {size:,.0f} M parameters, weights {digest[:12]}"

    return task
