"""Write trained networks in the diffusers folder layout: config.json and safetensors in one folder per component."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.models.configs import Config

DIFFUSERS_VERSION: Final = "0.42.1"
"""The version of diffusers whose folder layout is written."""


def save_component(model: nn.Module, config: Config, class_name: str, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the weights, cast to `dtype`, and the config under the name of the diffusers class."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {"_class_name": class_name, **asdict(config)})


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model_index(folder: Path, index: dict[str, Any]) -> None:
    """Write model_index.json, which names the pipeline's class and the class of each component."""
    write_json(folder / "model_index.json", {**index, "_diffusers_version": DIFFUSERS_VERSION})
