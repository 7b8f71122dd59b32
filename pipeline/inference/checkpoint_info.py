"""Facts of a checkpoint that a run needs before any actor loads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import RunConfig
from pipeline.inference.node_cache import local_checkpoint, local_file, local_lora, local_vae, single_file_options

if TYPE_CHECKING:
    from pipeline.models.stack import Stack


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """Facts of a run's checkpoint, read from its configs and the headers of its weights."""

    folder: Path | None = None
    clip: Path | None = None
    """The folder of the CLIP of `--clip-score`, if the run has one."""
    vae: Path | None = None
    """The local folder or file of the autoencoder of `--vae`, if the run has one."""
    embeddings: Mapping[str, Path] = field(default_factory=dict)
    """The local files of the run's textual inversions by name."""
    loras: Mapping[str, Path] = field(default_factory=dict)
    """The local files or folders of the run's LoRAs by name."""
    size_bytes: int = 0
    """The weights of all."""
    edits_images: bool = False
    """Whether the model edits an image, which each of its rows needs."""
    downsample_factor: int = 8
    native_pixels: int = 512 * 512
    square: int | None = None
    """Pixels of the side of the center square to which a CLIP's images are cropped."""


def read_checkpoint_info(config: RunConfig) -> CheckpointInfo:
    """Read a run's checkpoint but for its weights; CheckpointError for all that would stop an actor from loading it."""
    from pipeline.models.checkpoint.clip_config import clip_side  # what needs no checkpoint needs no torch
    from pipeline.models.checkpoint.lora_file import lora_size
    from pipeline.models.clip import check_clip_weights

    variants = _variants(config)
    folder = local_checkpoint(
        config.model, half=variants[0] if len(variants) == 1 else None, options=single_file_options(config)
    )
    clip = None if config.clip_score is None else local_checkpoint(config.clip_score, half=False)
    if clip is not None:
        check_clip_weights(clip)
    if config.task == "classify":
        for half in variants:
            check_clip_weights(folder, half=half)
        side = clip_side(folder)
        size = _weights_size(folder, variants)
        return CheckpointInfo(folder=folder, size_bytes=size, native_pixels=side**2, square=side)
    vae = None if config.vae is None else local_vae(config.vae)
    stacks = [_checked_stack(config, folder, vae, half=half) for half in variants]
    width, height = stacks[0].native_size
    loras = {name: local_lora(path) for name, path in config.loras}
    return CheckpointInfo(
        folder=folder,
        clip=clip,
        vae=vae,
        embeddings={name: local_file(path) for name, path in config.embeddings},
        loras=loras,
        size_bytes=_weights_size(folder, variants, vae)
        + (0 if clip is None else _weights_size(clip, [False]))
        + sum(lora_size(path) for path in loras.values()),
        edits_images=config.task == "generate" and stacks[0].edits_images,
        downsample_factor=stacks[0].downsample_factor,
        native_pixels=width * height,
    )


def _variants(config: RunConfig) -> list[bool]:
    """Return the possible values of `half`: both if the device of the run is not known yet."""
    devices = ("cpu", "cuda") if config.device == "auto" else (config.device,)
    return sorted({config.dtype_on(device) == "float16" for device in devices})


def _checked_stack(config: RunConfig, folder: Path, vae: Path | None, *, half: bool) -> "Stack":
    """Return the stack without weights; loading it and building its task find the faults that actors would find."""
    import torch

    from pipeline.inference.loaded_model import add_embeddings, add_loras, build_task
    from pipeline.models.checkpoint.folder import load_stack

    stack = load_stack(folder, device="meta", dtype=torch.float16 if half else torch.float32, vae=vae)
    add_embeddings(config, stack)
    stack = add_loras(config, stack)
    build_task(config, stack)
    return stack


def _weights_size(folder: Path, variants: list[bool], vae: Path | None = None) -> int:
    from pipeline.models.checkpoint.weights import files_in_use

    files = [files_in_use(folder, half=half, vae=vae).values() for half in variants]
    return max(sum(path.stat().st_size for path in paths if path.suffix == ".safetensors") for paths in files)
