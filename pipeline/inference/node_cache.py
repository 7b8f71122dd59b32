"""Local folders of checkpoints: embedded, on disk, or copied once per node from object storage."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.identify import check_file_kind
from pipeline.models.checkpoint.layout import (
    AUTOENCODERS,
    DIFFUSERS_STEM,
    PICKLES,
    SAFETENSORS,
    listed_components,
    names_in_use,
)
from pipeline.models.checkpoint.single_file import NO_OPTIONS, SingleFileOptions
from pipeline.models.configs import checkpoint_folder, is_embedded

_COPIES: Final = 4
"""Files that are copied at once."""
_CHUNK_BYTES: Final = 16 * 2**20


def single_file_options(config: RunConfig) -> SingleFileOptions:
    """Return what a run says of its checkpoint, if that is a single file."""
    return SingleFileOptions(
        tokenizer=None if config.tokenizer is None else Path(config.tokenizer),
        prediction_type=config.prediction_type,
        zero_terminal_snr=config.zero_terminal_snr,
        needs_vae=config.vae is None,
    )


def local_checkpoint(model: str, *, half: bool | None = None, options: SingleFileOptions = NO_OPTIONS) -> Path:
    """Return the local folder of a checkpoint; of one at a URL, the files in use are copied into this node's cache.

    The folder of a single file, to which `options` apply, has its configs and refers to its weights. `half` as in
    `load_stack`, None for the files of both precisions."""
    path = model if "://" not in model else storage.locate(model)[1]
    is_local = "://" not in model or storage.is_local(model)
    if model.endswith(SAFETENSORS) and (Path(path).is_file() if is_local else not storage.is_folder(model)):
        file = Path(path) if is_local else _copy_files(model, [model])
        return _opened(file, options)
    if options.tokenizer is not None:
        raise CheckpointError("--tokenizer is for single files; a checkpoint folder has its own tokenizer")
    if is_local:
        return checkpoint_folder(path)
    if model.endswith(PICKLES):
        check_file_kind(storage.redact_url(model))
    remote = _list_remote(model)
    name = storage.locate(model)[1].rpartition("/")[2]
    folder = cache_folder() / hashlib.sha256(f"{model}\n{remote.versions}".encode()).hexdigest()[:24] / name
    names = remote.names(half)
    if any(not (folder / name).is_file() for name in names):
        with _exclusive_lock(folder.parent):
            missing = [name for name in names if not (folder / name).is_file()]  # another process may have been first
            with ThreadPoolExecutor(_COPIES) as threads:
                list(threads.map(lambda name: _copy(storage.join(model, name), folder / name), missing))
    return folder


def _opened(file: Path, options: SingleFileOptions) -> Path:
    """Return the folder in this node's cache that refers to a single file."""
    from pipeline.models.checkpoint.convert import FORMAT, refer_to_single_file  # with torch

    inputs = [file, *(sorted(options.tokenizer.rglob("*")) if options.tokenizer is not None else [])]
    versions = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in inputs]
    identity = "\n".join([f"{FORMAT} {options}", *versions])
    folder = cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:24] / file.stem
    if not folder.is_dir():
        with _exclusive_lock(folder.parent):
            if not folder.is_dir():  # another process may have been first
                refer_to_single_file(file, folder, options)
    return folder


def local_file(path: str) -> Path:
    """Return the local path of a file; one at a URL is copied into this node's cache."""
    if "://" not in path or storage.is_local(path):
        return Path(path if "://" not in path else storage.locate(path)[1])
    return _copy_files(path, [path])


def local_lora(path: str) -> Path:
    """Return the local path of a LoRA file or folder; one at a URL is copied into this node's cache."""
    if "://" not in path or storage.is_local(path):
        return Path(path if "://" not in path else storage.locate(path)[1])
    urls = storage.list_files(path) if storage.is_folder(path) else [path]
    return _copy_files(path, [url for url in urls if url.endswith((".safetensors", ".json", ".bin", ".pt", ".ckpt"))])


def local_vae(vae: str) -> Path:
    """Return the local folder or file of an autoencoder: of a checkpoint or an embedded model, its component's folder.

    One at a URL is copied into this node's cache. CheckpointError if it does not exist."""
    from pipeline.models.checkpoint.weights import read_json  # with torch, which the CPU stages do without

    if "://" in vae and not storage.is_local(vae):
        return _remote_vae(vae)
    path = checkpoint_folder(vae) if is_embedded(vae) else Path(vae if "://" not in vae else storage.locate(vae)[1])
    if not path.exists():
        raise CheckpointError(f"{vae}: no such file or folder, and no embedded model of this name")
    if (path / "model_index.json").exists():
        path = path / _autoencoder_in(vae, read_json(path / "model_index.json"))
    if path.is_dir() and not (path / "config.json").exists():
        raise CheckpointError(f"{path}: holds no config.json; an autoencoder is a folder with one, or a file")
    return path


