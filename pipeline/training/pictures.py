"""Batches of scenes and of textures, the same for the same seed and place, and their pixels."""

from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.training.scenes import Scene, draw, random_scene
from pipeline.training.textures import texture


def scenes(seed: int, start: int, count: int) -> list[Scene]:
    """Scenes `start` to `start + count` of the endless row that `seed` names."""
    return [random_scene(Random(f"{seed}/{start + index}")) for index in range(count)]


def textures(seed: int, start: int, count: int, width: int) -> list[Image.Image]:
    """Textures `start` to `start + count` of the endless row that `seed` names."""
    return [texture(Random(f"{seed}/{start + index}"), width) for index in range(count)]


def pixels_of(batch: Sequence[Scene], width: int) -> Tensor:
    """The scenes' pixels, (B, 3, width, width) in [-1, 1]."""
    return pixels_of_pictures([draw(scene, width) for scene in batch])


def pixels_of_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] of RGB pictures of one size."""
    levels = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1
