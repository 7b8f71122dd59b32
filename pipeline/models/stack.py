"""The loaded components of a checkpoint."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from pipeline.models.autoencoder import AutoencoderKL, VQConfig, VQModel
from pipeline.models.autoencoder_asymmetric import AsymmetricAutoencoderKL
from pipeline.models.autoencoder_tiny import AutoencoderTiny
from pipeline.models.layers import timestep_embedding
from pipeline.models.lora import NO_ADAPTERS, Adapters
from pipeline.models.prompts import PromptEncoder
from pipeline.models.unet import UNet

SIZE_NUMBERS: Final = 6
"""SDXL: original height and width, top and left of the crop, target height and width."""
REFINER_NUMBERS: Final = 5
"""SDXL's refiner: original height and width, top and left of the crop, aesthetic score."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownPixels:
    """The image that inpainting changes a part of."""

    pixels: Tensor  # (B, 3, H, W) in [-1, 1]
    mask: Tensor  # (B, 1, H, W): 1 where the image is painted, 0 where it is known


@dataclass(frozen=True, slots=True)
class Stack:
    """A latent diffusion model on one device: all that a task needs from a checkpoint."""

    name: str
    weights_sha256: str
    """The sha256 of all files in use, those of an autoencoder that replaces the checkpoint's own included."""
    unet: UNet
    autoencoder: AutoencoderKL | AutoencoderTiny | VQModel
    text: PromptEncoder | None
    """None if the U-Net is unconditional."""
    schedule_config: dict[str, Any]
    low_res_schedule_config: dict[str, Any] | None
    """The schedule of the noise that an upscaler adds to its source; None if the model adds no noise."""
    max_noise_level: int
    """The highest level of that noise."""
    generation_config: dict[str, Any]
    """The checkpoint's own defaults, such as num_inference_steps and guidance_scale; may be empty."""
    size_numbers: int
    """The numbers that the U-Net takes beside the pooled text: 0, SIZE_NUMBERS, or REFINER_NUMBERS."""
    device: torch.device
    dtype: torch.dtype
    vae_sha256: str | None = None
    """The sha256 of the autoencoder that replaces the checkpoint's own, if one does."""
    adapters: Adapters = field(default=NO_ADAPTERS)
    """The LoRAs of the run."""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that a LoRA can change, by the names of their components."""
        networks: dict[str, nn.Module] = {"unet": self.unet}
        for encoder in () if self.text is None else self.text.encoders:
            projects = isinstance(encoder.model, CLIPTextModelWithProjection)
            networks["text_encoder_2" if projects else "text_encoder"] = encoder.model
        return networks

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent along one side; widths and heights of images are multiples of it."""
        return self.autoencoder.config.downsample_factor

    @property
    def latent_channels(self) -> int:
        config = self.autoencoder.config
        return config.embed_dim if isinstance(config, VQConfig) else config.latent_channels

    @property
    def edits_images(self) -> bool:
        """Whether the U-Net gets an image's latents beside its own (InstructPix2Pix, Brooks et al. 2023)."""
        return self.unet.config.in_channels == 2 * self.latent_channels and self.text is not None

    @property
    def guidance_width(self) -> int | None:
        """The width of the guidance scale's embedding, for a U-Net that takes the scale as an input; else None."""
        return self.unet.config.time_cond_proj_dim

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height in pixels of the images that the model was trained on."""
        height, width = self.unet.config.latent_size
        return width * self.downsample_factor, height * self.downsample_factor

    def added(self, pooled: Tensor, numbers: Sequence[float]) -> Tensor:
        """Return the vector (V,) that SDXL adds to the time embedding: the pooled text and the numbers' sinusoids.

        (Podell et al. 2023, section 2.2)"""
        config = self.unet.config
        assert config.addition_time_embed_dim is not None
        sinusoids = timestep_embedding(
            torch.tensor(numbers, dtype=torch.float32, device=pooled.device),
            config.addition_time_embed_dim,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        return torch.cat([pooled.float(), sinusoids.flatten()])

    @torch.inference_mode()
    def denoise(self, latents: Tensor, timesteps: Tensor, inputs: Mapping[str, Tensor], merged: Hashable) -> Tensor:
        """Return the U-Net's output (B, C, h, w) for latents, timesteps (B,) and its other arguments by name.

        `inputs` may have the LoRAs of each lane; `merged` are those in the U-Net's weights (`Adapters`)."""
        with self.adapters.on_unet(inputs, merged) as arguments:
            return self.unet(latents.to(memory_format=torch.channels_last), timesteps, **arguments)

    @property
    def encoder_samples(self) -> bool:
        """Whether the autoencoder's encoder gives a Gaussian, from which latents are drawn with noise."""
        return isinstance(self.autoencoder, AutoencoderKL)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """Return scaled latents of pixels (B, 3, H, W) in [-1, 1]; float32.

        `noise` is for an encoder that samples; None gives the Gaussian's mean."""
        dtype = next(self.autoencoder.parameters()).dtype
        pixels = pixels.to(self.device, dtype)
        if not isinstance(self.autoencoder, AutoencoderKL):
            return self.autoencoder.encode(pixels).float()
        return self.autoencoder.encode(pixels, None if noise is None else noise.to(self.device, dtype)).float()

    @torch.inference_mode()
    def encode_unscaled(self, pixels: Tensor) -> Tensor:
        """Return unscaled latents of pixels (B, 3, H, W) in [-1, 1], the mean where the encoder samples; float32."""
        pixels = pixels.to(self.device, next(self.autoencoder.parameters()).dtype)
        if isinstance(self.autoencoder, VQModel):
            return self.autoencoder.encode(pixels).float()
        return self.autoencoder.encode_unscaled(pixels).float()

    @torch.inference_mode()
    def decode(self, latents: Tensor, known: KnownPixels | None = None) -> Tensor:
        """Return pixels (B, 3, H, W), approximately in [-1, 1], of scaled latents; float32.

        An asymmetric autoencoder decodes an inpainted image beside its known pixels. SDXL's have none, as in
        diffusers."""
        dtype = next(self.autoencoder.parameters()).dtype
        latents = latents.to(self.device, dtype, memory_format=torch.channels_last)
        if known is None or self.size_numbers or not isinstance(self.autoencoder, AsymmetricAutoencoderKL):
            return self.autoencoder.decode(latents).float()
        pixels, mask = known.pixels.to(self.device, dtype), known.mask.to(self.device, dtype)
        return self.autoencoder.decode_masked(latents, pixels, mask).float()
