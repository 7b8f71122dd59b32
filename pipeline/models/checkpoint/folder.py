"""Load a checkpoint folder in diffusers' layout: model_index.json, and a folder per component."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.errors import CheckpointError
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.checkpoint.components import (
    SECOND_TEXT,
    TEXT,
    UNETS,
    find_components,
    load_network,
    load_text_encoder,
)
from pipeline.models.checkpoint.layout import AUTOENCODERS, listed_components
from pipeline.models.checkpoint.other_autoencoder import Autoencoder, OwnAutoencoder, load_other_autoencoder
from pipeline.models.checkpoint.weights import (
    autoencoder_files,
    channels_last,
    digest_of,
    read_json,
    weights_digest,
)
from pipeline.models.prompts import PromptEncoder
from pipeline.models.stack import REFINER_NUMBERS, SIZE_NUMBERS, Stack
from pipeline.models.text import TextEncoder
from pipeline.models.unet import UNet
from pipeline.models.unet_config import UnconditionalUNetConfig, UNetConfig

LOW_RES: Final = "low_res_scheduler"
MAX_NOISE_LEVEL: Final = 350
"""The maximum noise level of an upscaler if model_index.json has none, as in diffusers."""


def load_stack(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, vae: Path | None = None
) -> Stack:
    """Load every component of a checkpoint folder; CheckpointError names the file and what is wrong with it.

    `vae` is the folder or file of an autoencoder that replaces the checkpoint's own. On the device "meta", only the
    headers of the weight files are read and checked; the weights have no data."""
    index = read_json(folder / "model_index.json")
    listed = listed_components(index)
    half, target = dtype == torch.float16, torch.device(device)
    [(unet_name, unet_class)] = find_components(folder, index, UNETS)
    unet = load_network(folder / unet_name, unet_class, half=half, device=device)
    assert isinstance(unet, UNet)
    autoencoder = _load_autoencoder(folder, index, vae, half=half, device=device)
    channels_last(unet.to(target, dtype))
    upcast = autoencoder.config.force_upcast and half
    channels_last(autoencoder.to(target, torch.float32 if upcast else dtype))
    text = None
    if not isinstance(unet.config, UnconditionalUNetConfig):
        text = _load_prompt_encoder(folder, index, unet.config, half=half, device=device)
        for encoder in text.encoders:
            encoder.model.to(target, dtype)  # pyright: ignore[reportArgumentType]
    stack = Stack(
        name=folder.name,
        weights_sha256="" if target.type == "meta" else weights_digest(folder, half=half, vae=vae),
        vae_sha256=None if target.type == "meta" or vae is None else digest_of(autoencoder_files(vae, half=half)),
        unet=unet,
        autoencoder=autoencoder,
        text=text,
        schedule_config=_schedule_config(folder, index, "scheduler"),
        low_res_schedule_config=_schedule_config(folder, index, LOW_RES) if LOW_RES in listed else None,
        max_noise_level=_max_noise_level(folder, index),
        generation_config=_generation_config(folder),
        size_numbers=_size_numbers(folder, index, unet.config),
        device=target,
        dtype=dtype,
    )
    _check_widths(folder, stack)
    return stack


def _load_autoencoder(
    folder: Path, index: Mapping[str, Any], vae: Path | None, *, half: bool, device: str
) -> Autoencoder:
    """Load the checkpoint's autoencoder, or `vae`, which replaces it."""
    if vae is not None and not listed_components(index) & set(AUTOENCODERS):
        return load_other_autoencoder(vae, None, half=half, device=device)
    [(name, class_name)] = find_components(folder, index, (AUTOENCODERS,))
    if vae is not None:
        config = folder / name / "config.json"
        own = OwnAutoencoder(class_name, read_json(config), str(config))
        return load_other_autoencoder(vae, own, half=half, device=device)
    autoencoder = load_network(folder / name, class_name, half=half, device=device)
    assert isinstance(autoencoder, Autoencoder)
    return autoencoder


