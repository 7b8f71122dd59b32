"""The loaded components of a checkpoint."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.models.autoencoder import AutoencoderKL, VQConfig, VQModel
from pipeline.models.text import TextEncoder
from pipeline.models.unet import UNet


@dataclass(frozen=True, slots=True)
class Stack:
    """A latent diffusion model on one device: all that a task needs from a checkpoint."""

    name: str
    weights_sha256: str
    unet: UNet
    autoencoder: AutoencoderKL | VQModel
    text: TextEncoder | None
    """None if the U-Net is unconditional."""
    schedule_config: dict[str, Any]
    low_res_schedule_config: dict[str, Any] | None
    """The schedule of the noise that an upscaler adds to its source; None if the model adds no noise."""
    max_noise_level: int
    """The highest level of that noise."""
    generation_config: dict[str, Any]
    """The checkpoint's own defaults, such as num_inference_steps and guidance_scale; may be empty."""
    device: torch.device
    dtype: torch.dtype

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent along one side; widths and heights of images are multiples of it."""
        return self.autoencoder.config.downsample_factor

    @property
    def latent_channels(self) -> int:
        config = self.autoencoder.config
        return config.embed_dim if isinstance(config, VQConfig) else config.latent_channels

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height in pixels of the images that the model was trained on."""
        height, width = self.unet.config.latent_size
        return width * self.downsample_factor, height * self.downsample_factor

    @torch.inference_mode()
    def denoise(self, latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        """Return the U-Net's output (B, C, h, w) for latents, timesteps (B,) and its other arguments by name."""
        return self.unet(latents.to(memory_format=torch.channels_last), timesteps, **inputs)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return scaled latents of pixels (B, 3, H, W) in [-1, 1]; float32.

        They are sampled with `noise` from the KL encoder's Gaussian; a VQ encoder ignores `noise`."""
        dtype = next(self.autoencoder.parameters()).dtype
        pixels = pixels.to(self.device, dtype)
        if isinstance(self.autoencoder, VQModel):
            return self.autoencoder.encode(pixels).float()
        return self.autoencoder.encode(pixels, noise.to(self.device, dtype)).float()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), approximately in [-1, 1], of scaled latents; float32."""
        dtype = next(self.autoencoder.parameters()).dtype
        latents = latents.to(self.device, dtype, memory_format=torch.channels_last)
        return self.autoencoder.decode(latents).float()
