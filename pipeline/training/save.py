"""Writing a trained network as the field keeps it: config.json and safetensors in a component's folder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.models.configs import Config

LAYOUT: Final = "0.42.1"
"""The version of diffusers whose folder layout is written."""


def save_component(model: nn.Module, config: Config, class_name: str, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the weights, cast to `dtype`, and the config under the class' name in the field."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {"_class_name": class_name, **asdict(config)})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model_index(folder: Path, index: dict[str, Any]) -> None:
    """What makes a folder of components a checkpoint: the pipeline's class, and the class of each component."""
    write_json(folder / "model_index.json", {**index, "_diffusers_version": LAYOUT})
