"""The conditional U-Net that denoises latents (Rombach et al. 2022, section 3.3), under diffusers' config keys."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.layers import (
    Attention,
    Downsample,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    timestep_embedding,
)
from pipeline.models.unet_config import UNetConfig


class Level(nn.Module):
    """One resolution of the encoder or decoder half: residual blocks, with attention after each if `attends`."""

    def __init__(
        self, config: UNetConfig, index: int, widths: list[tuple[int, int]], *, attends: bool, embedding: int
    ) -> None:
        super().__init__()
        channels = widths[0][1]
        self.resnets = nn.ModuleList(
            [ResnetBlock(into, out, embedding, config.norm_num_groups, config.norm_eps) for into, out in widths]
        )
        self.attentions = nn.ModuleList(
            [config.attention(index, channels) for _ in widths] if attends else [nn.Identity() for _ in widths]
        )
        self.attends = attends
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def layers(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Yield each residual block with the attention that follows it, or None."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            yield resnet, attention if self.attends else None


class DownLevel(Level):
    """A level of the encoder half; appends its features to `skips` for the decoder half."""

    def forward(self, features: Tensor, skips: list[Tensor], embedding: Tensor, states: Tensor) -> Tensor:
        for resnet, attention in self.layers():
            features = resnet(features, embedding)
            features = features if attention is None else attention(features, states)
            skips.append(features)
        if self.downsamplers is not None:
            features = self.downsamplers[0](features)
            skips.append(features)
        return features


class UpLevel(Level):
    """A level of the decoder half; pops its skip features, and upsamples to the size of the next ones."""

    def forward(self, features: Tensor, skips: list[Tensor], embedding: Tensor, states: Tensor) -> Tensor:
        for resnet, attention in self.layers():
            features = resnet(torch.cat([features, skips.pop()], dim=1), embedding)
            features = features if attention is None else attention(features, states)
        if self.upsamplers is not None:
            height, width = skips[-1].shape[-2:]
            features = self.upsamplers[0](features, (height, width))
        return features


class MidBlock(nn.Module):
    """Two residual blocks with attention between them, at the lowest resolution."""

    def __init__(self, config: UNetConfig, embedding: int) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = nn.ModuleList(
            [ResnetBlock(channels, channels, embedding, config.norm_num_groups, config.norm_eps) for _ in range(2)]
        )
        self.attentions = nn.ModuleList([config.attention(-1, channels, only_cross=False)])

    def forward(self, features: Tensor, embedding: Tensor, states: Tensor) -> Tensor:
        features = self.attentions[0](self.resnets[0](features, embedding), states)
        return self.resnets[1](features, embedding)


class UNet(nn.Module):
    """Predicts noise, velocity or clean latents from noisy latents (B, C, h, w), timesteps (B,) and text (B, T, D)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        embedding = 4 * channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], embedding)
        self.class_embedding = nn.Embedding(config.num_class_embeds, embedding) if config.num_class_embeds else None
        self.down_blocks = nn.ModuleList(self._down_levels(embedding))
        self.mid_block = MidBlock(config, embedding)
        self.up_blocks = nn.ModuleList(self._up_levels(embedding))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, Attention):
                module.upcast = config.upcast_attention

    def _down_levels(self, embedding: int) -> list[DownLevel]:
        config, levels = self.config, []
        previous = config.block_out_channels[0]
        for index, channels in enumerate(config.block_out_channels):
            layers = config.per_level("layers_per_block")[index]
            widths = [(previous if layer == 0 else channels, channels) for layer in range(layers)]
            attends = "Attn" in config.down_block_types[index]
            level = DownLevel(config, index, widths, attends=attends, embedding=embedding)
            if index + 1 < len(config.block_out_channels):
                level.downsamplers = nn.ModuleList([Downsample(channels, asymmetric=False)])
            levels.append(level)
            previous = channels
        return levels

    def _up_levels(self, embedding: int) -> list[UpLevel]:
        config, levels = self.config, []
        reverse = config.block_out_channels[::-1]
        previous = reverse[0]
        for step, channels in enumerate(reverse):
            index = len(reverse) - 1 - step
            below = reverse[min(step + 1, len(reverse) - 1)]
            layers = config.per_level("layers_per_block")[index] + 1
            skips = [below if layer == layers - 1 else channels for layer in range(layers)]
            widths = [((previous if layer == 0 else channels) + skips[layer], channels) for layer in range(layers)]
            attends = "Attn" in config.up_block_types[step]
            level = UpLevel(config, index, widths, attends=attends, embedding=embedding)
            if index > 0:
                level.upsamplers = nn.ModuleList([Upsample(channels)])
            levels.append(level)
            previous = channels
        return levels

    def forward(
        self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        embedding = self._embedding(latents, timesteps, class_labels)
        features = self.conv_in(latents)
        skips = [features]
        for level in self.down_blocks:
            features = level(features, skips, embedding, encoder_hidden_states)
        features = self.mid_block(features, embedding, encoder_hidden_states)
        for level in self.up_blocks:
            features = level(features, skips, embedding, encoder_hidden_states)
        return self.conv_out(F.silu(self.conv_norm_out(features)))

    def _embedding(self, latents: Tensor, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
        config = self.config
        sinusoids = timestep_embedding(
            timesteps,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        embedding = self.time_embedding(sinusoids.to(latents.dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this U-Net has class embeddings (num_class_embeds): class_labels must be given")
            embedding = embedding + self.class_embedding(class_labels)
        return embedding
