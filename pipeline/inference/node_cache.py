"""A checkpoint's local folder: embedded, on disk, or copied once from object storage."""

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline import storage
from pipeline.errors import CheckpointError
from pipeline.models.configs import checkpoint_folder

KEPT_SUFFIXES: Final = (".json", ".safetensors", ".txt")
"""Files of a checkpoint that are copied; pickled weights stay where they are."""


def local_checkpoint(model: str) -> Path:
    """The folder of a checkpoint that a run names; one at a URL is copied into the user's cache first."""
    if "://" not in model or storage.is_local(model):
        return checkpoint_folder(model if "://" not in model else storage.locate(model)[1])
    filesystem, root = storage.locate(model)
    files = [storage.locate(url)[1] for url in storage.list_files(model) if url.endswith(KEPT_SUFFIXES)]
    if not {f"{root.rstrip('/')}/{name}" for name in ("model_index.json", "config.json")} & set(files):
        name = storage.redact_url(model)
        raise CheckpointError(
            f"{name}: holds no model_index.json; a checkpoint is a folder with one (a CLIP: config.json)"
        )
    infos = {path: filesystem.info(path) for path in files}
    versions = "\n".join(f"{path} {info.get('size')} {_version(info)}" for path, info in infos.items())
    name = Path(root).name
    folder = cache_folder() / hashlib.sha256(f"{model}\n{versions}".encode()).hexdigest()[:24] / name
    if not folder.is_dir():
        with _alone(folder.parent):
            if not folder.is_dir():  # another process may have been first
                _copy(model, {path: info["size"] for path, info in infos.items()}, folder)
    return folder


def cache_folder() -> Path:
    """Where checkpoints from URLs are kept: $LATENTMILL_CACHE, else ~/.cache/latentmill."""
    return Path(os.environ.get("LATENTMILL_CACHE") or Path.home() / ".cache" / "latentmill") / "checkpoints"


@dataclass(frozen=True, slots=True)
class Weights:
    """The sha256 of what a run's driver has; None: it is not known."""

    model: str | None = None
    clip: str | None = None
    """Of the CLIP that new pictures are scored by."""


UNKNOWN: Final = Weights()


def check_weights(model: str, here: str, driver: str | None) -> None:
    """CheckpointError where a node's weights are not the driver's: an older copy at the same path, a damaged disk."""
    if driver is not None and here != driver:
        raise CheckpointError(
            f"{storage.redact_url(model)}: on node {socket.gethostname()} its sha256 is {here[:16]}..., "
            f"the driver's is {driver[:16]}...; delete that node's copy (checkpoints from URLs are in {cache_folder()})"
        )


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process of this machine at a time; the system lets go for one that dies."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(model: str, sizes: dict[str, int], folder: Path) -> None:
    """Copy a model's files, by their paths, so that the folder is there whole or not at all.

    CheckpointError where one comes short of its size."""
    filesystem, root = storage.locate(model)
    partial = folder.parent / f".{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)  # of one that died half way
    for path, size in sizes.items():
        name = path.removeprefix(root).lstrip("/")
        copy = partial / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(path, str(copy))
        if (came := copy.stat().st_size) != size:
            place = storage.redact_url(storage.join(model, name))
            raise CheckpointError(f"{place}: {came:,} of {size:,} bytes came; try again")
    partial.rename(folder)


def _version(info: dict[str, object]) -> object:
    return info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime")
