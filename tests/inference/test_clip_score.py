"""CLIP scores of images with any channels."""

import numpy as np

from pipeline.images.alpha import flatten
from pipeline.inference.clip_score import load_clip_scorer
from tests.sample_images import ramp


def test_gray_and_transparent_images_are_scored_as_colors_on_white() -> None:
    score = load_clip_scorer("shapes-clip", 1, "cpu")
    alpha = np.linspace(0, 255, 240).reshape(12, 20, 1).astype(np.uint8)
    for pixels in (ramp()[..., :1], np.dstack([ramp()[..., :1], alpha]), np.dstack([ramp(), alpha])):
        assert score(pixels, "a circle") == score(flatten(pixels), "a circle")
