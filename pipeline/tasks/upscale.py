"""Super-resolution: a row's picture enlarged, in tiles where it is larger than the network takes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RowDefaults, Task
from pipeline.diffusion.engine import DenoisingRequest
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.tiles import Tiling
from pipeline.errors import CheckpointError
from pipeline.images.colors import correct_colors
from pipeline.images.resize import resize, to_float, to_gray
from pipeline.models.stack import Stack
from pipeline.tasks.generate import Generate, Heartbeat, levels_of, no_heartbeat

FACTOR: Final = 4
"""How many times the networks enlarge a picture: latents lie on the source's pixels, and are decoded by this factor."""


class Upscale(Generate):
    """The upscaling task on one stack, in the way that its U-Net is made for.

    Either is shown the source beside the latents (Rombach et al. 2022, section 4.4): the one with text, Stable
    Diffusion's x4 upscaler, with noise of a level that it is told; the one without text, the paper's, as it is.

    A row is as Generate's, with `pixels`, uint8 (H, W, C) of any size: gray, gray and alpha, RGB or RGBA. Colors go
    through the networks, alpha beside them. Noise is drawn in the order of diffusers' pipelines: the source's (with
    text), the first latents', then one a step where the sampler needs it; for all of the picture, never for a tile.
    """

    TASK: ClassVar[Task] = "upscale"

    def __init__(self, stack: Stack, defaults: RowDefaults) -> None:
        super().__init__(stack, defaults)
        self.fallbacks = {"num_inference_steps": 100 if stack.text is None else 75, "guidance_scale": 9.0}
        self.fallbacks |= {"noise_level": 20}
        if stack.downsample_factor != FACTOR:
            raise CheckpointError(
                f"{stack.name}: its autoencoder enlarges {stack.downsample_factor} times; upscale needs {FACTOR}"
            )
        if (stack.unet.config.num_class_embeds is None) != (stack.low_res_schedule_config is None):
            raise CheckpointError(f"{stack.name}: num_class_embeds and low_res_scheduler need each other")
        noise = stack.low_res_schedule_config
        self._alphas = None if noise is None else NoiseScheduleConfig.from_dict(noise).alphas_cumprod()
        self._multiple = 2 ** (len(stack.unet.config.block_out_channels) - 1)
        self.correct_colors: bool = self._setting({}, "correct_colors", stack.generation_config, False)
        self.tile = stack.unet.config.sample_size if defaults.tile is None else defaults.tile
        self.overlap = self.tile // 4 if defaults.overlap is None else defaults.overlap
        if self.tile < self._multiple or self.tile % self._multiple or not 0 <= self.overlap <= self.tile // 2:
            raise CheckpointError(
                f"{stack.name}: tile is {self.tile} and overlap {self.overlap}; give a multiple of {self._multiple}, "
                "and from 0 to half of it"
            )

    def parameters(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """As Generate's, with the tiles; `width` and `height` are the output's. A U-Net without text has no prompt."""
        height, width = row["pixels"].shape[:2]
        chosen = super().parameters({**row, "pixels": None})
        chosen |= {
            "width": self.defaults.scale * width,
            "height": self.defaults.scale * height,
            "noise_level": None,
            "upscale_factor": self.defaults.scale,
            "tile_size": self.tile,
            "tile_overlap": self.overlap,
            "colors_corrected": self.correct_colors,
        }
        if self._alphas is not None:
            chosen["noise_level"] = int(self._setting(row, "noise_level", self.stack.generation_config))
        if self.stack.text is None:
            chosen |= {"prompt": "", "negative_prompt": "", "guidance_scale": 1.0, "guidance_rescale": 0.0}
        return chosen

    def request(self, key: Any, row: Mapping[str, Any]) -> DenoisingRequest:
        """What the lane engine runs for the row; a ValueError says what of the row can't be."""
        chosen = self.parameters(row)
        source = self._padded(self._shown(row["pixels"]))
        height, width = source.shape[:2]
        request = self._without_latents(key, chosen, None)
        shown = torch.from_numpy(to_float(source))[None]
        if self._alphas is not None:
            shown = self._noised(shown, chosen["noise_level"], request.generator)
        noise = torch.randn((1, self.stack.latent_channels, height, width), generator=request.generator)
        return replace(
            request,
            latents=request.table.start_noise * noise[0],
            extra_channels=shown[0],
            class_label=chosen["noise_level"],
            tiling=Tiling.of(height, width, self.tile, self.overlap),
        )

    def pixels(self, latents: Tensor, row: Mapping[str, Any], beat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
        """The row's picture enlarged: uint8 (scale H, scale W, C), C as the source has it."""
        source: NDArray[np.uint8] = row["pixels"]
        height, width, channels = source.shape
        shown = self._shown(source)
        tiling = Tiling.of(latents.shape[1], latents.shape[2], self.tile, self.overlap)
        made = decoded(self.stack.decode, latents, tiling, beat)[: FACTOR * shown.shape[0], : FACTOR * shown.shape[1]]
        if self.correct_colors:
            made = correct_colors(made, shown, beat)
        scale = self.defaults.scale
        made = resize(made, scale * width, scale * height)
        if channels < 3:
            made = to_gray(made)[..., None]
        if channels in (2, 4):
            alpha = resize(source[..., -1], scale * width, scale * height, "bicubic")
            made = np.concatenate([made, alpha[..., None]], axis=2)
        return made

    def _noised(self, shown: Tensor, level: int, generator: torch.Generator) -> Tensor:
        """The source at a noise level: conditioning augmentation (Ho et al. 2022)."""
        assert self._alphas is not None
        most = min(self.stack.max_noise_level, len(self._alphas) - 1)
        if level > most:
            raise ValueError(f"noise_level is {level}; give 0 to {most}")
        signal = float(self._alphas[level])
        return signal**0.5 * shown + (1 - signal) ** 0.5 * torch.randn(shown.shape, generator=generator)

    def _shown(self, source: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The colors that the networks enlarge by FACTOR: of a larger scale, those of the source enlarged before."""
        more = max(self.defaults.scale // FACTOR, 1)
        height, width = source.shape[:2]
        return resize(_colors(source), more * width, more * height, "bicubic")

    def _padded(self, source: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A side that is shorter than a tile, mirrored to a multiple of what the U-Net halves; longer ones as is."""
        more = [(0, -side % self._multiple if side < self.tile else 0) for side in source.shape[:2]]
        return np.pad(source, (*more, (0, 0)), mode="symmetric")


def decoded(
    decode: Callable[[Tensor], Tensor], latents: Tensor, tiling: Tiling, beat: Heartbeat = no_heartbeat
) -> NDArray[np.uint8]:
    """The picture of latents (C, h, w), decoded tile by tile and joined: uint8 (FACTOR h, FACTOR w, 3).

    `beat` is called after each tile. Memory: the picture, and a row of tiles in float32."""
    rows, columns = tiling.weights(FACTOR)
    picture = np.empty((FACTOR * tiling.height, FACTOR * tiling.width, 3), np.uint8)
    deep, across = FACTOR * tiling.tile_height, FACTOR * tiling.tile_width
    band = torch.zeros(3, deep, FACTOR * tiling.width)
    for row, top in enumerate(tiling.tops):
        for column, left in enumerate(tiling.lefts):
            pixels = decode(tiling.cut(latents, row * len(tiling.lefts) + column)[None])[0].cpu()
            beside = band[:, :, FACTOR * left : FACTOR * left + across]
            beside.addcmul_(rows[row][:, None] * columns[column], pixels)
            beat()
        final = FACTOR * (tiling.tops[row + 1] - top) if row + 1 < len(tiling.tops) else deep
        picture[FACTOR * top : FACTOR * top + final] = levels_of(band[:, :final])
        band = torch.cat([band[:, final:], torch.zeros(3, final, band.shape[2])], dim=1)
    return picture


def _colors(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of what a row holds."""
    return pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
