"""Read the safetensors of a component: one file or shards, full precision or fp16. Pickles are refused."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.layout import (
    AUTOENCODERS,
    DIFFUSERS_STEM,
    PICKLES,
    SINGLE_FILE,
    STEMS,
    TRANSFORMERS_STEM,
    is_config,
    listed_components,
    weight_names,
)
from pipeline.models.checkpoint.tensor_names import (
    PLAIN_NAMES,
    REFERENCES,
    Change,
    TensorNames,
    changed,
    referenced_names,
)

Network = TypeVar("Network", bound=nn.Module)

_FLOATS: Final = ("F", "BF")
"""Prefixes of the names of floating-point types in safetensors: F32, F16, BF16, F8_E4M3."""
_LFS_POINTER: Final = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError if the file is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint folder has one") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, holds a {type(value).__name__}")
    return value


def weight_files(folder: Path, stem: str, *, half: bool) -> list[Path]:
    """Return the safetensors files of a component: one, or its shards; the fp16 variant if `half` or the only one.

    `stem` is the file name without its suffixes; files with other stems contain other weights and are ignored. `folder`
    may also be a file, which is the component's own, or have references to the tensors of a single-file checkpoint."""
    if folder.is_file():
        return [folder]
    if (folder / REFERENCES).is_file():
        return [folder.parent / SINGLE_FILE]
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; the checkpoint's model_index.json names it")
    for name in weight_names(stem, half=half):
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES))
    pickles = [name for name in others if not name.endswith(".safetensors")]
    if others and others == pickles:
        refuse_pickle(folder / pickles[0])
    if not others:
        raise CheckpointError(f"{folder}: holds no *.safetensors file; its weights are {stem}.safetensors")
    raise CheckpointError(f"{folder}: holds no {stem}.safetensors; found only {', '.join(others)}")


def load_weights(
    module: nn.Module, folder: Path, stem: str, *, half: bool = False, names: TensorNames = PLAIN_NAMES
) -> None:
    """Load a component's tensors into `module`, in the stored dtype; CheckpointError if they do not match."""
    loaded: dict[str, Tensor] = {}
    for path, matches in match_tensors(module, folder, stem, half=half, names=names).items():
        with open_safetensors(path) as file:
            for match in matches:
                loaded[match.name] = changed(file.get_tensor(match.stored), match.change).reshape(match.shape)
    module.load_state_dict(loaded, assign=True)


class TensorMatch(NamedTuple):
    """A stored tensor, with its name and its shape in the network."""

    stored: str
    name: str
    shape: tuple[int, ...]
    change: Change


def match_tensors(
    module: nn.Module, folder: Path, stem: str, *, half: bool = False, names: TensorNames = PLAIN_NAMES
) -> dict[Path, list[TensorMatch]]:
    """Return a component's tensors by file; reads only the headers of the files.

    CheckpointError names a tensor that is missing, unknown, duplicated or of another shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing, matches, names = set(shapes), dict[Path, list[TensorMatch]](), referenced_names(folder) or names
    for path in weight_files(folder, stem, half=half):
        matches[path] = []
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: is not a safetensors file")
        with open_safetensors(path) as file:
            for stored in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                for name, change in names.targets(stored):
                    if name not in shapes:
                        config = _config_of(folder)
                        raise CheckpointError(f"{path}: tensor {stored} is unknown to the network of {config}")
                    if name not in missing:
                        raise CheckpointError(f"{path}: tensor {stored} is given twice")
                    _check_shape(path, stored, change, file, shapes[name], _config_of(folder))
                    missing.remove(name)
                    matches[path].append(TensorMatch(stored, name, shapes[name], change))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: tensor {min(missing)}{more} missing from its safetensors")
    return matches


def _check_shape(path: Path, stored: str, change: Change, file: Any, expected: tuple[int, ...], config: str) -> None:
    shape = tuple(file.get_slice(stored).get_shape())
    if change != "none":
        shape = tuple(changed(torch.empty(shape, device="meta"), change).shape)
    squeezed = tuple(side for side in shape if side != 1)  # 1x1 convolutions of old attention
    if expected not in (shape, squeezed):
        raise CheckpointError(f"{path}: tensor {stored} is {shape}; {config} makes it {expected}")
    kind = file.get_slice(stored).get_dtype()
    if not kind.startswith(_FLOATS):
        raise CheckpointError(f"{path}: tensor {stored} has the type {kind}; quantized weights are not supported")


def _config_of(source: Path) -> str:
    """Return the name of the config that describes the network of a component's folder or single file."""
    return "the checkpoint's own config.json" if source.is_file() else f"{source.name}/config.json"


def weights_digest(folder: Path, *, half: bool, vae: Path | None = None) -> str:
    """Return one SHA-256 of everything in a checkpoint that affects images: weights, configs and tokenizer files.

    `vae` is the folder or file of the autoencoder that replaces the checkpoint's own."""
    return digest_of(files_in_use(folder, half=half, vae=vae))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(files: Mapping[str, Path]) -> str:
    """Return one SHA-256 of the names and the contents of files."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items(), key=lambda item: item[0].split("/")):
        digest.update(f"{name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def files_in_use(folder: Path, *, half: bool, vae: Path | None = None) -> dict[str, Path]:
    """Return the files that are read from a checkpoint folder, or from a folder of one component, by relative path.

    Those of `vae`, which replaces a checkpoint's autoencoder, have paths below "vae"."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else None
    small = {path for path in folder.rglob("*") if is_config(path.relative_to(folder).as_posix(), index)}
    if index is None:
        return _by_path(folder, {*small, *weight_files(folder, TRANSFORMERS_STEM, half=half)})
    components = [name for name in listed_components(index) & STEMS.keys() if (folder / name).is_dir()]
    if vae is not None:
        components = [name for name in components if name not in AUTOENCODERS]
        small = {path for path in small if path.parent.name not in AUTOENCODERS}
    weights = {file for name in components for file in weight_files(folder / name, STEMS[name], half=half)}
    return _by_path(folder, small | weights) | ({} if vae is None else autoencoder_files(vae, half=half))


def autoencoder_files(vae: Path, *, half: bool) -> dict[str, Path]:
    """Return the files of an autoencoder's folder, or its single file, by their paths in a checkpoint folder."""
    weights = weight_files(vae, DIFFUSERS_STEM, half=half)
    files = weights if vae.is_file() else [vae / "config.json", *weights]
    return {f"vae/{path.name}": path for path in files}


def _by_path(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in files}


def _shards(index: Path) -> list[Path]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict):
        raise CheckpointError(f"{index}: has no weight_map")
    names = sorted({str(name) for name in mapping.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index}: names {outside[0]!r}, which is not a file beside it")
    return [index.parent / name for name in names]


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError if a file is a pickle, by its name."""
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path}: is a pickle, which can run code; convert it to safetensors")


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; CheckpointError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the index beside it names it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a readable safetensors file: {_reason(path, error)}") from None


def _reason(path: Path, error: Exception) -> str:
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return "it is a pointer of Git LFS; download the file itself (git lfs pull)"
    return str(error)


def channels_last(module: Network) -> Network:
    """Return the module with its weights in channels-last memory format, in which convolutions run fastest."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
