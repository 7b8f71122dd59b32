"""Random crops and the scale of latents."""

import torch

from pipeline.models.autoencoder import AutoencoderKL
from pipeline.training.data.examples import SCENES, stack_pixels
from pipeline.training.latents import random_crops, scale_latents
from tests.training.tiny_recipes import AUTOENCODER


def test_scaled_latents_decode_to_the_same_image() -> None:
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(AUTOENCODER.model)  # pyright: ignore[reportArgumentType]
    pixels, noise = stack_pixels(SCENES.examples(1, 0, 2, 32)), torch.randn(2, 4, 8, 8)
    before = autoencoder.posterior(pixels).sample(noise)
    decoded = autoencoder.decode_unscaled(before)
    scale_latents(autoencoder, 5.4)
    after = autoencoder.posterior(pixels).sample(noise)
    torch.testing.assert_close(after, 5.4 * before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(autoencoder.decode_unscaled(after), decoded, rtol=1e-4, atol=1e-4)


def test_crops_of_latents_and_pixels_cover_the_same_area() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    latents = torch.stack([rows, columns])[None]
    pixels = latents.repeat_interleave(4, 2).repeat_interleave(4, 3)
    corners = set()
    for step in range(40):
        crop, large = random_crops(5, f"1/{step}", latents, pixels)
        assert crop.shape == (1, 2, 5, 5)
        assert (large == crop.repeat_interleave(4, 2).repeat_interleave(4, 3)).all()
        corners.add(tuple(crop[0, :, 0, 0].tolist()))
    assert {row for row, _ in corners} == {column for _, column in corners} == {0.0, 1.0, 2.0, 3.0}
