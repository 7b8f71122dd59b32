"""A latent diffusion model on one device."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.models.autoencoder import AutoencoderKL, VQConfig, VQModel
from pipeline.models.text import TextEncoder
from pipeline.models.unet import UNet


@dataclass(frozen=True, slots=True)
class Stack:
    """A latent diffusion model on one device: all that a task needs of a checkpoint."""

    name: str
    weights_sha256: str
    unet: UNet
    autoencoder: AutoencoderKL | VQModel
    text: TextEncoder | None
    """None where the U-Net takes no text."""
    schedule_config: dict[str, Any]
    low_res_schedule_config: dict[str, Any] | None
    """By which noise is put on the picture that an upscaler is shown; None where there is none."""
    max_noise_level: int
    """Of that noise."""
    generation_config: dict[str, Any]
    """What the checkpoint says of its use: num_inference_steps, guidance_scale; empty where it says nothing."""
    device: torch.device
    dtype: torch.dtype

    @property
    def downsample_factor(self) -> int:
        """Pixels of a latent's side: what a picture's width and height must be multiples of."""
        return self.autoencoder.config.downsample_factor

    @property
    def latent_channels(self) -> int:
        config = self.autoencoder.config
        return config.embed_dim if isinstance(config, VQConfig) else config.latent_channels

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height in pixels of the pictures that the model was trained on."""
        side = self.unet.config.sample_size * self.downsample_factor
        return side, side

    @torch.inference_mode()
    def denoise(
        self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """The U-Net's output (B, C, h, w) for latents, timesteps (B,) and text (B, T, D)."""
        latents = latents.to(memory_format=torch.channels_last)
        return self.unet(latents, timesteps, encoder_hidden_states, class_labels)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents of pixels (B, 3, H, W) in [-1, 1]; float32.

        Drawn with `noise` from the encoder's Gaussian; a codebook's encoder has none."""
        dtype = next(self.autoencoder.parameters()).dtype
        pixels = pixels.to(self.device, dtype)
        if isinstance(self.autoencoder, VQModel):
            return self.autoencoder.encode(pixels).float()
        return self.autoencoder.encode(pixels, noise.to(self.device, dtype)).float()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of scaled latents; float32."""
        dtype = next(self.autoencoder.parameters()).dtype
        latents = latents.to(self.device, dtype, memory_format=torch.channels_last)
        return self.autoencoder.decode(latents).float()
