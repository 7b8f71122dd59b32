"""The KL-regularized autoencoder between pixels and latents (Rombach et al. 2022, section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.configs import Config
from pipeline.models.layers import Downsample, PixelAttention, ResnetBlock, Upsample

EPS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig(Config):
    """The options of an `AutoencoderKL`'s config.json."""

    sample_size: int | tuple[int, int] | None = 512
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "shift_factor": (None, 0),
    }
    BLOCKS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    }

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    def problem(self) -> str | None:
        """Return the first contradiction among the options, or None."""
        mean, deviation = self.latents_mean, self.latents_std
        if (mean is None) != (deviation is None):
            return "latents_mean and latents_std need each other"
        for name, values in (("latents_mean", mean), ("latents_std", deviation)):
            if values is not None and len(values) != self.latent_channels:
                return f"{name} has {len(values)} entries, latent_channels is {self.latent_channels}"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class VQConfig(AutoencoderConfig):
    """The options of a `VQModel`'s config.json; its latents are never scaled, whatever `scaling_factor` is."""

    latent_channels: int = 3
    force_upcast: bool = False
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "norm_type": ("group",),
        "lookup_from_codebook": (False,),
        "latents_mean": (None,),
        "latents_std": (None,),
    }

    @property
    def embed_dim(self) -> int:
        return self.vq_embed_dim or self.latent_channels


@dataclass(frozen=True, slots=True)
class DiagonalGaussian:
    """The encoder's output: mean and log-variance of unscaled latents, (B, C, h, w) each."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return the reparameterized sample (Kingma and Welling 2014) for standard normal `noise`."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Return the KL divergence from the standard normal in nats, (B,)."""
        terms = self.mean.square() + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)


class MidBlock(nn.Module):
    """Two residual blocks, with attention between them if `attends` is true."""

    def __init__(self, channels: int, groups: int, *, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, None, groups, EPS) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(channels, 1, groups, EPS)] if attends else [])

    def forward(self, features: Tensor) -> Tensor:
        features = self.resnets[0](features)
        for attention in self.attentions:
            features = attention(features)
        return self.resnets[1](features)


class Level(nn.Module):
    """One resolution of the encoder or decoder."""

    def __init__(self, channels: int, out_channels: int, layers: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(channels if i == 0 else out_channels, out_channels, None, groups, EPS) for i in range(layers)]
        )
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, features: Tensor) -> Tensor:
        for resnet in self.resnets:
            features = resnet(features)
        if self.downsamplers is not None:
            features = self.downsamplers[0](features)
        if self.upsamplers is not None:
            features = self.upsamplers[0](features, (2 * features.shape[-2], 2 * features.shape[-1]))
        return features


class Encoder(nn.Module):
    """Maps pixels (B, 3, H, W) to moments (B, 2 C, H/f, W/f), or to latents (B, C, H/f, W/f) without a Gaussian."""

    def __init__(self, config: AutoencoderConfig, out_channels: int) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            level = Level(widths[max(index - 1, 0)], width, config.layers_per_block, groups)
            if index + 1 < len(widths):
                level.downsamplers = nn.ModuleList([Downsample(width, asymmetric=True)])
            self.down_blocks.append(level)
        self.mid_block = MidBlock(widths[-1], groups, attends=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.conv_in(pixels)
        for level in self.down_blocks:
            features = level(features)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(features))))


class Decoder(nn.Module):
    """Maps latents (B, C, h, w) to pixels (B, 3, h f, w f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, attends=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            level = Level(widths[max(index - 1, 0)], width, config.layers_per_block + 1, groups)
            if index + 1 < len(widths):
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        features = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            features = level(features)
        return self.conv_out(F.silu(self.conv_norm_out(features)))


class AutoencoderKL(nn.Module):
    """The KL autoencoder; `encode` and `decode` apply the scaling factor of the latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config, 2 * channels)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()

    def posterior(self, pixels: Tensor) -> DiagonalGaussian:
        """Return the Gaussian over unscaled latents (B, C, H/f, W/f) of pixels (B, 3, H, W) in [-1, 1]."""
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return scaled latents (B, C, H/f, W/f): the posterior's sample for `noise`, or its mean."""
        posterior = self.posterior(pixels)
        return self.scaled(posterior.mean if noise is None else posterior.sample(noise))

    def encode_unscaled(self, pixels: Tensor) -> Tensor:
        """Return the posterior's mean (B, C, H/f, W/f), not scaled."""
        return self.posterior(pixels).mean

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, h f, w f), approximately in [-1, 1], of scaled latents (B, C, h, w)."""
        return self.decode_unscaled(self.unscaled(latents))

    def decode_unscaled(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def scaled(self, latents: Tensor) -> Tensor:
        """Return the latents that the U-Net works on; with `latents_mean` and `latents_std`, they are normalized."""
        factor = self.config.scaling_factor
        if self.config.latents_mean is None or self.config.latents_std is None:
            return latents * factor
        mean, deviation = (
            _per_channel(self.config.latents_mean, latents),
            _per_channel(self.config.latents_std, latents),
        )
        return (latents - mean) * factor / deviation

    def unscaled(self, latents: Tensor) -> Tensor:
        """Return the latents that the decoder works on."""
        factor = self.config.scaling_factor
        if self.config.latents_mean is None or self.config.latents_std is None:
            return latents / factor
        mean, deviation = (
            _per_channel(self.config.latents_mean, latents),
            _per_channel(self.config.latents_std, latents),
        )
        return latents * deviation / factor + mean


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return one value per channel as (1, C, 1, 1)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[None, :, None, None]


class Codebook(nn.Module):
    """The codebook of a VQ autoencoder (van den Oord et al. 2017, eq. 1 and 2)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)

    def forward(self, latents: Tensor) -> Tensor:
        """Return latents (B, D, h, w) with each position replaced by its nearest vector."""
        return self.vectors(self.nearest(latents))

    def vectors(self, indices: Tensor) -> Tensor:
        """Return the vectors (B, D, h, w) of indices (B, h, w)."""
        return self.embedding(indices).permute(0, 3, 1, 2).contiguous()

    def nearest(self, latents: Tensor) -> Tensor:
        """Return the index of each position's nearest vector, (B, h, w); distances are computed in float32."""
        positions = latents.permute(0, 2, 3, 1)
        return (
            torch.cdist(positions.flatten(0, 2).float(), self.embedding.weight.float())
            .argmin(dim=1)
            .view(positions.shape[:3])
        )


class VQModel(nn.Module):
    """The VQ autoencoder; `encode` returns unquantized latents, `decode` quantizes them first."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, config.latent_channels)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.quantize = Codebook(config.num_vq_embeddings, config.embed_dim)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents (B, D, H/f, W/f) of pixels (B, 3, H, W) in [-1, 1], before quantization."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, h f, w f), approximately in [-1, 1], of latents (B, D, h, w)."""
        return self.decode_codes(self.quantize(latents))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, h f, w f), approximately in [-1, 1], of codebook vectors (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(codes))
