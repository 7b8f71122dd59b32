"""Inpainting: the white part of a row's mask is generated anew, every other pixel stays as it is."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import RowDefaults
from pipeline.diffusion.request import DenoisingRequest, KnownLatents
from pipeline.diffusion.samplers import SamplerTable
from pipeline.errors import CheckpointError
from pipeline.images.masks import CropRegion, binarize_mask, blend, compute_opacity, find_crop_region
from pipeline.images.resize import to_float
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.configs import checked_form
from pipeline.models.stack import KnownPixels, Stack
from pipeline.tasks.decode import Heartbeat, no_heartbeat, to_levels
from pipeline.tasks.parameters import DEFAULTS, ParameterResolver
from pipeline.tasks.requests import RequestBuilder, draw_encoder_noise, encode_pixels, row_generator
from pipeline.tasks.rows import PreparedRow, Row, RowParameters
from pipeline.tasks.sizes import with_sizes

_XL_STRENGTH: Final = 0.9999
"""diffusers' default for SDXL, whose first noise level is not noise alone; it is 1 for others: no old content stays."""


class Inpaint:
    """Inpainting on one stack, in the way that its U-Net is made for.

    A U-Net with 2 C + 1 input channels gets the mask and the masked image's latents (Rombach et al. 2022, section
    4.5). For one with C channels the known latents are restored at their noise level after each step (Lugmayr et al.
    2022). Noise is drawn in the order of diffusers' pipeline: the image's encoder's (where it is encoded), the first
    latents', the masked image's encoder's, then one per step where the sampler needs it.

    A row's `pixels` are uint8 (H, W, C): gray, gray and alpha, RGB or RGBA. The networks see them as RGB on white. The
    result has the same channels; what is painted is opaque.
    """

    def __init__(self, stack: Stack, defaults: RowDefaults) -> None:
        form = checked_form(stack.name, "inpaint", stack.unet.config.in_channels, stack.latent_channels)
        self._takes_mask = form == "inpainting"
        _check_latents(stack)
        self.stack, self._run = stack, defaults
        self._builder = RequestBuilder(stack, defaults)
        task_defaults = {**DEFAULTS, "sampler": self._builder.schedule.sampler}
        self._resolver = ParameterResolver(defaults, stack, task_defaults)

    def prepare(self, row: Row) -> PreparedRow:
        """Return the row with its parameters and the region to paint; ValueError if it has no image or no mask.

        Where the mask is empty, nothing is generated: `num_inference_steps` and `strength` are 0."""
        if row.mask is None or row.pixels is None:
            raise ValueError(f"it has no {'mask' if row.mask is None else 'image'}, which inpaint needs")
        height, width = row.pixels.shape[:2]
        masked = binarize_mask(row.mask, width, height, inverted=self._run.mask_invert)
        opacity = compute_opacity(masked, dilate=self._run.mask_dilate, feather=self._run.mask_feather)
        painted = opacity > 0
        region = None
        if painted.any():
            region = find_crop_region(painted, self.stack.native_size, self.stack.downsample_factor)
        parameters = self._parameters(row, width, height, region)
        if region is None:
            parameters = replace(parameters, num_inference_steps=0, strength=0.0)
        return PreparedRow(parameters=parameters, pixels=row.pixels, opacity=opacity, region=region)

    def request(self, key: Any, row: PreparedRow) -> DenoisingRequest | NDArray[np.uint8]:
        """Return the row's denoising request; the image itself where the mask is empty."""
        parameters, region = row.parameters, row.region
        if region is None or row.opacity is None or parameters.strength is None:
            return row.source()
        canvas = _canvas(region, row.source(), row.opacity)
        pixels, mask = canvas.pixels, canvas.mask
        strength = None if parameters.strength >= 1 else parameters.strength
        table, generator = self._builder.table(parameters, strength), row_generator(parameters)
        encodes = strength is not None or not self._takes_mask
        latents, noise, encoded = self._first_latents(table, pixels, generator, encodes=encodes)
        if self._takes_mask:
            extra = self._mask_channels(pixels, mask, generator)
            return self._builder.build(key, parameters, table, latents, generator, extra_channels=extra)
        request = self._builder.build(key, parameters, table, latents, generator)
        draw_encoder_noise(self.stack, pixels, generator)  # diffusers encodes the masked image here as well
        factor = self.stack.downsample_factor
        known = KnownLatents(latents=encoded, noise=noise, mask=F.max_pool2d(mask, factor)[0])
        return replace(request, known=known)

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
        """Return the row's image with the painted region blended in: uint8 (H, W, C) with the source's channels."""
        image, region, opacity = row.source().copy(), row.region, row.opacity
        assert region is not None and opacity is not None
        decoded = self.stack.decode(latents[None], _canvas(region, image, opacity))
        painted = region.from_canvas(to_levels(decoded[0]))
        heartbeat()
        region.crop(image)[:] = blend(region.crop(image), painted, region.crop(opacity))
        return image

    def _parameters(self, row: Row, width: int, height: int, region: CropRegion | None) -> RowParameters:
        """Return the parameters; SDXL's sizes are those of the canvas, which is what its networks see."""
        given = self._run.strength if row.strength is None else row.strength
        strength = (_XL_STRENGTH if self.stack.size_numbers else 1.0) if given is None else given
        parameters = self._resolver.parameters(row, (width, height), strength=strength)
        canvas = (width, height) if region is None else (region.canvas_width, region.canvas_height)
        parameters = with_sizes(self.stack, self._run, replace(parameters, width=canvas[0], height=canvas[1]))
        return replace(
            parameters,
            width=width,
            height=height,
            mask_invert=self._run.mask_invert,
            mask_dilate=self._run.mask_dilate,
            mask_feather=self._run.mask_feather,
        )

    def _first_latents(
        self, table: SamplerTable, pixels: Tensor, generator: torch.Generator, *, encodes: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first latents, their noise, and the image's latents (zero if not encoded), (C, h, w) each."""
        factor = self.stack.downsample_factor
        shape = (1, self.stack.latent_channels, pixels.shape[2] // factor, pixels.shape[3] // factor)
        encoded = encode_pixels(self.stack, pixels, generator) if encodes else torch.zeros(shape)
        noise = torch.randn(shape, generator=generator)
        latents = table.start_signal * encoded + table.start_noise * noise
        return latents[0], noise[0], encoded[0]

    def _mask_channels(self, pixels: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mask and the masked image's latents (1 + C, h, w)."""
        masked = encode_pixels(self.stack, pixels * (mask < 0.5), generator)
        small = F.interpolate(mask, masked.shape[-2:])  # nearest: what such U-Nets are trained on
        return torch.cat([small, masked], dim=1)[0]


def _check_latents(stack: Stack) -> None:
    config = stack.autoencoder.config
    if isinstance(config, AutoencoderConfig) and config.latents_mean is not None:
        raise CheckpointError(
            f"{stack.name}: its autoencoder has latents_mean and latents_std, which are supported by generate alone: "
            "inpainting in diffusers decodes with them, but encodes without"
        )


def _canvas(region: CropRegion, image: NDArray[np.uint8], opacity: NDArray[np.float32]) -> KnownPixels:
    """Return the part of an image that the networks see, and the mask of what is painted in it."""
    return KnownPixels(
        pixels=torch.from_numpy(to_float(region.to_canvas(image)))[None],
        mask=torch.from_numpy(region.mask_to_canvas(opacity > 0).astype(np.float32))[None, None],
    )
