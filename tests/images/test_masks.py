"""Which pixels are painted, how they fade into the picture, and what part of it is worked on."""

import numpy as np

from pipeline.images.masks import binarize_mask, blend, compute_opacity, find_crop_region


def hole(height: int, width: int, top: int, left: int, size: int) -> np.ndarray:
    chosen = np.zeros((height, width), bool)
    chosen[top : top + size, left : left + size] = True
    return chosen


def test_a_mask_of_another_size_or_inverted_chooses_the_same_pixels() -> None:
    chosen = hole(64, 96, 16, 32, 16)
    small = (chosen[::4, ::4] * 255).astype(np.uint8)
    assert np.abs(binarize_mask(small, 96, 64, inverted=False) ^ chosen).sum() <= 0.2 * chosen.sum()
    assert (binarize_mask(255 - (chosen * 255).astype(np.uint8), 96, 64, inverted=True) == chosen).all()


def test_dilating_grows_by_so_many_pixels_and_feathering_never_reaches_farther() -> None:
    chosen = hole(64, 64, 24, 24, 8)
    assert (compute_opacity(chosen, dilate=3, feather=0) == hole(64, 64, 21, 21, 14)).all()
    part = compute_opacity(chosen, dilate=3, feather=6)
    assert ((part == 1) >= hole(64, 64, 21, 21, 14)).all()
    assert ((part > 0) <= hole(64, 64, 15, 15, 26)).all()
    row = part[28, 32:]
    assert (np.diff(row) <= 0).all()
    assert ((row > 0) & (row < 1)).sum() >= 4


def test_a_hole_in_a_large_picture_is_worked_on_at_full_sharpness() -> None:
    area = find_crop_region(hole(3000, 4000, 2990, 10, 8), (512, 512), 8)
    assert (area.width, area.height, area.scaled) == (512, 512, False)
    assert (area.left, area.top) == (0, 3000 - 512)


def test_a_large_hole_is_worked_on_at_the_native_size_with_its_proportions() -> None:
    area = find_crop_region(hole(3000, 4000, 500, 500, 1400), (512, 512), 8)
    assert area.scaled
    assert (area.canvas_width, area.canvas_height) == (512, 512)
    assert (area.width, area.height) == (2100, 2100)


def test_a_picture_of_an_odd_size_is_filled_up_and_cut_again() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    area = find_crop_region(hole(37, 61, 5, 5, 9), (64, 64), 8)
    assert area.to_canvas(picture).shape == (40, 64, 3)
    assert (area.from_canvas(area.to_canvas(picture)) == picture).all()


def test_a_thin_stroke_is_still_painted_where_the_canvas_is_smaller() -> None:
    chosen = np.zeros((1000, 1000), bool)
    chosen[100:900, 500] = True
    area = find_crop_region(chosen, (64, 64), 8)
    assert area.scaled
    assert area.mask_to_canvas(chosen).any(1).mean() > 0.6


def test_blending_keeps_the_bytes_that_it_has_no_part_in() -> None:
    source, made = np.full((4, 4, 3), 201, np.uint8), np.full((4, 4, 3), 7, np.uint8)
    part = np.zeros((4, 4), np.float32)
    part[0], part[1] = 1.0, 0.5
    mixed = blend(source, made, part)
    assert mixed[:, 0, 0].tolist() == [7, 104, 201, 201]
