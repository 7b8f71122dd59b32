"""The recipes by name: what `latentmill train` can make."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.training.autoencoder import SHAPES_AUTOENCODER, train_autoencoder
from pipeline.training.diffusion import SHAPES_DIFFUSION, train_diffusion

RECIPES: Final[dict[str, Callable[[Path], None]]] = {
    "shapes-autoencoder": lambda output: train_autoencoder(SHAPES_AUTOENCODER, output),
    "shapes-diffusion": lambda output: train_diffusion(SHAPES_DIFFUSION, output),
}
"""In the order in which a checkpoint folder needs them."""
