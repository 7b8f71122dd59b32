"""Generation: text to image, image to image, and editing images by instructions."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import MAX_SIZE, RowDefaults
from pipeline.diffusion.request import DenoisingRequest
from pipeline.errors import CheckpointError
from pipeline.images.resize import to_float
from pipeline.models.configs import checked_form
from pipeline.models.stack import Stack
from pipeline.tasks.decode import Heartbeat, no_heartbeat, to_levels
from pipeline.tasks.parameters import ParameterResolver, defaults_of
from pipeline.tasks.requests import RequestBuilder, encode_pixels, row_generator
from pipeline.tasks.rows import PreparedRow, Row, RowParameters


class Generate:
    """Text to image, and image to image for rows with `pixels`, on one stack.

    A U-Net that is made for editing gets the unscaled latents of a row's `pixels` beside noise, and is guided by text
    and image (Brooks et al. 2023, eq. 3). Noise is drawn in the order of diffusers' pipelines for a batch of one: the
    encoder's (image to image), the first latents', then one per step where the sampler needs it. CheckpointError if
    the stack is made for another task, or does not take one of the run's options.
    """

    def __init__(self, stack: Stack, defaults: RowDefaults) -> None:
        checked_form(stack.name, "generate", stack.unet.config.in_channels, stack.latent_channels)
        _check_options(stack, defaults)
        self.stack = stack
        self._builder = RequestBuilder(stack, defaults)
        task_defaults = {**defaults_of(stack), "sampler": self._builder.schedule.sampler}
        self._resolver = ParameterResolver(defaults, stack, task_defaults)

    def prepare(self, row: Row) -> PreparedRow:
        """Return the row with its parameters in force; ValueError if its size is not allowed."""
        return PreparedRow(parameters=self.parameters(row), pixels=row.pixels)

    def parameters(self, row: Row) -> RowParameters:
        """Return the parameters in force for a row; ValueError if its size or another one is not allowed."""
        _check_row(self.stack, row)
        factor, edits = self.stack.downsample_factor, self.stack.edits_images
        size, strength = self.stack.native_size, None
        if row.pixels is not None:
            height, width = row.pixels.shape[:2]
            size = max(width // factor, 1) * factor, max(height // factor, 1) * factor
            strength = None if edits else float(self._resolver.value(row, "strength"))
        parameters = self._resolver.parameters(row, size, strength=strength)
        if edits:
            scale = float(self._resolver.value(row, "image_guidance_scale"))
            parameters = replace(parameters, image_guidance_scale=scale)
        for name in ("width", "height"):
            side = getattr(parameters, name)
            if side < factor or side % factor or side > MAX_SIZE:
                remedy = "" if row.pixels is None else f" as {name}, or another image"
                raise ValueError(f"{name} is {side}; give a multiple of {factor} from {factor} to {MAX_SIZE}{remedy}")
        return parameters

    def request(self, key: Any, row: PreparedRow) -> DenoisingRequest:
        """Return the row's denoising request; ValueError if the sampler cannot run with its parameters."""
        parameters, factor = row.parameters, self.stack.downsample_factor
        table, generator = self._builder.image_table(parameters), row_generator(parameters)
        shape = (1, self.stack.latent_channels, parameters.height // factor, parameters.width // factor)
        pixels = None if row.pixels is None else _resized(row.pixels, parameters.width, parameters.height)
        image_latents = None
        if pixels is None or self.stack.edits_images:
            latents = table.start_noise * torch.randn(shape, generator=generator)[0]
            image_latents = None if pixels is None else self.stack.encode_unscaled(pixels)[0].cpu()
        else:
            encoded = encode_pixels(self.stack, pixels, generator)
            noise = torch.randn(shape, generator=generator)
            latents = (table.start_signal * encoded + table.start_noise * noise)[0]
        return self._builder.build(key, parameters, table, latents, generator, extra_channels=image_latents)

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
        """Return the image of latents (C, h, w): uint8 (H, W, 3). Each image is decoded in a batch of its own."""
        levels = to_levels(self.stack.decode(latents[None])[0])
        heartbeat()
        return levels


def _check_options(stack: Stack, run: RowDefaults) -> None:
    if stack.edits_images and run.strength is not None:
        raise CheckpointError(f"{stack.name}: --strength is for image to image; this model edits images: leave it out")
    if not stack.edits_images and run.image_guidance_scale is not None:
        raise CheckpointError(
            f"{stack.name}: --image-guidance-scale is for models that edit images, such as InstructPix2Pix's; leave it "
            "out"
        )


def _check_row(stack: Stack, row: Row) -> None:
    if stack.edits_images and row.pixels is None:
        raise ValueError("it has no image, which this model needs")
    if stack.edits_images and row.strength is not None:
        raise ValueError(f"strength is {row.strength}; it is for image to image, and this model edits images")
    if not stack.edits_images and row.image_guidance_scale is not None:
        raise ValueError(f"image_guidance_scale is {row.image_guidance_scale}; this model does not edit images")


def _resized(pixels: NDArray[np.uint8], width: int, height: int) -> Tensor:
    """Return uint8 pixels (H, W, 3) as (1, 3, height, width) in [-1, 1]."""
    values = torch.from_numpy(to_float(pixels))[None]
    if values.shape[-2:] == (height, width):
        return values
    resized = torch.nn.functional.interpolate(values, (height, width), mode="bicubic", antialias=True)
    return resized.clamp(-1, 1)
