"""Local folders of checkpoints: embedded, on disk, or copied once per node from object storage."""

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

COPIED_SUFFIXES: Final = (".json", ".safetensors", ".txt")
"""Files of a checkpoint that are copied; pickled weights are not."""


def local_checkpoint(model: str) -> Path:
    """Return the local folder of a checkpoint; one at a URL is copied into this node's cache first."""
    if not storage.is_url(model) or storage.is_local(model):
        return checkpoint_folder(storage.locate(model)[1] if storage.is_url(model) else model)
    filesystem, root = storage.locate(model)
    files = [storage.locate(url)[1] for url in storage.list_files(model) if url.endswith(COPIED_SUFFIXES)]
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
        with _exclusive_lock(folder.parent):
            if not folder.is_dir():  # another process may have been first
                _copy(model, {path: info["size"] for path, info in infos.items()}, folder)
    return folder


def cache_folder() -> Path:
    """Return the folder of copied checkpoints: below $LATENTMILL_CACHE, else ~/.cache/latentmill."""
    return Path(os.environ.get("LATENTMILL_CACHE") or Path.home() / ".cache" / "latentmill") / "checkpoints"


@dataclass(frozen=True, slots=True)
class WeightHashes:
    """The sha256 of the weights that a run's driver has; None where it is not known."""

    model: str | None = None
    clip: str | None = None
    """The CLIP of `--clip-score`."""


UNKNOWN_WEIGHTS: Final = WeightHashes()


def check_weights(model: str, node: str, driver: str | None) -> None:
    """Raise CheckpointError if this node's weights are not the driver's, for example an older copy at the same path.

    `node` and `driver` are sha256 digests; None where the driver's is not known."""
    if driver is not None and node != driver:
        raise CheckpointError(
            f"{storage.redact_url(model)}: on node {socket.gethostname()} its sha256 is {node[:16]}..., "
            f"the driver's is {driver[:16]}...; delete that node's copy (checkpoints from URLs are in {cache_folder()})"
        )


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the `with` block; the lock of a dead process is released."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(model: str, sizes: dict[str, int], folder: Path) -> None:
    """Copy a model's files; the folder appears whole or not at all. CheckpointError if a file comes short."""
    filesystem, root = storage.locate(model)
    partial = folder.parent / f".{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that died while copying
    for path, size in sizes.items():
        name = path.removeprefix(root).lstrip("/")
        copy = partial / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(path, str(copy))
        if (received := copy.stat().st_size) != size:
            url = storage.redact_url(storage.join(model, name))
            raise CheckpointError(f"{url}: {received:,} of {size:,} bytes were received; try again")
    partial.rename(folder)


def _version(info: dict[str, object]) -> object:
    return info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime")
