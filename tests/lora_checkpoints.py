"""LoRA files with random weights in the forms that trainers write."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.checkpoint.single_file_names import single_file_names
from pipeline.models.stack import Stack


class Factors(NamedTuple):
    """The low-rank change of one module."""

    down: Tensor  # (r, in, ...)
    up: Tensor  # (out, r, ...)
    alpha: float


Module = tuple[str, str]
"""A network and the name of one of its modules, without the prefix `text_model.`"""

ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
USUAL: Final = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "fc1", "fc2")
"""Endings of the modules that LoRAs usually change."""


def random_factors(
    stack: Stack,
    *,
    seed: int = 0,
    endings: tuple[str, ...] = USUAL,
    networks: Iterable[str] = ("unet", "text_encoder", "text_encoder_2"),
    size: float = 0.3,
    ranks: tuple[int, ...] = (2, 4, 4),
) -> dict[Module, Factors]:
    """Return random changes of all modules with some endings, of `ranks` in turn and alpha 2."""
    generator = torch.Generator().manual_seed(seed)
    factors: dict[Module, Factors] = {}
    for network, model in stack.networks.items():
        for name, module in model.named_modules() if network in networks else ():
            if not isinstance(module, nn.Linear | nn.Conv2d) or not name.endswith(endings):
                continue
            rank = ranks[len(factors) % len(ranks)]
            out, into, *kernel = module.weight.shape
            down = size * torch.randn(rank, into, *kernel, generator=generator)
            up = size * torch.randn(out, rank, *[1] * len(kernel), generator=generator)
            factors[network, name.removeprefix("text_model.")] = Factors(down, up, 2.0)
    return factors


def save_kohya(path: Path, stack: Stack, factors: dict[Module, Factors], *, single_file: bool = False) -> Path:
    """Save kohya's form; with `single_file`, the U-Net's modules have the paths of single files, as for SDXL."""
    modules = [name for name, _ in stack.unet.named_modules()]
    stored = {name: path for path, name in single_file_names(stack.unet.config, modules).items()}
    is_xl = "text_encoder_2" in stack.networks
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if is_xl else "lora_te", "text_encoder_2": "lora_te2"}
    tensors: dict[str, Tensor] = {}
    for (network, name), (down, up, alpha) in factors.items():
        module = stored[name] if network == "unet" and single_file else name
        module = module if network == "unet" or name == "text_projection" else f"text_model.{module}"
        key = f"{prefixes[network]}_{module.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    return save(path, tensors)


def save_diffusers(path: Path, factors: dict[Module, Factors], *, scale: bool = True) -> Path:
    """Save diffusers' form with lora_A and lora_B, and PEFT's configs in the header if `scale`."""
    tensors: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for (network, name), (down, up, alpha) in factors.items():
        module = name if network == "unet" or name == "text_projection" else f"text_model.{name}"
        tensors |= {f"{network}.{module}.lora_A.weight": down, f"{network}.{module}.lora_B.weight": up}
        configs |= {f"{network}.r": 4, f"{network}.lora_alpha": 2.0}
        module = module if network == "text_encoder_2" else name  # as the network of this version has it
        for option, value in (("rank_pattern", len(down)), ("alpha_pattern", alpha)):
            configs.setdefault(f"{network}.{option}", {})[module] = value
        configs.setdefault(f"{network}.target_modules", []).append(module)
    return save(path, tensors, {"lora_adapter_metadata": json.dumps(configs, sort_keys=True)} if scale else {})


def save_old_diffusers(path: Path, factors: dict[Module, Factors], *, prefix: str = "unet.") -> Path:
    """Save the form of attention processors, for the U-Net's attention; without prefix, it is the oldest form."""
    tensors: dict[str, Tensor] = {}
    for (network, name), (down, up, _) in factors.items():
        assert network == "unet"
        attention, _, projection = name.removesuffix(".0").rpartition(".")
        key = f"{prefix}{attention}.processor.{projection}_lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return save(path, tensors)


def save_old_text(path: Path, factors: dict[Module, Factors]) -> Path:
    """Save the form of old text encoders, with the U-Net in the form between old and new."""
    tensors: dict[str, Tensor] = {}
    for (network, name), (down, up, _) in factors.items():
        ending = "lora" if network == "unet" else "lora_linear_layer"
        module = name if network == "unet" else f"text_model.{name}"
        key = f"{network}.{module}.{ending}"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return save(path, tensors)


def save_peft(folder: Path, factors: dict[Module, Factors], *, rslora: bool = False) -> Path:
    """Save PEFT's folder for a U-Net."""
    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    ranks: dict[str, int] = {}
    for (network, name), (down, up, alpha) in factors.items():
        assert network == "unet"
        key = f"base_model.model.{name}"
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
        alphas[name], ranks[name] = alpha, len(down)
    save(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2.0, "rank_pattern": ranks, "alpha_pattern": alphas}
    config |= {"use_rslora": rslora, "fan_in_fan_out": False, "target_modules": list(ranks)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: values.contiguous() for key, values in tensors.items()}, path, metadata)
    return path


Saver = Callable[[Path, Stack, dict[Module, Factors]], Path]
FORMS: Final[dict[str, Saver]] = {
    "kohya": lambda path, stack, factors: save_kohya(path, stack, factors),
    "kohya-single-file": lambda path, stack, factors: save_kohya(path, stack, factors, single_file=True),
    "diffusers": lambda path, stack, factors: save_diffusers(path, factors),
    "diffusers-without-config": lambda path, stack, factors: save_diffusers(path, factors, scale=False),
    "diffusers-old-text": lambda path, stack, factors: save_old_text(path, factors),
}
"""The forms that may hold all networks."""
