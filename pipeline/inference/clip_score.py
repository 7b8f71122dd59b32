"""CLIP score: how well an image fits its prompt (Hessel et al. 2021)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.images.alpha import flatten

_CACHED_TEXTS: Final = 4096

ClipScorer = Callable[[NDArray[np.uint8], str], float]
"""Returns the CLIP score of uint8 pixels (H, W, C), on white if they are transparent, and a text."""


def load_clip_scorer(model: str, threads: int, device: str, weights_sha256: str | None = None) -> ClipScorer:
    """Load a CLIP as a scorer: 100 times the cosine of image and text embeddings, at least 0.

    (Hessel et al. 2021, eq. 1, with the weight 100 instead of 2.5.) Each image goes through the network in a batch of
    its own, so its score depends on it alone. `weights_sha256` is the driver's; CheckpointError if this node's differ.
    """
    from pipeline.inference.node_cache import check_weights, local_checkpoint
    from pipeline.models.checkpoint.weights import weights_digest
    from pipeline.models.clip import load_clip

    folder = local_checkpoint(model, half=False)
    check_weights(model, weights_digest(folder, half=False), weights_sha256)
    clip = load_clip(folder, device=device)
    embed_text = lru_cache(maxsize=_CACHED_TEXTS)(clip.embed_text)

    def score(pixels: NDArray[np.uint8], text: str) -> float:
        torch.set_num_threads(threads)
        image_embeds = clip.embed_images(clip.crop(flatten(pixels))[None])[0]
        return max(100 * float(image_embeds @ embed_text(text)), 0.0)

    return score
