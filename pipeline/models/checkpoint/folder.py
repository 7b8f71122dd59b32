"""Loading a checkpoint folder in diffusers' layout: model_index.json, and a folder per component."""

from pathlib import Path
from typing import Final

import torch

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.components import (
    NETWORKS,
    TEXT,
    find_components,
    load_autoencoder,
    load_text_encoder,
    load_unet,
    load_vq,
)
from pipeline.models.checkpoint.weights import channels_last, read_json, weights_digest
from pipeline.models.stack import Stack
from pipeline.models.unet import UnconditionalUNetConfig

MAX_NOISE_LEVEL: Final = 350
"""The highest noise level of an upscaler whose model_index.json gives none; as in diffusers."""


def load_stack(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Stack:
    """Load every component of a checkpoint folder; CheckpointError names the file and what is wrong with it."""
    index = read_json(folder / "model_index.json")
    unet_name, autoencoder_name = find_components(folder, index, NETWORKS)
    half = dtype == torch.float16
    target = torch.device(device)
    unet = channels_last(load_unet(folder / unet_name, half=half).to(target, dtype))
    quantized = index[autoencoder_name][1] == "VQModel"
    autoencoder = (load_vq if quantized else load_autoencoder)(folder / autoencoder_name, half=half)
    upcast = autoencoder.config.force_upcast and half
    channels_last(autoencoder.to(target, torch.float32 if upcast else dtype))
    text = None
    if not isinstance(unet.config, UnconditionalUNetConfig):
        text_name, tokenizer_name = find_components(folder, index, TEXT)
        text = load_text_encoder(folder / text_name, folder / tokenizer_name, half=half)
        text.model.to(target, dtype)  # pyright: ignore[reportArgumentType]
        if text.model.config.hidden_size != unet.config.cross_attention_dim:
            raise CheckpointError(
                f"{folder}: {text_name}'s hidden_size is {text.model.config.hidden_size}, "
                f"unet's cross_attention_dim {unet.config.cross_attention_dim}; they must be equal"
            )
    defaults = folder / "generation_config.json"
    low_res = folder / "low_res_scheduler" / "scheduler_config.json"
    return Stack(
        name=folder.name,
        weights_sha256=weights_digest(folder, half=half),
        unet=unet,
        autoencoder=autoencoder,
        text=text,
        schedule_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        low_res_schedule_config=read_json(low_res) if "low_res_scheduler" in index else None,
        max_noise_level=int(index.get("max_noise_level", MAX_NOISE_LEVEL)),
        generation_config=read_json(defaults) if defaults.exists() else {},
        device=target,
        dtype=dtype,
    )
