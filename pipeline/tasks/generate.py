"""Generation: text to image, and image to image."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import MAX_SIZE, RowDefaults
from pipeline.diffusion.request import DenoisingRequest
from pipeline.images.resize import to_float
from pipeline.models.configs import checked_form
from pipeline.models.stack import Stack
from pipeline.tasks.decode import Heartbeat, no_heartbeat, to_levels
from pipeline.tasks.parameters import ParameterResolver, defaults_of
from pipeline.tasks.requests import RequestBuilder, encode_pixels, row_generator
from pipeline.tasks.rows import PreparedRow, Row, RowParameters


class Generate:
    """Text to image, and image to image for rows with `pixels`, on one stack.

    Noise is drawn in the order of diffusers' pipelines for a batch of one: the encoder's (image to image), the first
    latents', then one per step where the sampler needs it. CheckpointError if the stack is made for another task.
    """

    def __init__(self, stack: Stack, defaults: RowDefaults) -> None:
        checked_form(stack.name, "generate", stack.unet.config.in_channels, stack.latent_channels)
        self.stack = stack
        self._builder = RequestBuilder(stack, defaults.guidance_interval)
        task_defaults = {**defaults_of(stack), "sampler": self._builder.schedule.sampler}
        self._resolver = ParameterResolver(defaults, stack, task_defaults)

    def prepare(self, row: Row) -> PreparedRow:
        """Return the row with its parameters in force; ValueError if its size is not allowed."""
        return PreparedRow(parameters=self.parameters(row), pixels=row.pixels)

    def parameters(self, row: Row) -> RowParameters:
        """Return the parameters in force for a row; ValueError if its size is not allowed."""
        factor = self.stack.downsample_factor
        size, strength = self.stack.native_size, None
        if row.pixels is not None:
            height, width = row.pixels.shape[:2]
            size = max(width // factor, 1) * factor, max(height // factor, 1) * factor
            strength = float(self._resolver.value(row, "strength"))
        parameters = self._resolver.parameters(row, size, strength=strength)
        for name in ("width", "height"):
            side = getattr(parameters, name)
            if side < factor or side % factor or side > MAX_SIZE:
                remedy = "" if row.pixels is None else f" as {name}, or another image"
                raise ValueError(f"{name} is {side}; give a multiple of {factor} from {factor} to {MAX_SIZE}{remedy}")
        return parameters

    def request(self, key: Any, row: PreparedRow) -> DenoisingRequest:
        """Return the row's denoising request; ValueError if the sampler cannot run with its parameters."""
        parameters, factor = row.parameters, self.stack.downsample_factor
        table, generator = self._builder.table(parameters, parameters.strength), row_generator(parameters)
        shape = (1, self.stack.latent_channels, parameters.height // factor, parameters.width // factor)
        if row.pixels is None:
            latents = table.start_noise * torch.randn(shape, generator=generator)[0]
        else:
            pixels = _resized(row.pixels, parameters.width, parameters.height)
            encoded = encode_pixels(self.stack, pixels, generator)
            noise = torch.randn(shape, generator=generator)
            latents = (table.start_signal * encoded + table.start_noise * noise)[0]
        return self._builder.build(key, parameters, table, latents, generator)

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
        """Return the image of latents (C, h, w): uint8 (H, W, 3). Each image is decoded in a batch of its own."""
        levels = to_levels(self.stack.decode(latents[None])[0])
        heartbeat()
        return levels


def _resized(pixels: NDArray[np.uint8], width: int, height: int) -> Tensor:
    """Return uint8 pixels (H, W, 3) as (1, 3, height, width) in [-1, 1]."""
    values = torch.from_numpy(to_float(pixels))[None]
    if values.shape[-2:] == (height, width):
        return values
    resized = torch.nn.functional.interpolate(values, (height, width), mode="bicubic", antialias=True)
    return resized.clamp(-1, 1)
