"""The small distilled autoencoders TAESD and TAESDXL (diffusers' `AutoencoderTiny`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.models.configs import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderTinyConfig(Config):
    """The options of an `AutoencoderTiny`'s config.json."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
        "shift_factor": (None, 0),
    }
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"latent_magnitude", "latent_shift", "force_upcast"})

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.decoder_block_out_channels) - 1)

    @property
    def force_upcast(self) -> bool:
        return False

    def problem(self) -> str | None:
        """Return the first contradiction among the options, or None."""
        levels = [
            ("encoder_block_out_channels", self.encoder_block_out_channels),
            ("decoder_block_out_channels", self.decoder_block_out_channels),
            ("num_encoder_blocks", self.num_encoder_blocks),
            ("num_decoder_blocks", self.num_decoder_blocks),
        ]
        for name, values in levels:
            if len(values) != len(levels[0][1]):
                return f"{name} has {len(values)} entries, {levels[0][0]} {len(levels[0][1])}"
        for name, widths in levels[:2]:
            if len(set(widths)) != 1:
                return f"{name} is {list(widths)}; its entries must be equal"
        return None


class TinyBlock(nn.Module):
    """Three convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [nn.ReLU()] if index else []
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.conv = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.conv(features) + features)


class TinyEncoder(nn.Module):
    """Maps pixels (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f)."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        width = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = []
        for level, blocks in enumerate(config.num_encoder_blocks):
            if level == 0:
                layers.append(nn.Conv2d(config.in_channels, width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [TinyBlock(width) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.add(1).div(2))


class TinyDecoder(nn.Module):
    """Maps latents (B, C, h, w) to pixels (B, 3, h f, w f); latents are limited to (-3, 3) by a tanh."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        width, last = config.decoder_block_out_channels[0], len(config.num_decoder_blocks) - 1
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for level, blocks in enumerate(config.num_decoder_blocks):
            layers += [TinyBlock(width) for _ in range(blocks)]
            if level < last:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(torch.tanh(latents / 3) * 3).mul(2).sub(1)


class AutoencoderTiny(nn.Module):
    """TAESD; `encode` is deterministic, and the scaling factor is usually 1: the latents are those of the U-Net."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    def encode_unscaled(self, pixels: Tensor) -> Tensor:
        """Return unscaled latents (B, C, H/f, W/f) of pixels (B, 3, H, W) in [-1, 1]."""
        return self.encoder(pixels)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return scaled latents (B, C, H/f, W/f) of pixels (B, 3, H, W) in [-1, 1]."""
        return self.encoder(pixels) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, h f, w f), approximately in [-1, 1], of scaled latents (B, C, h, w)."""
        return self.decoder(latents / self.config.scaling_factor)
