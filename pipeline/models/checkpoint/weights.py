"""Reading a component's safetensors: single or sharded, full or fp16 variant. Pickles are refused."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VARIANT = ".fp16"


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


def weight_files(folder: Path, *, half: bool) -> list[Path]:
    """Return the safetensors files of a component: one, or its shards; the fp16 variant if `half` or the only one."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; the checkpoint's model_index.json names it")
    indexes = sorted(folder.glob("*.safetensors.index*.json"))
    shards = {path.name for index in indexes for path in _shards(index)}
    singles = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in shards]
    if not indexes and not singles:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        if pickles:
            raise CheckpointError(f"{folder / pickles[0]}: is a pickle, which can run code; convert it to safetensors")
        raise CheckpointError(f"{folder}: holds no *.safetensors file")
    choices = [[path] for path in singles] + [_shards(index) for index in indexes]
    names = [path.name for path in singles] + [index.name for index in indexes]
    ranked = sorted(zip(names, choices, strict=True), key=lambda pair: ((VARIANT in pair[0]) != half, pair[0]))
    return ranked[0][1]


def load_weights(
    module: nn.Module,
    folder: Path,
    *,
    half: bool = False,
    strip: str = "",
    renames: Iterable[tuple[str, str]] = (),
    ignored: tuple[str, ...] = (),
) -> None:
    """Fill `module` with a component's tensors, as they are stored.

    `strip` is a prefix that old files have before each name, `renames` are old parts of names with the new ones,
    `ignored` are endings of tensors that are not weights. CheckpointError names a tensor that is missing, unknown or
    of another shape.
    """
    expected = module.state_dict()
    loaded: dict[str, Tensor] = {}
    for path in weight_files(folder, half=half):
        for stored, tensor in _tensors(path):
            if stored.endswith(ignored) and ignored:
                continue
            name = stored.removeprefix(strip)
            for old, new in renames:
                name = name.replace(old, new)
            if name not in expected:
                raise CheckpointError(f"{path}: tensor {stored} is unknown to the network of {folder.name}/config.json")
            shape = tuple(expected[name].shape)
            if tensor.shape != shape and tensor.squeeze().shape == shape:  # 1x1 convolutions of old attention
                tensor = tensor.reshape(shape)
            if tensor.shape != shape:
                raise CheckpointError(
                    f"{path}: tensor {stored} is {tuple(tensor.shape)}; {folder.name}/config.json makes it {shape}"
                )
            loaded[name] = tensor
    missing = sorted(expected.keys() - loaded.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: tensor {missing[0]}{more} missing from its safetensors")
    module.load_state_dict(loaded, assign=True)


def weights_digest(folder: Path, *, half: bool) -> str:
    """Return one SHA-256 of everything in a checkpoint that affects images: weights, configs and tokenizer files."""
    digest = hashlib.sha256()
    is_single = not (folder / "model_index.json").exists()  # a model of one component, as a CLIP is
    folders = [folder] if is_single else [path for path in folder.iterdir() if path.is_dir()]
    components = sorted(path for path in folders if (path / "config.json").exists())
    files = [file for component in components for file in weight_files(component, half=half)]
    small = [path for path in folder.rglob("*") if path.suffix in (".json", ".txt") and path.is_file()]
    for path in sorted({*files, *small}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _shards(index: Path) -> list[Path]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict):
        raise CheckpointError(f"{index}: has no weight_map")
    return [index.parent / name for name in sorted(set(mapping.values()))]


def _tensors(path: Path) -> Iterable[tuple[str, Tensor]]:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: is not a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                yield name, file.get_tensor(name)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the index beside it names it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a readable safetensors file: {error}") from None


def channels_last(module: Network) -> Network:
    """Return the module with its weights in channels-last memory format, in which convolutions run fastest."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def empty_module(build: Callable[[], Network]) -> Network:
    """Return what `build` returns, without memory for its weights, which `load_weights` assigns."""
    with torch.device("meta"):
        return build()