def _load_prompt_encoder(
    folder: Path, index: Mapping[str, Any], unet: UNetConfig, *, half: bool, device: str
) -> PromptEncoder:
    """Load the text encoders: one, or SDXL's two, or the second alone for its refiner."""
    is_xl = unet.addition_embed_type is not None
    pairs = (
        (TEXT,) if not is_xl else (TEXT, SECOND_TEXT) if "text_encoder" in listed_components(index) else (SECOND_TEXT,)
    )
    encoders: list[TextEncoder] = []
    for pair in pairs:
        (name, class_name), (tokenizer_name, _) = find_components(folder, index, pair)
        encoders.append(load_text_encoder(folder / name, folder / tokenizer_name, class_name, half=half, device=device))
    zeros = is_xl and _flag(folder, index, "force_zeros_for_empty_prompt", default=True)
    return PromptEncoder(tuple(encoders), is_xl=is_xl, zeros_for_none=zeros)


def _flag(folder: Path, index: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return a plain value of model_index.json that is true or false; diffusers' default if it is missing."""
    value = index.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{folder / 'model_index.json'}: {name} is {value!r}; must be true or false")
    return value


def _schedule_config(folder: Path, index: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a scheduler's config; model_index.json overrides its class, as in diffusers."""
    path = folder / name / "scheduler_config.json"
    if name not in listed_components(index):
        raise CheckpointError(f"{folder / 'model_index.json'}: lists no {name}; this kind of checkpoint needs one")
    config, entry = read_json(path), index.get(name)
    class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if not (class_name or config.get("_class_name")):
        raise CheckpointError(f"{path}: neither it nor model_index.json names the scheduler's class")
    return {**config, "_class_name": class_name or config["_class_name"]}


def _max_noise_level(folder: Path, index: Mapping[str, Any]) -> int:
    level = index.get("max_noise_level", MAX_NOISE_LEVEL)
    if not isinstance(level, int):
        raise CheckpointError(f"{folder / 'model_index.json'}: max_noise_level is {level!r}; must be an integer")
    return level


def _size_numbers(folder: Path, index: Mapping[str, Any], unet: UNetConfig) -> int:
    if unet.addition_embed_type is None:
        return 0
    return REFINER_NUMBERS if _flag(folder, index, "requires_aesthetics_score", default=False) else SIZE_NUMBERS


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def _check_added_width(folder: Path, stack: Stack, pooled: int) -> None:
    config, numbers = stack.unet.config, stack.size_numbers
    expected = pooled + numbers * (config.addition_time_embed_dim or 0)
    if config.projection_class_embeddings_input_dim != expected:
        raise CheckpointError(
            f"{folder}: unet's projection_class_embeddings_input_dim is "
            f"{config.projection_class_embeddings_input_dim}; the pooled text and {numbers} size numbers are "
            f"{expected} wide (with requires_aesthetics_score in model_index.json they are {REFINER_NUMBERS}, "
            f"else {SIZE_NUMBERS})"
        )


def _check_widths(folder: Path, stack: Stack) -> None:
    """Raise CheckpointError if a component's output width differs from the input width of the next one."""
    unet, autoencoder = stack.unet.config, stack.autoencoder.config
    if stack.text is not None and unet.text_widths != {stack.text.width}:
        widths = ", ".join(map(str, sorted(unet.text_widths)))
        of_encoders = " + ".join(str(encoder.model.config.hidden_size) for encoder in stack.text.encoders)
        raise CheckpointError(
            f"{folder}: the text encoder's hidden_size is {of_encoders}, "
            f"unet's cross_attention_dim {widths}; they must be equal"
        )
    if stack.text is not None and stack.text.pooled_width is not None:
        _check_added_width(folder, stack, stack.text.pooled_width)
    if unet.out_channels != stack.latent_channels:
        raise CheckpointError(
            f"{folder}: unet's out_channels is {unet.out_channels}; the autoencoder's latents have "
            f"{stack.latent_channels} channels (a network that also predicts the variance is not supported)"
        )
    if (autoencoder.in_channels, autoencoder.out_channels) != (3, 3):
        raise CheckpointError(f"{folder}: the autoencoder's in_channels and out_channels must be 3, the colors")
    if isinstance(autoencoder, AutoencoderConfig) and autoencoder.latents_mean is not None and not stack.size_numbers:
        raise CheckpointError(f"{folder}: the autoencoder's latents_mean and latents_std are supported for SDXL alone")
