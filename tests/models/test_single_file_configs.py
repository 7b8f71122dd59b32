"""The configs of single files of full size are the published ones."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipeline.models.checkpoint.single_file import read_single_file
from pipeline.models.checkpoint.single_file_parts import single_file_parts
from tests.family_checkpoints import PUBLISHED_UNETS, UNetFamily
from tests.single_files import single_file_tensors

_CLIP: Final = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2, "bos_token_id": 0}
CLIP_L: Final = {
    **_CLIP,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
OPEN_CLIP_H: Final = {
    **_CLIP,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
}
OPEN_CLIP_G: Final = {
    **_CLIP,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
TEXT: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "sd1": {"text_encoder": CLIP_L},
    "sd2": {"text_encoder": OPEN_CLIP_H},
    "x4-upscaler": {"text_encoder": OPEN_CLIP_H},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP_G},
    "sdxl-refiner": {"text_encoder_2": OPEN_CLIP_G},
}
AUTOENCODER: Final = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
SCALING: Final = {"sd1": 0.18215, "sd2": 0.18215, "x4-upscaler": 0.08333, "sdxl": 0.13025, "sdxl-refiner": 0.13025}


def sparse_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write a safetensors file of float16 zeros that takes no space on the disk."""
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def published_autoencoder(form: str) -> dict[str, Any]:
    levels = 3 if form == "x4-upscaler" else 4
    cut = {key: value[:levels] if isinstance(value, list) else value for key, value in AUTOENCODER.items()}
    return {**cut, "scaling_factor": SCALING[form]}


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("sd15", "sd1"),
        ("sd15-inpainting", "sd1"),
        ("instruct-pix2pix", "sd1"),
        ("sd21", "sd2"),
        ("sdxl", "sdxl"),
        ("sdxl-inpainting", "sdxl"),
        ("ssd-1b", "sdxl"),
        ("sdxl-refiner", "sdxl-refiner"),
        ("x4-upscaler", "x4-upscaler"),
    ],
)
def test_a_files_configs_are_the_published_ones(tmp_path: Path, family: UNetFamily, form: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(PUBLISHED_UNETS[family])
        vae = AutoencoderKL.from_config(published_autoencoder(form))
        networks: dict[str, Any] = {"unet": unet, "vae": vae}
        for name, config in TEXT[form].items():
            kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
            networks[name] = kind(CLIPTextConfig(**config))
        weights = {name: network.state_dict() for name, network in networks.items()}
        tensors = single_file_tensors(weights, form, PUBLISHED_UNETS[family]["layers_per_block"])
    if family == "sd21":
        tensors["v_pred"] = torch.ones(0)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    file = read_single_file(sparse_file(tmp_path / "m.safetensors", shapes))
    assert file.family == form
    parts = {part.name: part.config for part in single_file_parts(file)}
    assert parts.keys() == networks.keys()

    assert meaning_of(UNet2DConditionModel, parts["unet"]) == meaning_of(UNet2DConditionModel, PUBLISHED_UNETS[family])
    ours, theirs = meaning_of(AutoencoderKL, parts["vae"]), meaning_of(AutoencoderKL, published_autoencoder(form))
    assert {**ours, "sample_size": 0} == {**theirs, "sample_size": 0}  # which no pipeline reads
    for name, config in TEXT[form].items():
        assert config.items() <= parts[name].items()


def meaning_of(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a network of diffusers, the same for each way of writing them."""
    with torch.device("meta"):
        options = dict(kind.from_config(config).config)
    layers = options.get("transformer_layers_per_block")
    levels = options["block_out_channels"]
    if layers is not None:
        layers = [layers] * len(levels) if isinstance(layers, int) else list(layers)
        for level, name in enumerate(options["down_block_types"]):
            if name == "DownBlock2D" and level + 1 < len(levels):
                layers[level] = 1  # it has no attentions
        options["transformer_layers_per_block"] = [
            each[0] if isinstance(each, list) and len(set(each)) == 1 else each for each in layers
        ]
    options["upcast_attention"] = bool(options.get("upcast_attention"))
    heads = options.get("attention_head_dim")
    options["attention_head_dim"] = [heads] * len(levels) if isinstance(heads, int) else heads
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in options.items()
        if not key.startswith("_")
    }
