"""The recipes by name: what `latentmill train` can make."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
from pipeline.training.loop import Worker
from pipeline.training.upscaling import UPSCALER, train_upscaler


@dataclass(frozen=True, slots=True)
class Recipe:
    """One thing to train: how, with which settings, and what must stand in its folder first."""

    train: Callable[[Any, Path, Worker], None]
    config: Any
    """A frozen dataclass with `loop`, and `source` where a user's own table can take its place."""
    needs: tuple[str, ...] = ()
    """Names of components, with the recipe that makes each in MAKERS."""

    @property
    def takes_data(self) -> bool:
        return hasattr(self.config, "source")

    @property
    def width(self) -> int:
        """Pixels of a training picture's side, where the recipe takes a user's table."""
        return self.config.width


MAKERS: Final = {
    "clip": "shapes-clip",
    "text_encoder": "shapes-diffusion",
    "unet": "shapes-diffusion",
    "vae": "shapes-autoencoder",
}

RECIPES: Final[dict[str, Recipe]] = {
    "shapes-clip": Recipe(train_clip, SHAPES_CLIP),
    "shapes-autoencoder": Recipe(train_autoencoder, SHAPES_AUTOENCODER),
    "shapes-autoencoder-adversarial": Recipe(train_autoencoder, SHAPES_AUTOENCODER_ADVERSARIAL, ("clip",)),
    "shapes-vq": Recipe(train_autoencoder, SHAPES_VQ),
    "shapes-diffusion": Recipe(train_diffusion, SHAPES_DIFFUSION, ("vae",)),
    "shapes-diffusion-frozen-clip": Recipe(train_diffusion, SHAPES_DIFFUSION_FROZEN_CLIP, ("clip", "vae")),
    "shapes-diffusion-bert": Recipe(train_diffusion, SHAPES_DIFFUSION_BERT, ("vae",)),
    "shapes-inpainting": Recipe(train_inpainting, SHAPES_INPAINTING, ("unet", "vae")),
    "textures-autoencoder": Recipe(train_autoencoder, TEXTURES_AUTOENCODER),
    "upscaler": Recipe(train_upscaler, UPSCALER, ("vae", "text_encoder")),
}
