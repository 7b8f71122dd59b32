"""Masks: binarization, opacity, the crop region, blending."""

import numpy as np

from pipeline.images.masks import binarize_mask, blend, compute_opacity, find_crop_region


def square_mask(height: int, width: int, top: int, left: int, size: int) -> np.ndarray:
    masked = np.zeros((height, width), bool)
    masked[top : top + size, left : left + size] = True
    return masked


def test_a_mask_of_another_size_or_inverted_selects_the_same_pixels() -> None:
    masked = square_mask(64, 96, 16, 32, 16)
    small = (masked[::4, ::4] * 255).astype(np.uint8)
    assert np.abs(binarize_mask(small, 96, 64, inverted=False) ^ masked).sum() <= 0.2 * masked.sum()
    assert (binarize_mask(255 - (masked * 255).astype(np.uint8), 96, 64, inverted=True) == masked).all()


def test_dilation_and_feathering_reach_exactly_as_far_as_asked() -> None:
    masked = square_mask(64, 64, 24, 24, 8)
    assert (compute_opacity(masked, dilate=3, feather=0) == square_mask(64, 64, 21, 21, 14)).all()
    opacity = compute_opacity(masked, dilate=3, feather=6)
    assert ((opacity == 1) >= square_mask(64, 64, 21, 21, 14)).all()
    assert ((opacity > 0) <= square_mask(64, 64, 15, 15, 26)).all()
    row = opacity[28, 32:]
    assert (np.diff(row) <= 0).all()
    assert ((row > 0) & (row < 1)).sum() >= 4


def test_a_small_hole_in_a_large_image_is_not_scaled() -> None:
    region = find_crop_region(square_mask(3000, 4000, 2990, 10, 8), (512, 512), 8)
    assert (region.width, region.height, region.scaled) == (512, 512, False)
    assert (region.left, region.top) == (0, 3000 - 512)


def test_a_large_hole_is_scaled_to_the_native_size_with_its_aspect_ratio() -> None:
    region = find_crop_region(square_mask(3000, 4000, 500, 500, 1400), (512, 512), 8)
    assert region.scaled
    assert (region.canvas_width, region.canvas_height) == (512, 512)
    assert (region.width, region.height) == (2100, 2100)


def test_an_image_of_any_size_is_padded_and_cropped_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    region = find_crop_region(square_mask(37, 61, 5, 5, 9), (64, 64), 8)
    assert region.to_canvas(picture).shape == (40, 64, 3)
    assert (region.from_canvas(region.to_canvas(picture)) == picture).all()


def test_a_thin_stroke_stays_masked_on_a_smaller_canvas() -> None:
    masked = np.zeros((1000, 1000), bool)
    masked[100:900, 500] = True
    region = find_crop_region(masked, (64, 64), 8)
    assert region.scaled
    assert region.mask_to_canvas(masked).any(1).mean() > 0.6


def test_blending_preserves_pixels_with_zero_opacity() -> None:
    source, edited = np.full((4, 4, 3), 201, np.uint8), np.full((4, 4, 3), 7, np.uint8)
    opacity = np.zeros((4, 4), np.float32)
    opacity[0], opacity[1] = 1.0, 0.5
    mixed = blend(source, edited, opacity)
    assert mixed[:, 0, 0].tolist() == [7, 104, 201, 201]


def test_an_opaque_layer_over_transparency_keeps_its_color() -> None:
    source = np.zeros((3, 4, 4), np.uint8)
    source[1], source[2] = (0, 0, 0, 255), (9, 9, 9, 77)
    edited = np.full((3, 4, 3), 200, np.uint8)
    opacity = np.array([[0.5], [0.5], [0]], np.float32).repeat(4, 1)
    mixed = blend(source, edited, opacity)
    assert mixed[0, 0].tolist() == [200, 200, 200, 128], "a hidden black does not darken it"
    assert mixed[1, 0].tolist() == [100, 100, 100, 255]
    assert (mixed[2] == source[2]).all()
    gray = blend(source[..., [0, 3]], edited, opacity)
    assert (gray == mixed[..., [0, 3]]).all()
    assert (blend(source[..., :1], edited, opacity) == blend(source[..., :3], edited, opacity)[..., :1]).all()
