"""The autoencoder with a wider decoder that sees an inpainted image's known pixels (Zhu et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL, Decoder, Encoder
from pipeline.models.configs import Config

_LEVELS: Final = 4
"""The levels of the decoder, which diffusers' condition encoder is written for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AsymmetricConfig(Config):
    """The options of an `AsymmetricAutoencoderKL`'s config.json."""

    sample_size: int | tuple[int, int] | None = 32
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    down_block_out_channels: tuple[int, ...] = (64,)
    layers_per_down_block: int = 1
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    up_block_out_channels: tuple[int, ...] = (64,)
    layers_per_up_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {"act_fn": ("silu", "swish")}
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"block_out_channels", "force_upcast"})

    @property
    def encoder(self) -> AutoencoderConfig:
        """The config of a KL autoencoder with the same encoder."""
        return self._symmetric(self.down_block_out_channels, self.layers_per_down_block)

    @property
    def decoder(self) -> AutoencoderConfig:
        """The config of a KL autoencoder with the same decoder, but for its condition."""
        return self._symmetric(self.up_block_out_channels, self.layers_per_up_block)

    def _symmetric(self, widths: tuple[int, ...], layers: int) -> AutoencoderConfig:
        return AutoencoderConfig(
            sample_size=self.sample_size,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            latent_channels=self.latent_channels,
            block_out_channels=widths,
            layers_per_block=layers,
            down_block_types=self.down_block_types,
            up_block_types=self.up_block_types,
            norm_num_groups=self.norm_num_groups,
            scaling_factor=self.scaling_factor,
            force_upcast=False,
        )

    def problem(self) -> str | None:
        """Return the first contradiction among the options, or None."""
        for name, known, widths in (
            ("down", AutoencoderConfig.BLOCKS["down_block_types"], self.down_block_out_channels),
            ("up", AutoencoderConfig.BLOCKS["up_block_types"], self.up_block_out_channels),
        ):
            types = getattr(self, f"{name}_block_types")
            if unknown := [each for each in types if each not in known]:
                return f"{name}_block_types has the unknown class {unknown[0]}; known: {', '.join(known)}"
            if (len(types), len(widths)) != (_LEVELS, _LEVELS):
                return f"{name}_block_types and {name}_block_out_channels must have {_LEVELS} entries"
        expected = _condition_widths(self.up_block_out_channels)
        if expected != _feature_widths(self.up_block_out_channels):
            return f"up_block_out_channels is {list(self.up_block_out_channels)}; its condition encoder has {expected}"
        return None


def _feature_widths(widths: tuple[int, ...]) -> list[int]:
    """Return the widths of the decoder's features that a condition is mixed into, from its output to its input."""
    return [*widths, widths[-1]]


def _condition_widths(widths: tuple[int, ...]) -> list[int]:
    """Return the widths of the condition encoder's layers, from the image to the latents, as diffusers has them."""
    width, most = widths[0], widths[-1]
    layers: list[int] = []
    for _ in range(_LEVELS):
        layers.append(min(width, most))
        width = 2 * layers[-1]
    return [*layers, most]


class ConditionEncoder(nn.Module):
    """Maps the known pixels (B, 3, H, W) to features of the decoder's resolutions."""

    def __init__(self, channels: int, widths: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            kernel, stride = (3, 1) if index < 2 else (4, 2)
            layers.append(nn.Conv2d(channels, width, kernel, stride, padding=1))
            channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for layer in self.layers:
            features.append(layer(torch.relu(features[-1]) if features else pixels))
        return features


class ConditionedDecoder(Decoder):
    """The KL autoencoder's decoder, whose features are replaced by those of known pixels where they are known."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.condition_encoder = ConditionEncoder(config.out_channels, _condition_widths(config.block_out_channels))

    def decode_masked(self, latents: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) of latents (B, C, h, w); `mask` (B, 1, H, W) is 1 where `pixels` are unknown."""
        known = self.condition_encoder((1 - mask) * pixels)
        features = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            features = level(_mix(features, known.pop(), mask))
        features = _mix(features, known.pop(), mask)
        return self.conv_out(F.silu(self.conv_norm_out(features)))


def _mix(features: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    small = F.interpolate(mask, size=features.shape[-2:], mode="nearest")
    return features * small + known * (1 - small)


class AsymmetricAutoencoderKL(AutoencoderKL):
    """The KL autoencoder with a decoder of its own size. `config` is the decoder's."""

    def __init__(self, config: AsymmetricConfig) -> None:
        super().__init__(config.decoder)
        self.encoder = Encoder(config.encoder, 2 * config.latent_channels)
        self.decoder = ConditionedDecoder(config.decoder)

    def decode_masked(self, latents: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        """Return pixels (B, 3, h f, w f), approximately in [-1, 1], of scaled latents of an inpainted image.

        `pixels` (B, 3, h f, w f) in [-1, 1] are known where `mask` (B, 1, h f, w f) is 0."""
        assert isinstance(self.decoder, ConditionedDecoder)
        return self.decoder.decode_masked(self.post_quant_conv(self.unscaled(latents)), pixels, mask)