def _remote_vae(vae: str) -> Path:
    if not storage.is_folder(vae):
        return _copy_files(vae, [vae])
    if storage.exists(index := storage.join(vae, "model_index.json")):
        vae = storage.join(vae, _autoencoder_in(vae, json.loads(storage.read_bytes(index))))
    names = {storage.path_below(url, vae) for url in storage.list_files(vae)}
    weights = {name for name in names if name.startswith(DIFFUSERS_STEM) and ".safetensors" in name}
    if "config.json" not in names or not weights:
        raise CheckpointError(
            f"{storage.redact_url(vae)}: holds no config.json or no {DIFFUSERS_STEM}.safetensors; an autoencoder is a "
            "folder with both, or a file"
        )
    return _copy_files(vae, [storage.join(vae, name) for name in sorted({"config.json", *weights})])


def _autoencoder_in(vae: str, index: Mapping[str, Any]) -> str:
    """Return the name of the autoencoder that model_index.json lists."""
    name = next((name for name in AUTOENCODERS if name in listed_components(index)), None)
    if name is None:
        raise CheckpointError(f"{storage.redact_url(vae)}: its model_index.json lists no {AUTOENCODERS[0]}")
    return name


def _copy_files(path: str, urls: Sequence[str]) -> Path:
    """Copy the files at `urls`, which lie below the URL `path` or are it, into this node's cache; return its copy."""
    versions = "\n".join(f"{url} {storage.version_of(url)}" for url in urls)
    folder = cache_folder() / hashlib.sha256(f"{path}\n{versions}".encode()).hexdigest()[:24]
    root = folder / storage.locate(path)[1].rpartition("/")[2]
    files = {url: root if url == path else root / storage.path_below(url, path) for url in urls}
    if any(not file.is_file() for file in files.values()):
        with _exclusive_lock(folder):
            for url in [url for url, file in files.items() if not file.is_file()]:
                _copy(url, files[url])
    return root


def cache_folder() -> Path:
    """Return the folder of copied checkpoints: below $LATENTMILL_CACHE, else ~/.cache/latentmill."""
    folder = Path(os.environ.get("LATENTMILL_CACHE") or os.path.expanduser("~/.cache/latentmill"))
    if not folder.is_absolute() and "LATENTMILL_CACHE" not in os.environ:
        raise CheckpointError("there is no home folder to copy a checkpoint to; set LATENTMILL_CACHE or HOME")
    return folder / "checkpoints"


@dataclass(frozen=True, slots=True)
class WeightHashes:
    """The sha256 of the weights that a run's driver has; None where it is not known."""

    model: str | None = None
    clip: str | None = None
    """The CLIP of `--clip-score`."""
    embeddings: Mapping[str, str] = field(default_factory=dict)
    """The textual inversions by name."""
    loras: Mapping[str, str] = field(default_factory=dict)
    """The LoRAs by name."""


UNKNOWN_WEIGHTS: Final = WeightHashes()


def check_weights(model: str, node: str, driver: str | None) -> None:
    """Raise CheckpointError if this node's weights are not the driver's, for example an older copy at the same path.

    `node` and `driver` are sha256 digests; None where the driver's is not known."""
    if driver is not None and node != driver:
        raise CheckpointError(
            f"{storage.redact_url(model)}: on node {socket.gethostname()} its sha256 is {node[:16]}..., "
            f"the driver's is {driver[:16]}...; delete that node's copy (checkpoints from URLs are in {cache_folder()})"
        )


@dataclass(frozen=True, slots=True)
class _RemoteCheckpoint:
    """The names of the files in use of a checkpoint at a URL."""

    full: frozenset[str]
    half: frozenset[str]
    versions: str
    """Other if any of these files is."""

    def names(self, half: bool | None) -> frozenset[str]:
        return self.full | self.half if half is None else self.half if half else self.full


def _list_remote(model: str) -> _RemoteCheckpoint:
    names = {storage.path_below(url, model) for url in storage.list_files(model)}
    if not {"model_index.json", "config.json"} & names:
        raise CheckpointError(
            f"{storage.redact_url(model)}: holds no model_index.json; a checkpoint is a folder with one "
            "(a CLIP: config.json)"
        )

    def read(name: str) -> Any:
        url = storage.join(model, name)
        try:
            return json.loads(storage.read_bytes(url))
        except ValueError as error:
            raise CheckpointError(f"{storage.redact_url(url)}: is not readable JSON: {error}") from None

    full, half = (names_in_use(names, read, half=half) for half in (False, True))
    versions = [f"{name} {storage.version_of(storage.join(model, name))}" for name in sorted(full | half)]
    return _RemoteCheckpoint(full, half, "\n".join(versions))


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the `with` block; the lock of a dead process is released."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: {error.strerror}; set LATENTMILL_CACHE to a folder that can be written"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(url: str, path: Path) -> None:
    """Copy a file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")  # of a process that died while copying: it is overwritten
    with storage.open_file(url) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)
    partial.rename(path)
