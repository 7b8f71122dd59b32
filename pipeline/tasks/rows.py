"""Rows on their way through a task: as the manifest has them, and prepared for denoising."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.adapters import AdapterWeight
from pipeline.images.masks import CropRegion


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """A row of the manifest with its images decoded; None where the row leaves a parameter open."""

    seed: int
    id: str = ""
    prompt: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    guidance_rescale: float | None = None
    sampler: str | None = None
    eta: float | None = None
    strength: float | None = None
    noise_level: int | None = None
    clip_skip: int | None = None
    loras: Any = None
    """As the column has it (`adapters.adapter_weights`)."""
    pixels: NDArray[np.uint8] | None = None  # (H, W, C)
    mask: NDArray[np.uint8] | None = None  # (H', W')


@dataclass(frozen=True, kw_only=True, slots=True)
class RowParameters:
    """Every parameter in force for a row, under the names of the provenance; None where one does not apply."""

    prompt: str
    negative_prompt: str | None
    """None where none is given and the checkpoint takes zeros for it."""
    seed: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    sampler: str
    eta: float
    strength: float | None = None
    image_guidance_scale: float | None = None
    noise_level: int | None = None
    clip_skip: int | None = None
    loras: tuple[AdapterWeight, ...] = ()
    upscale_factor: int | None = None
    tile_size: int | None = None
    tile_overlap: int | None = None
    colors_corrected: bool | None = None
    prompt_syntax: str | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    mask_invert: bool | None = None
    mask_dilate: int | None = None
    mask_feather: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedRow:
    """A row that is ready to be denoised."""

    parameters: RowParameters
    pixels: NDArray[np.uint8] | None = None  # (H, W, C)
    opacity: NDArray[np.float32] | None = None  # (H, W) in [0, 1]: the share of the new image in each pixel
    region: CropRegion | None = None
    """The part of the image that inpainting works on; None where the mask is empty."""

    def source(self) -> NDArray[np.uint8]:
        """Return the row's image (H, W, C); ValueError if it has none."""
        if self.pixels is None:
            raise ValueError("it has no image")
        return self.pixels
