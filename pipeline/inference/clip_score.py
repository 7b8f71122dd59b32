"""CLIP score: how well a picture fits its prompt."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

_TEXTS: Final = 4096
"""Whose vectors are kept."""


def load_score(
    model: str, threads: int, device: str, weights_sha256: str | None = None
) -> Callable[[NDArray[np.uint8], str], float]:
    """How well a picture (H, W, 3) fits a text: 100 times the cosine of their CLIP vectors, or 0 where that is below.

    As of Hessel et al. 2021, equation 1, who weigh the cosine by 2.5. Each picture goes through the network alone, so
    that its score depends on it alone. `weights_sha256`: the driver's; CheckpointError if this node's are others."""
    from pipeline.inference.node_cache import check_weights, local_checkpoint
    from pipeline.models.checkpoint.weights import weights_digest
    from pipeline.models.clip import load_clip

    folder = local_checkpoint(model)
    check_weights(model, weights_digest(folder, half=False), weights_sha256)
    clip = load_clip(folder, device=device)
    of_text = lru_cache(maxsize=_TEXTS)(clip.of_text)

    def score(pixels: NDArray[np.uint8], text: str) -> float:
        torch.set_num_threads(threads)
        picture = clip.of_pictures(clip.prepared(pixels)[None])[0]
        return max(100 * float(picture @ of_text(text)), 0.0)

    return score
