"""Resizing, and conversion to float pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.images import resize as resize_module
from pipeline.images.resize import center_square, resize, resize_to_cover, to_float

IMAGES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


@pytest.mark.parametrize(("height", "width"), [(1, 16_384), (9_001, 3), (40, 330)])
def test_a_thin_image_is_cropped_before_it_is_scaled(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    resize_pixels = resize_module.resize
    monkeypatch.setattr(
        resize_module, "resize", lambda pixels, *size: sizes.extend(size[:2]) or resize_pixels(pixels, *size)
    )
    pixels = np.linspace(0, 200, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    square = center_square(pixels, 64)
    assert square.shape == (64, 64, 3) and max(sizes) <= 8 * 64
    assert abs(float(square.mean()) - 100) < 2


def test_colors_are_interpolated_with_the_weight_of_their_alpha() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (255, 220, 0, 255)
    for values in (pixels, np.ascontiguousarray(pixels[..., [0, 3]])):
        for resized in (resize(values, 32, 32, "bilinear"), resize_to_cover(values, 4, 4, "bilinear")):
            visible = resized[resized[..., -1] > 40]
            assert np.abs(visible[:, :-1].astype(int) - values[0, 7, :-1]).max() <= 6


def test_resize_to_cover_preserves_the_aspect_ratio() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    covered = resize_to_cover(wide, 10, 10, "nearest")
    assert covered.min() == 255, "only the center square remains"
    assert resize(wide, 20, 5).shape == (5, 20, 3)


@given(IMAGES)
def test_float_pixels_are_in_range_and_lose_no_level(pixels: np.ndarray) -> None:
    floats = to_float(pixels)
    assert floats.shape == (3, *pixels.shape[:2])
    assert floats.min() >= -1
    assert floats.max() <= 1
    assert np.array_equal(np.round((floats.transpose(1, 2, 0) + 1) * 127.5), pixels)
