"""The recipes of `latentmill train`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from pipeline.training.data.styles import StyledScenes
from pipeline.training.loop import Worker
from pipeline.training.recipes.autoencoder import (
    SHAPES_AUTOENCODER,
    SHAPES_AUTOENCODER_ADVERSARIAL,
    SHAPES_DECODER,
    SHAPES_VQ,
    TEXTURES_AUTOENCODER,
    train_autoencoder,
)
from pipeline.training.recipes.clip import SHAPES_CLIP, train_clip
from pipeline.training.recipes.consistency import LCM, train_consistency
from pipeline.training.recipes.diffusion import (
    SHAPES_DIFFUSION,
    SHAPES_DIFFUSION_BERT,
    SHAPES_DIFFUSION_CLIP,
    SHAPES_DIFFUSION_FROZEN_CLIP,
    train_diffusion,
)
from pipeline.training.recipes.inpainting import SHAPES_INPAINTING, train_inpainting
from pipeline.training.recipes.lora import LORA, train_lora
from pipeline.training.recipes.upscaler import UPSCALER, train_upscaler

FIELDS_OF_OPTIONS: Final = {
    "data": "source",
    "style": "source",
    "model": "base_model",
    "rank": "rank",
    "alpha": "alpha",
}
"""Options that only some recipes take, and the fields of a recipe's configuration that they set."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training function, its configuration, and the components that it needs."""

    train: Callable[[Any, Path, Worker], None]
    """Takes the configuration, the output folder and the worker."""
    config: Any
    """A frozen dataclass with the field `loop`; with `source` and `width` if it can train on a user's table."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """The components that the output folder must hold, each with the recipe that trains it."""

    @property
    def options(self) -> frozenset[str]:
        """The options of the command line that this recipe takes and others do not."""
        names = {each.name for each in fields(self.config)}
        options = {option for option, name in FIELDS_OF_OPTIONS.items() if name in names}
        is_styled = isinstance(getattr(self.config, "source", None), StyledScenes)
        return frozenset(options if is_styled else options - {"style"})


_CLIP: Final = {"clip": "shapes-clip"}

_VAE: Final = {"vae": "shapes-autoencoder"}

RECIPES: Final[dict[str, Recipe]] = {
    "shapes-clip": Recipe(train_clip, SHAPES_CLIP),
    "shapes-autoencoder": Recipe(train_autoencoder, SHAPES_AUTOENCODER),
    "shapes-autoencoder-adversarial": Recipe(train_autoencoder, SHAPES_AUTOENCODER_ADVERSARIAL, _CLIP),
    "shapes-decoder": Recipe(train_autoencoder, SHAPES_DECODER, _CLIP | _VAE),
    "shapes-vq": Recipe(train_autoencoder, SHAPES_VQ),
    "shapes-diffusion": Recipe(train_diffusion, SHAPES_DIFFUSION, _VAE),
    "shapes-diffusion-frozen-clip": Recipe(train_diffusion, SHAPES_DIFFUSION_FROZEN_CLIP, _CLIP | _VAE),
    "shapes-diffusion-clip": Recipe(
        train_diffusion,
        SHAPES_DIFFUSION_CLIP,
        dict.fromkeys(("unet", "text_encoder"), "shapes-diffusion-frozen-clip") | _VAE,
    ),
    "shapes-diffusion-bert": Recipe(train_diffusion, SHAPES_DIFFUSION_BERT, _VAE),
    "shapes-inpainting": Recipe(
        train_inpainting, SHAPES_INPAINTING, dict.fromkeys(("unet", "text_encoder"), "shapes-diffusion") | _VAE
    ),
    "lcm": Recipe(train_consistency, LCM),
    "lora": Recipe(train_lora, LORA),
    "textures-autoencoder": Recipe(train_autoencoder, TEXTURES_AUTOENCODER),
    "upscaler": Recipe(train_upscaler, UPSCALER, {"vae": "textures-autoencoder", "text_encoder": "shapes-diffusion"}),
}
