"""Transparency: hidden colors never show, and visible ones are as Pillow's premultiplied resize makes them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.images.alpha import flatten
from pipeline.images.decode import decode_image
from pipeline.images.visible_colors import visible_colors
from tests.sample_images import file_of, ramp

YELLOW = (255, 220, 0)


def disc(side: int = 48, hidden: int = 0) -> np.ndarray:
    """Return a yellow disc with smooth edges, RGBA; hidden pixels have the level `hidden`."""
    large = Image.new("L", (10 * side, 10 * side), 0)
    ImageDraw.Draw(large).ellipse((side, side, 9 * side, 9 * side), fill=255)
    alpha = np.asarray(large.resize((side, side), Image.Resampling.BOX))
    colors = np.where(alpha[..., None] > 0, YELLOW, hidden)
    return np.dstack([colors, alpha]).astype(np.uint8)


def test_hidden_pixels_get_the_colors_around_them() -> None:
    assert (visible_colors(disc()) == YELLOW).all()
    gray = disc()[..., [0, 3]]
    assert (visible_colors(gray) == 255).all()
    nearly = disc()
    nearly[20, 20] = (0, 0, 0, 1)  # stored with one level: its color says nothing
    assert np.abs(visible_colors(nearly)[20, 20].astype(int) - YELLOW).max() <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 2), (33, 21)])
def test_visible_colors_do_not_depend_on_hidden_ones(shape: tuple[int, int]) -> None:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (*shape, 4), dtype=np.uint8)
    pixels[..., 3] = draws.choice([0, 255], shape, p=[0.8, 0.2])
    pixels[0, 0, 3] = 255
    other = np.where(pixels[..., 3:] == 0, np.uint8(77), pixels)
    other[..., 3] = pixels[..., 3]
    filled = visible_colors(pixels)
    assert (filled == visible_colors(other)).all()
    opaque = pixels[..., 3] == 255
    assert (filled[opaque] == pixels[opaque, :3]).all()
    assert (filled.min((0, 1)) >= pixels[opaque, :3].min(0)).all()
    assert (filled.max((0, 1)) <= pixels[opaque, :3].max(0)).all()


def test_an_even_transparency_and_opaque_images_keep_their_colors() -> None:
    for alpha in (255, 128, 1, 0):
        pixels = np.dstack([ramp(), np.full((12, 20), alpha, np.uint8)])
        assert (visible_colors(pixels) == ramp()).all()
    assert (visible_colors(ramp()) == ramp()).all()
    assert (visible_colors(ramp()[..., :1]) == ramp()[..., :1]).all()


def test_flattening_is_what_decoding_for_the_networks_does() -> None:
    for pixels in (disc(hidden=90), disc(hidden=90)[..., [0, 3]], ramp(), ramp()[..., :1]):
        picture = Image.fromarray(pixels.squeeze())
        assert (flatten(pixels) == decode_image(file_of(picture))).all()
    assert (flatten(disc(), 0)[0, 0] == 0).all() and (flatten(disc())[0, 0] == 255).all()
