"""Batches of scenes: pixels and captions, the same for the same seed and place."""

from random import Random

import numpy as np
import torch
from torch import Tensor

from pipeline.training.scenes import Scene, draw, random_scene


def scenes(seed: int, start: int, count: int) -> list[Scene]:
    """Scenes `start` to `start + count` of the endless row that `seed` names."""
    return [random_scene(Random(f"{seed}/{start + index}")) for index in range(count)]


def pixels_of(batch: list[Scene], width: int) -> Tensor:
    """The scenes' pixels, (B, 3, width, width) in [-1, 1]."""
    pictures = np.stack([np.asarray(draw(scene, width)) for scene in batch])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
