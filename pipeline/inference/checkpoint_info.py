"""Facts of a checkpoint that a run needs before any actor loads it."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.errors import CheckpointError
from pipeline.inference.node_cache import local_checkpoint
from pipeline.models.checkpoint.clip_config import check_clip, clip_side
from pipeline.models.configs import checked_form


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """Facts of a run's checkpoint, read from its configs."""

    folder: Path | None = None
    clip: Path | None = None
    """The folder of the CLIP of `--clip-score`, if the run has one."""
    size_bytes: int = 0
    """The weights of both."""
    downsample_factor: int = 8
    native_pixels: int = 512 * 512
    square: int | None = None
    """Pixels of the side of the center square to which a CLIP's images are cropped."""


def read_checkpoint_info(config: RunConfig) -> CheckpointInfo:
    """Read the configs of a run's checkpoint; CheckpointError if it cannot be used for the task."""
    folder = local_checkpoint(config.model)
    clip = None if config.clip_score is None else local_checkpoint(config.clip_score)
    if clip is not None:
        check_clip(clip)
    size = sum(path.stat().st_size for part in (folder, clip) if part for path in part.rglob("*.safetensors"))
    if config.task == "classify":
        check_clip(folder)
        side = clip_side(folder)
        return CheckpointInfo(folder=folder, size_bytes=size, native_pixels=side**2, square=side)
    try:
        autoencoder = folder / ("vqvae" if (folder / "vqvae").is_dir() else "vae")
        latents = json.loads((autoencoder / "config.json").read_text())
        unet = json.loads((folder / "unet" / "config.json").read_text())
        channels = unet["in_channels"], latents.get("vq_embed_dim") or latents["latent_channels"]
        side, factor = unet["sample_size"], 2 ** (len(latents["block_out_channels"]) - 1)
        native = (side[0] * side[1] if isinstance(side, list) else side * side) * factor**2
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: vae/config.json and unet/config.json must give their channels and sample_size ({error})"
        ) from error
    checked_form(folder.name, config.task, *channels)
    return CheckpointInfo(folder=folder, clip=clip, size_bytes=size, downsample_factor=factor, native_pixels=native)
