"""Encoding: lossless PNG, the same bytes each time, limits of the formats."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images.decode import decode_image
from pipeline.images.encode import encode_image
from tests.sample_images import ramp

IMAGES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


@given(IMAGES)
def test_png_preserves_every_pixel(pixels: np.ndarray) -> None:
    assert np.array_equal(decode_image(encode_image(pixels, "png")), pixels)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_encoding_is_deterministic_and_close(image_format: str) -> None:
    pixels = ramp(64, 48)
    once = encode_image(pixels, image_format, metadata={"prompt": "a ring"})  # type: ignore[arg-type]
    assert once == encode_image(pixels.copy(), image_format, metadata={"prompt": "a ring"})  # type: ignore[arg-type]
    assert np.abs(decode_image(once).astype(int) - pixels).mean() < 3
    assert Image.open(io.BytesIO(once)).format == image_format.upper()


def test_metadata_is_written_to_text_chunks_and_exif() -> None:
    png = Image.open(io.BytesIO(encode_image(ramp(), "png", metadata={"prompt": "ein Würfel", "seed": "7"})))
    assert (png.info["prompt"], png.info["seed"]) == ("ein Würfel", "7")
    jpeg = Image.open(io.BytesIO(encode_image(ramp(), "jpeg", metadata={"seed": "7"})))
    assert jpeg.getexif()[0x010E] == "seed: 7"


def test_an_image_that_a_format_cannot_store_is_refused() -> None:
    with pytest.raises(ImageError, match="has transparency, which jpeg cannot store; use png or webp"):
        encode_image(np.zeros((2, 2, 4), np.uint8), "jpeg")
    opaque = np.dstack([ramp(), np.full((12, 20), 255, np.uint8)])
    assert encode_image(opaque, "jpeg") == encode_image(ramp(), "jpeg")
    with pytest.raises(ImageError, match=r"16400 x 1 pixels are too many for webp \(16383 per side\)"):
        encode_image(np.zeros((1, 16_400, 3), np.uint8), "webp")


def test_pixels_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_image(np.zeros((2, 2, 3), np.float32))  # type: ignore[arg-type]
