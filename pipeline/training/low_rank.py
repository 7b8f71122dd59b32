"""Trainable low-rank terms beside the frozen weights of a U-Net (Hu et al. 2021), and the files that hold them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.training.save import replacing, write_json

ADAPTED_LAYERS: Final = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("time_emb_proj", "conv_shortcut"),
)
"""The ends of the names of the layers that get a term: matrices and 1x1 convolutions of attention and residual blocks.

Rows with different LoRAs of such layers share calls. A LoRA of larger convolutions would have to be merged."""


class LowRankTerm(nn.Module):
    """The product of two matrices of low rank, which starts at zero; of a 1x1 convolution, two such filters."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        out, into = layer.weight.shape[:2]
        if isinstance(layer, nn.Conv2d):
            self.down: nn.Module = nn.Conv2d(into, rank, 1, bias=False)
            self.up: nn.Module = nn.Conv2d(rank, out, 1, bias=False)
        else:
            self.down, self.up = nn.Linear(into, rank, bias=False), nn.Linear(rank, out, bias=False)
        nn.init.zeros_(self.up.get_parameter("weight"))

    def forward(self, features: Tensor) -> Tensor:
        return self.up(self.down(features))


class LowRankLayers(nn.Module):
    """The low-rank terms of ADAPTED_LAYERS of a U-Net. They act on it from then on."""

    def __init__(self, unet: nn.Module, rank: int, alpha: float) -> None:
        """`alpha` / `rank` is the factor of the terms."""
        super().__init__()
        self.rank, self.alpha = rank, alpha
        layers = {name: layer for name, layer in unet.named_modules() if name.endswith(ADAPTED_LAYERS)}
        self.names = tuple(layers)
        self.terms = nn.ModuleList()
        for layer in layers.values():
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            term = LowRankTerm(layer, rank)
            self.terms.append(term)
            layer.register_forward_hook(_adding(term, alpha / rank))

    def matrices(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the matrices (or filters) down and up of each layer of the U-Net, in half precision."""
        weights = (
            [part.get_parameter("weight").detach().half().cpu().contiguous() for part in (term.down, term.up)]
            for term in self.terms
            if isinstance(term, LowRankTerm)
        )
        return {name: (down, up) for name, (down, up) in zip(self.names, weights, strict=True)}


def _adding(term: LowRankTerm, factor: float) -> Any:
    """Return the forward hook that adds a term to the output of its layer."""

    def add(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + factor * term(arguments[0])

    return add


def save_peft(layers: LowRankLayers, folder: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which PEFT loads; `base` is the name of the base."""
    tensors = dict[str, Tensor]()
    for name, (down, up) in layers.matrices().items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    _save(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": layers.rank,
        "lora_alpha": layers.alpha,
        "target_modules": list(ADAPTED_LAYERS),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)


def save_kohya(layers: LowRankLayers, path: Path) -> None:
    """Write one file under the names of kohya's scripts, which diffusers' load_lora_weights and most tools load."""
    tensors = dict[str, Tensor]()
    for name, (down, up) in layers.matrices().items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(layers.alpha)
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(layers.rank)}
    _save(tensors, path, metadata | {"ss_network_alpha": str(layers.alpha)})


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=metadata)
