"""Inpainting: the white part of a row's mask made anew, every other pixel as it came."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import RowDefaults, Task
from pipeline.diffusion.engine import DenoisingRequest, KnownLatents
from pipeline.images.masks import CropRegion, binarize_mask, blend, compute_opacity, find_crop_region
from pipeline.images.resize import to_float
from pipeline.models.stack import Stack
from pipeline.tasks.generate import Generate, Heartbeat, no_heartbeat


@dataclass(frozen=True, slots=True)
class _Hole:
    """What of a row's picture is painted, and where the network works on it."""

    part: NDArray[np.float32]  # (H, W) in [0, 1]: how much of each pixel is new
    area: CropRegion | None
    """None where nothing is painted."""


class Inpaint(Generate):
    """The inpainting task on one stack, in the way that its U-Net is made for.

    With 2 C + 1 input channels the U-Net is shown the mask and the masked picture's latents (Rombach et al. 2022,
    section 4.5); with C, what is known is put back at its noise level after each evaluation (Lugmayr et al. 2022).

    A row is as Generate's, with `pixels` and `mask`, uint8 (H', W') of any size; `prepare` comes first. Noise is drawn
    in the order of diffusers' pipeline: the picture's encoder's (where it is encoded), the first latents', the masked
    picture's encoder's, then one a step where the sampler needs it.
    """

    TASK: ClassVar[Task] = "inpaint"

    def __init__(self, stack: Stack, defaults: RowDefaults) -> None:
        super().__init__(stack, defaults)
        self._shown = self.form == "inpainting"

    def prepare(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with its `hole` in place of its mask; a ValueError if it has none."""
        if row.get("mask") is None:
            raise ValueError("it has no mask, which inpaint needs")
        height, width = row["pixels"].shape[:2]
        chosen = binarize_mask(row["mask"], width, height, inverted=self.defaults.mask_invert)
        part = compute_opacity(chosen, dilate=self.defaults.mask_dilate, feather=self.defaults.mask_feather)
        painted = part > 0
        area = (
            find_crop_region(painted, self.stack.native_size, self.stack.downsample_factor) if painted.any() else None
        )
        return {**row, "mask": None, "hole": _Hole(part, area)}

    def parameters(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """As Generate's; `num_inference_steps` and `strength` are 0 where the mask is empty and nothing was made."""
        height, width = row["pixels"].shape[:2]
        chosen = super().parameters({**row, "strength": self._strength(row)})
        chosen |= {"width": width, "height": height}
        chosen |= {name: getattr(self.defaults, name) for name in ("mask_invert", "mask_dilate", "mask_feather")}
        if row["hole"].area is None:
            chosen |= {"num_inference_steps": 0, "strength": 0.0}
        return chosen

    def request(self, key: Any, row: Mapping[str, Any]) -> DenoisingRequest | NDArray[np.uint8]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the lane engine runs for the row; the picture itself where the mask is empty."""
        chosen = self.parameters(row)
        hole: _Hole = row["hole"]
        if hole.area is None:
            return row["pixels"]
        source = torch.from_numpy(to_float(hole.area.to_canvas(row["pixels"])))[None]
        mask = torch.from_numpy(hole.area.mask_to_canvas(hole.part > 0).astype(np.float32))[None, None]
        started = None if chosen["strength"] >= 1 else chosen["strength"]
        request = self._without_latents(key, chosen, started)
        return self._with_latents(request, source, mask, encodes=started is not None or not self._shown)

    def pixels(self, latents: Tensor, row: Mapping[str, Any], beat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
        """The row's picture with the painted part put in: uint8 (H, W, 3)."""
        hole, picture = row["hole"], row["pixels"].copy()
        made = hole.area.from_canvas(super().pixels(latents, row, beat))
        hole.area.crop(picture)[:] = blend(hole.area.crop(picture), made, hole.area.crop(hole.part))
        return picture

    def _with_latents(
        self, request: DenoisingRequest, source: Tensor, mask: Tensor, *, encodes: bool
    ) -> DenoisingRequest:
        """The request with its first latents and what else it is shown of pixels and mask (1, 1 or 3, H, W)."""
        factor, generator, table = self.stack.downsample_factor, request.generator, request.table
        size = (source.shape[2] // factor, source.shape[3] // factor)
        shape = (1, self.stack.latent_channels, *size)
        encoded = self._encoded(source, shape, generator) if encodes else torch.zeros(shape)
        noise = torch.randn(shape, generator=generator)
        latents = (table.start_signal * encoded + table.start_noise * noise)[0]
        if self._shown:
            masked = self._encoded(source * (mask < 0.5), shape, generator)
            small = F.interpolate(mask, size)  # the nearest pixel's: what such U-Nets are trained on
            return replace(request, latents=latents, extra_channels=torch.cat([small, masked], dim=1)[0])
        torch.randn(shape, generator=generator)  # diffusers encodes the masked picture here too, and forgets it
        known = KnownLatents(latents=encoded[0], noise=noise[0], mask=F.max_pool2d(mask, factor)[0])
        return replace(request, latents=latents, known=known)

    def _encoded(self, pixels: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return self.stack.encode(pixels, torch.randn(shape, generator=generator)).cpu()

    def _strength(self, row: Mapping[str, Any]) -> float:
        """1, where neither row nor run says: the hole's old contents are not wanted."""
        given = row.get("strength") if row.get("strength") is not None else self.defaults.strength
        return 1.0 if given is None else given
