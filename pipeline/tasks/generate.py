"""Generation: how a row becomes a denoising request, and its latents pixels. Text to image and image to image."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from pipeline.config import RowDefaults, Task
from pipeline.diffusion.engine import DenoisingRequest
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.samplers import SamplerTable, sampler_table
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.images.resize import to_float
from pipeline.models.configs import checked_form
from pipeline.models.stack import Stack

Heartbeat = Callable[[], None]
"""What a task calls while it works on what takes long, so that nobody takes it for one that hangs."""

_KEPT_PROMPTS: Final = 256


def no_heartbeat() -> None:
    """The beat that nobody listens to."""


class Generate:
    """The text-to-image and image-to-image task on one stack.

    A row is a mapping with the manifest's columns (`prompt` and `seed` set, others may be null) and, for image to
    image, `pixels`: uint8 (H, W, 3). Noise is drawn in the order of diffusers' pipelines for a batch of one:
    the encoder's (image to image), the first latents', then one a step where the sampler needs it.
    """

    TASK: ClassVar[Task] = "generate"

    def __init__(self, stack: Stack, defaults: RowDefaults) -> None:
        channels = stack.unet.config.in_channels, stack.latent_channels
        self.form = checked_form(stack.name, self.TASK, *channels)
        self.stack = stack
        self.defaults = defaults
        self.fallbacks = {"num_inference_steps": 50, "guidance_scale": 7.5, "strength": 0.8}
        """What diffusers' pipelines of this task take where neither row, run nor checkpoint says."""
        self.schedule = NoiseScheduleConfig.from_dict(stack.schedule_config)
        self._embeds = functools.lru_cache(maxsize=_KEPT_PROMPTS)(self._encode_prompt)
        self._table = functools.lru_cache(maxsize=_KEPT_PROMPTS)(self._sampler_table)

    def prepare(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row as the other methods take it: with what is worked out once for it."""
        return row

    def parameters(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter in force for the row, under the manifest's names; null where it does not apply."""
        pixels, advice = row.get("pixels"), self.stack.generation_config
        width, height = self.stack.native_size if pixels is None else self._nearest_size(pixels)
        return {
            "prompt": row.get("prompt") or "",
            "negative_prompt": _first(row.get("negative_prompt"), self.defaults.negative_prompt),
            "seed": int(row["seed"]),
            "width": int(_first(row.get("width"), self.defaults.width, width)),
            "height": int(_first(row.get("height"), self.defaults.height, height)),
            "num_inference_steps": int(self._setting(row, "num_inference_steps", advice)),
            "guidance_scale": float(self._setting(row, "guidance_scale", advice)),
            "guidance_rescale": float(self._setting(row, "guidance_rescale", advice, 0.0)),
            "sampler": self._setting(row, "sampler", advice, self.schedule.sampler),
            "eta": float(self._setting(row, "eta", advice, 0.0)),
            "strength": None if pixels is None else float(self._setting(row, "strength", advice)),
            "noise_level": None,
        }

    def request(self, key: Any, row: Mapping[str, Any]) -> DenoisingRequest:
        """What the lane engine runs for the row; a ValueError says what of the row can't be."""
        chosen = self.parameters(row)
        factor = self.stack.downsample_factor
        for side in ("width", "height"):
            if chosen[side] < factor or chosen[side] % factor:
                raise ValueError(f"{side} is {chosen[side]}; give a multiple of {factor}")
        request = self._without_latents(key, chosen, chosen["strength"])
        latents = self._first_latents(request.table, chosen, row.get("pixels"), request.generator)
        return replace(request, latents=latents)

    def _without_latents(self, key: Any, chosen: Mapping[str, Any], strength: float | None) -> DenoisingRequest:
        """The request of a row's parameters, from which only its latents are missing; no noise has been drawn."""
        guided = chosen["guidance_scale"] != 1.0
        chunks = self._chunks(chosen["prompt"], chosen["negative_prompt"] if guided else "")
        return DenoisingRequest(
            key=key,
            table=self._table(chosen["sampler"], chosen["num_inference_steps"], chosen["eta"], strength),
            latents=torch.empty(0),
            generator=torch.Generator("cpu").manual_seed(chosen["seed"]),
            prompt_embeds=self._embeds(chosen["prompt"], chunks),
            negative_prompt_embeds=self._embeds(chosen["negative_prompt"], chunks) if guided else None,
            guidance=Guidance(
                scale=chosen["guidance_scale"],
                rescale=chosen["guidance_rescale"],
                interval=self.defaults.guidance_interval,
            ),
        )

    def pixels(self, latents: Tensor, row: Mapping[str, Any], beat: Heartbeat = no_heartbeat) -> np.ndarray:
        """The picture of the row's latents (C, h, w): uint8 (H, W, 3). Decoded alone: it depends on the row alone.

        `beat` is called after each part of the work."""
        decoded = levels_of(self.stack.decode(latents[None])[0])
        beat()
        return decoded

    def _first_latents(
        self, table: SamplerTable, chosen: Mapping[str, Any], pixels: np.ndarray | None, generator: torch.Generator
    ) -> Tensor:
        factor = self.stack.downsample_factor
        shape = (1, self.stack.latent_channels, chosen["height"] // factor, chosen["width"] // factor)
        if pixels is None:
            return table.start_noise * torch.randn(shape, generator=generator)[0]
        from_uint8 = torch.from_numpy(to_float(pixels))[None]
        if from_uint8.shape[-2:] != (chosen["height"], chosen["width"]):
            size = (chosen["height"], chosen["width"])
            resized = torch.nn.functional.interpolate(from_uint8, size, mode="bicubic", antialias=True)
            from_uint8 = resized.clamp(-1, 1)
        encoded = self.stack.encode(from_uint8, torch.randn(shape, generator=generator)).cpu()
        noise = torch.randn(shape, generator=generator)
        return (table.start_signal * encoded + table.start_noise * noise)[0]

    def _nearest_size(self, pixels: np.ndarray) -> tuple[int, int]:
        factor = self.stack.downsample_factor
        height, width = pixels.shape[:2]
        return max(width // factor, 1) * factor, max(height // factor, 1) * factor

    def _chunks(self, *prompts: str) -> int:
        return max(self.stack.text.chunks(prompt) for prompt in prompts) if self.stack.text is not None else 0

    def _encode_prompt(self, prompt: str, chunks: int) -> Tensor:
        """(T, D); nothing for a U-Net that takes no text."""
        return self.stack.text.encode([prompt], chunks=chunks)[0] if self.stack.text is not None else torch.zeros(0, 0)

    def _sampler_table(self, sampler: str, steps: int, eta: float, strength: float | None) -> SamplerTable:
        return sampler_table(self.schedule, sampler, steps, eta=eta, strength=strength)

    def _setting(self, row: Mapping[str, Any], name: str, advice: Mapping[str, Any], fallback: Any = None) -> Any:
        given = (row.get(name), getattr(self.defaults, name), advice.get(name))
        return _first(*given, self.fallbacks.get(name, fallback))


def levels_of(pixels: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1], clipped there, to uint8 (H, W, 3)."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


def _first(*values: Any) -> Any:
    """The first value that is not null."""
    return next(value for value in values if value is not None)
