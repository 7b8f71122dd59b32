"""The recipes by name: what `latentmill train` can make."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.training.autoencoder import (
    SHAPES_AUTOENCODER,
    SHAPES_AUTOENCODER_ADVERSARIAL,
    SHAPES_VQ,
    TEXTURES_AUTOENCODER,
    train_autoencoder,
)
from pipeline.training.contrastive import SHAPES_CLIP, train_clip
from pipeline.training.diffusion import (
    SHAPES_DIFFUSION,
    SHAPES_DIFFUSION_BERT,
    SHAPES_DIFFUSION_FROZEN_CLIP,
    train_diffusion,
)
from pipeline.training.inpainting import SHAPES_INPAINTING, train_inpainting
from pipeline.training.upscaling import UPSCALER, train_upscaler


@dataclass(frozen=True, slots=True)
class Recipe:
    """One thing to train: what it needs in its folder first, and the training itself."""

    run: Callable[[Path], None]
    needs: tuple[str, ...] = ()
    """Names of components, with the recipe that makes each in MAKERS."""


MAKERS: Final = {
    "clip": "shapes-clip",
    "vae": "shapes-autoencoder",
    "text_encoder": "shapes-diffusion",
    "unet": "shapes-diffusion",
}

RECIPES: Final[dict[str, Recipe]] = {
    "shapes-clip": Recipe(lambda output: train_clip(SHAPES_CLIP, output)),
    "shapes-autoencoder": Recipe(lambda output: train_autoencoder(SHAPES_AUTOENCODER, output)),
    "shapes-autoencoder-adversarial": Recipe(
        lambda output: train_autoencoder(SHAPES_AUTOENCODER_ADVERSARIAL, output), ("clip",)
    ),
    "shapes-vq": Recipe(lambda output: train_autoencoder(SHAPES_VQ, output)),
    "shapes-diffusion": Recipe(lambda output: train_diffusion(SHAPES_DIFFUSION, output), ("vae",)),
    "shapes-diffusion-frozen-clip": Recipe(
        lambda output: train_diffusion(SHAPES_DIFFUSION_FROZEN_CLIP, output), ("clip", "vae")
    ),
    "shapes-diffusion-bert": Recipe(lambda output: train_diffusion(SHAPES_DIFFUSION_BERT, output), ("vae",)),
    "shapes-inpainting": Recipe(lambda output: train_inpainting(SHAPES_INPAINTING, output), ("unet", "vae")),
    "textures-autoencoder": Recipe(lambda output: train_autoencoder(TEXTURES_AUTOENCODER, output)),
    "upscaler": Recipe(lambda output: train_upscaler(UPSCALER, output), ("vae", "text_encoder")),
}
