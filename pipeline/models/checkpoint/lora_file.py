"""The tensors and configs of a LoRA file, or of a folder in PEFT's or diffusers' form."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.layout import PICKLES
from pipeline.models.checkpoint.weights import open_safetensors, read_json, refuse_pickle

_FOLDER_FILES: Final = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""The weights of a folder as PEFT and diffusers save it."""
_CONFIG: Final = "adapter_config.json"
_METADATA: Final = "lora_adapter_metadata"
"""The key of the file's metadata under which diffusers writes PEFT's configs of all networks."""
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq")
"""Initializations that change the base weights too, so that the adapter fits no other."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoraFile:
    """A LoRA file as it is stored."""

    tensors: Mapping[str, Tensor]
    """Tensors by name; those of one number have data even if only headers were read."""
    metadata: Mapping[str, str]
    """The metadata of its header."""
    configs: Mapping[str, Mapping[str, Any]]
    """PEFT's config by network; "" is of all networks."""

    def config(self, network: str) -> Mapping[str, Any] | None:
        """Return PEFT's config for a network, or None."""
        return self.configs.get(network, self.configs.get(""))


def open_lora(path: Path, *, headers_only: bool) -> LoraFile:
    """Read a LoRA file or folder; CheckpointError if it is none, a pickle, or has an unsupported config."""
    weights = _weights_path(path)
    tensors, metadata = _read(weights, headers_only=headers_only)
    if not tensors:
        raise CheckpointError(f"{weights}: holds no tensors")
    configs: dict[str, Mapping[str, Any]] = {}
    if _has_config(weights):
        configs[""] = read_json(weights.parent / _CONFIG)
        _check_config(weights.parent / _CONFIG, configs[""])
    elif _METADATA in metadata:
        configs |= _split_metadata(weights, metadata[_METADATA])
        for config in configs.values():
            _check_config(weights, config)
    return LoraFile(tensors=tensors, metadata=metadata, configs=configs)


def _weights_path(path: Path) -> Path:
    if path.is_dir():
        if (path / "model_index.json").exists():
            raise CheckpointError(f"{path}: is a checkpoint, not a LoRA; give it with --model")
        names = [name for name in _FOLDER_FILES if (path / name).is_file()]
        others = sorted(each.name for each in path.iterdir() if each.suffix == ".safetensors")
        if names or len(others) == 1:
            return path / (names or others)[0]
        pickles = sorted(each.name for each in path.iterdir() if each.suffix in PICKLES)
        if pickles and not others:
            path = path / pickles[0]
        else:
            raise CheckpointError(f"{path}: holds no {_FOLDER_FILES[0]}; a LoRA is a safetensors file or PEFT's folder")
    refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a LoRA is a safetensors file or PEFT's folder")
    return path


def lora_digest(path: Path) -> str:
    """Return the SHA-256 of a LoRA file; of a folder, of the files that `open_lora` reads."""
    weights = _weights_path(path)
    digest = hashlib.sha256()
    for each in (weights, weights.parent / _CONFIG) if _has_config(weights) else (weights,):
        with each.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def lora_size(path: Path) -> int:
    """Return the bytes of a LoRA's weights."""
    return _weights_path(path).stat().st_size


def _has_config(weights: Path) -> bool:
    return weights.name == _FOLDER_FILES[0] and (weights.parent / _CONFIG).is_file()


def _read(path: Path, *, headers_only: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    with open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118 - a safe_open is no mapping
            shape = file.get_slice(key).get_shape()
            data = not headers_only or math.prod(shape) == 1
            tensors[key] = file.get_tensor(key) if data else torch.empty(shape, device="meta")
        return tensors, dict(file.metadata() or {})


def _split_metadata(path: Path, text: str) -> dict[str, dict[str, Any]]:
    """Return the configs by network of keys such as `unet.lora_alpha`."""
    configs: dict[str, dict[str, Any]] = {}
    try:
        entries = json.loads(text).items()
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {_METADATA} of its header is not a JSON object: {error}") from None
    for key, value in entries:
        network, _, option = key.partition(".")
        configs.setdefault(network, {})[option] = value
    return configs


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for an option that changes the image and is not supported."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind!r}; only 'LORA' is supported")
    for option in ("fan_in_fan_out", "layer_replication", "use_qalora", "alora_invocation_tokens"):
        if config.get(option):
            raise CheckpointError(f"{path}: {option} is {config[option]!r}, which is not supported")
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {initialization!r}, which changes the base weights too; convert it with "
            "PEFT to a plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
