"""Write trained networks in the diffusers folder layout: config.json and safetensors in one folder per component."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.models.configs import Config

DIFFUSERS_VERSION: Final = "0.42.1"
"""The version of diffusers whose folder layout is written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file replaces `path` after the `with` block, so that `path` is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    os.replace(temporary, path)


def save_component(model: nn.Module, config: Config, class_name: str, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the weights, cast to `dtype`, and the config under the name of the diffusers class."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / "diffusion_pytorch_model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    write_json(folder / "config.json", {"_class_name": class_name, **asdict(config)})


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; missing folders are created."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model_index(folder: Path, index: dict[str, Any]) -> None:
    """Write model_index.json, which names the pipeline's class and the class of each component."""
    write_json(folder / "model_index.json", {**index, "_diffusers_version": DIFFUSERS_VERSION})
