"""Small random autoencoders of the published classes, to replace that of a small checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any, Final, Literal

import torch

from tests.checkpoints import AUTOENCODER

AutoencoderKind = Literal["tiny", "asymmetric", "normalized", "plain"]

NORMALIZED: Final[dict[str, Any]] = {"latents_mean": [0.3, -0.2, 0.1, 0.4], "latents_std": [1.4, 0.7, 1.2, 0.9]}
_CLASSES: Final[dict[AutoencoderKind, tuple[str, dict[str, Any]]]] = {
    "tiny": (
        "AutoencoderTiny",
        {
            "act_fn": "relu",
            "decoder_block_out_channels": [16] * 4,
            "encoder_block_out_channels": [16] * 4,
            "force_upcast": False,
            "in_channels": 3,
            "latent_channels": 4,
            "latent_magnitude": 3,
            "latent_shift": 0.5,
            "num_decoder_blocks": [2, 2, 2, 1],
            "num_encoder_blocks": [1, 2, 2, 2],
            "out_channels": 3,
            "scaling_factor": 1.0,
            "upsampling_scaling_factor": 2,
        },
    ),
    "asymmetric": (
        "AsymmetricAutoencoderKL",
        {
            "act_fn": "silu",
            "down_block_out_channels": [16, 32, 32, 32],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_down_block": 1,
            "layers_per_up_block": 2,
            "norm_num_groups": 16,
            "out_channels": 3,
            "sample_size": 256,
            "scaling_factor": 0.18215,
            "up_block_out_channels": [16, 32, 64, 64],
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
    ),
    "normalized": ("AutoencoderKL", {**AUTOENCODER, **NORMALIZED, "scaling_factor": 0.5}),
    "plain": ("AutoencoderKL", {**AUTOENCODER, "scaling_factor": 0.13025}),
}


def small_autoencoder(folder: Path, kind: AutoencoderKind, **options: Any) -> Path:
    """Save a random autoencoder of a class with a folder of its own; downsample factor 8, 4 latent channels."""
    import diffusers

    class_name, config = _CLASSES[kind]
    with torch.random.fork_rng():
        torch.manual_seed(40)
        model = getattr(diffusers, class_name)(**{**config, **options})
        with torch.no_grad():
            last = model.decoder.layers[-1] if kind == "tiny" else model.decoder.conv_out
            last.weight.mul_(4)
    model.save_pretrained(folder)
    return folder


def with_autoencoder(checkpoint: Path, folder: Path, kind: AutoencoderKind, **options: Any) -> Path:
    """Copy a checkpoint to `folder` with another autoencoder."""
    shutil.copytree(checkpoint, folder)
    shutil.rmtree(folder / "vae")
    small_autoencoder(folder / "vae", kind, **options)
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", _CLASSES[kind][0]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
