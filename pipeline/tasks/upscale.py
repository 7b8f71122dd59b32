"""Super-resolution: a row's image enlarged, in tiles where it is larger than the network takes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RowDefaults
from pipeline.diffusion.request import DenoisingRequest
from pipeline.diffusion.tiles import Tiling
from pipeline.errors import CheckpointError
from pipeline.images.alpha import has_alpha
from pipeline.images.colors import correct_colors
from pipeline.images.resize import resize, to_float, to_gray
from pipeline.images.visible_colors import visible_colors
from pipeline.models.configs import checked_form
from pipeline.models.stack import Stack
from pipeline.tasks.decode import UPSCALE_FACTOR, Heartbeat, decode_tiled, no_heartbeat
from pipeline.tasks.parameters import DEFAULTS, ParameterResolver
from pipeline.tasks.requests import RequestBuilder, read_schedule, row_generator
from pipeline.tasks.rows import PreparedRow, Row, RowParameters


class Upscale:
    """Super-resolution on one stack, in the way that its U-Net is made for.

    The U-Net gets the source beside the latents (Rombach et al. 2022, section 4.4): Stable Diffusion's x4 upscaler,
    which has text, with noise of a level that is its class label; the paper's, which has no text, as it is.

    A row's `pixels` are uint8 (H, W, C) of any size: gray, gray and alpha, RGB or RGBA. Colors go through the
    networks, where hidden pixels get the colors around them; alpha is resized beside them. Noise is drawn in the order
    of diffusers' pipelines, for the whole image and never for a tile: the source's (with text), the first latents',
    then one per step where the sampler needs it.
    """

    def __init__(self, stack: Stack, defaults: RowDefaults) -> None:
        checked_form(stack.name, "upscale", stack.unet.config.in_channels, stack.latent_channels)
        _check_upscaler(stack)
        self.stack, self._scale = stack, defaults.scale
        self._builder = RequestBuilder(stack, defaults)
        steps = 100 if stack.text is None else 75
        task_defaults = {**DEFAULTS, "num_inference_steps": steps, "guidance_scale": 9.0, "noise_level": 20}
        task_defaults["sampler"] = self._builder.schedule.sampler
        self._resolver = ParameterResolver(defaults, stack, task_defaults)
        self._correct_colors = bool(self._resolver.option("correct_colors", False))
        noise = stack.low_res_schedule_config
        self._alphas_cumprod = None if noise is None else read_schedule(stack.name, noise).alphas_cumprod()
        self._multiple = 2 ** (len(stack.unet.config.block_out_channels) - 1)
        self.tile = min(stack.unet.config.latent_size) if defaults.tile is None else defaults.tile
        self.overlap = self.tile // 4 if defaults.overlap is None else defaults.overlap
        if self.tile < self._multiple or self.tile % self._multiple or not 0 <= self.overlap <= self.tile // 2:
            raise CheckpointError(
                f"{stack.name}: tile is {self.tile} and overlap {self.overlap}; give a multiple of {self._multiple}, "
                "and from 0 to half of it"
            )

    def prepare(self, row: Row) -> PreparedRow:
        """Return the row with its parameters in force; ValueError if its noise level is out of range."""
        parameters = self._parameters(row)
        if self._alphas_cumprod is not None and parameters.noise_level is not None:
            highest = min(self.stack.max_noise_level, len(self._alphas_cumprod) - 1)
            if parameters.noise_level > highest:
                raise ValueError(f"noise_level is {parameters.noise_level}; give 0 to {highest}")
        return PreparedRow(parameters=parameters, pixels=row.pixels)

    def request(self, key: Any, row: PreparedRow) -> DenoisingRequest:
        """Return the row's denoising request."""
        parameters = row.parameters
        source = self._padded(self._network_source(row.source()))
        height, width = source.shape[:2]
        table, generator = self._builder.table(parameters, None), row_generator(parameters)
        low_resolution = torch.from_numpy(to_float(source))[None]
        if parameters.noise_level is not None:
            low_resolution = self._add_noise(low_resolution, parameters.noise_level, generator)
        noise = torch.randn((1, self.stack.latent_channels, height, width), generator=generator)
        latents = table.start_noise * noise[0]
        request = self._builder.build(key, parameters, table, latents, generator, extra_channels=low_resolution[0])
        return replace(request, tiling=Tiling.of(height, width, self.tile, self.overlap))

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
        """Return the row's image enlarged: uint8 (scale H, scale W, C) with the source's channels."""
        source = row.source()
        height, width, channels = source.shape
        network_source = self._network_source(source)
        tiling = Tiling.of(latents.shape[1], latents.shape[2], self.tile, self.overlap)
        enlarged = decode_tiled(self.stack.decode, latents, tiling, heartbeat)
        enlarged = enlarged[: UPSCALE_FACTOR * network_source.shape[0], : UPSCALE_FACTOR * network_source.shape[1]]
        if self._correct_colors:
            enlarged = correct_colors(enlarged, network_source, heartbeat)
        enlarged = resize(enlarged, self._scale * width, self._scale * height)
        if channels < 3:
            enlarged = to_gray(enlarged)[..., None]
        if has_alpha(source):
            alpha = resize(source[..., -1], self._scale * width, self._scale * height, "bicubic")
            enlarged = np.concatenate([enlarged, alpha[..., None]], axis=2)
        return enlarged

    def _parameters(self, row: Row) -> RowParameters:
        if row.pixels is None:
            raise ValueError("it has no image, which upscale needs")
        height, width = row.pixels.shape[:2]
        parameters = replace(
            self._resolver.parameters(row, (width, height)),
            width=self._scale * width,
            height=self._scale * height,
            upscale_factor=self._scale,
            tile_size=self.tile,
            tile_overlap=self.overlap,
            colors_corrected=self._correct_colors,
        )
        if self._alphas_cumprod is not None:
            parameters = replace(parameters, noise_level=int(self._resolver.value(row, "noise_level")))
        if self.stack.text is None:
            parameters = replace(parameters, prompt="", negative_prompt="", guidance_scale=1.0, guidance_rescale=0.0)
        return parameters

    def _add_noise(self, source: Tensor, level: int, generator: torch.Generator) -> Tensor:
        """Return the source at a noise level: conditioning augmentation (Ho et al. 2022)."""
        assert self._alphas_cumprod is not None
        signal = float(self._alphas_cumprod[level])
        return signal**0.5 * source + (1 - signal) ** 0.5 * torch.randn(source.shape, generator=generator)

    def _network_source(self, source: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the RGB (H', W', 3) that the networks enlarge: for a scale above 4 the source enlarged before.

        Hidden colors are replaced, so that neither networks nor resizing mix them into visible pixels."""
        scale = max(self._scale // UPSCALE_FACTOR, 1)
        height, width = source.shape[:2]
        return resize(visible_colors(source), scale * width, scale * height, "bicubic")

    def _padded(self, source: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the source with sides below the tile mirrored to a multiple of the U-Net's downsampling."""
        padding = [(0, -side % self._multiple if side < self.tile else 0) for side in source.shape[:2]]
        return np.pad(source, (*padding, (0, 0)), mode="symmetric")


def _check_upscaler(stack: Stack) -> None:
    if stack.downsample_factor != UPSCALE_FACTOR:
        raise CheckpointError(
            f"{stack.name}: its autoencoder enlarges {stack.downsample_factor} times; upscale needs {UPSCALE_FACTOR}"
        )
    if (stack.unet.config.num_class_embeds is None) != (stack.low_res_schedule_config is None):
        raise CheckpointError(f"{stack.name}: num_class_embeds and low_res_scheduler need each other")
