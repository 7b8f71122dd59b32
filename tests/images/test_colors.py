"""Color correction: block means follow the source, and weak detail is filtered out."""

import numpy as np
import pytest

from pipeline.images.colors import block_means, correct_colors
from pipeline.images.resize import resize


def test_noise_over_black_and_white_is_corrected_despite_clipping() -> None:
    source = np.zeros((9, 70, 3), np.uint8)
    source[:, 35:] = 255
    noise = np.random.default_rng(1).integers(-40, 40, (36, 280, 3))
    enlarged = (source.repeat(4, 0).repeat(4, 1) + noise).clip(0, 255).astype(np.uint8)
    assert np.abs(block_means(correct_colors(enlarged, source), 9) - source).mean() < 1


def test_only_detail_weaker_than_the_networks_noise_is_removed() -> None:
    source = np.linspace(60, 180, 80 * 40 * 3).reshape(80, 40, 3).astype(np.uint8)
    smooth = resize(source, 160, 320, "bicubic")
    noise = np.random.default_rng(2).normal(0, 3, smooth.shape)
    noisy = correct_colors((smooth + noise).round().astype(np.uint8), source)
    assert (noisy.astype(float) - smooth).std() < 1 < noise.std()
    fine = np.where(np.arange(160) % 2 == 0, 50, -50)[None, :, None]
    detailed = (smooth + fine).clip(0, 255).astype(np.uint8)
    remaining = correct_colors(detailed, source).astype(float) - smooth
    assert np.abs(remaining[4:-4, 4:-4] / fine[:, 4:-4] - 1).max() < 0.1


def test_a_wide_image_is_corrected_in_vertical_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.linspace(0, 200, 9 * 200 * 3).reshape(9, 200, 3).astype(np.uint8)
    noise = np.random.default_rng(1).integers(-40, 40, (36, 800, 3))
    enlarged = (source.repeat(4, 0).repeat(4, 1) + noise).clip(0, 255).astype(np.uint8)
    expected = correct_colors(enlarged, source)
    monkeypatch.setattr("pipeline.images.colors._MAX_STRIP_WIDTH", 100)
    assert np.abs(correct_colors(enlarged, source).astype(int) - expected).max() <= 2
