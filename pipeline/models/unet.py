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
    """One resolution of the encoder or decoder half: residual blocks, with attention after each or after none."""

    def __init__(
        self, config: UNetConfig, index: int, widths: list[tuple[int, int]], *, layers: tuple[int, ...], embedding: int
    ) -> None:
        super().__init__()
        channels = widths[0][1]
        self.resnets = nn.ModuleList(
            [ResnetBlock(into, out, embedding, config.norm_num_groups, config.norm_eps) for into, out in widths]
        )
        self.attentions = nn.ModuleList([config.attention(index, channels, blocks) for blocks in layers])
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def layers(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Yield each residual block with the attention that follows it, or None."""
        attentions = self.attentions if len(self.attentions) else [None] * len(self.resnets)
        yield from zip(self.resnets, attentions, strict=True)


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
    """Two residual blocks with attention between them, at the lowest resolution; one block if it has no attention."""

    def __init__(self, config: UNetConfig, embedding: int) -> None:
        super().__init__()
        channels, layers = config.block_out_channels[-1], config.mid_layers
        blocks = 1 if layers is None else 2
        self.resnets = nn.ModuleList(
            [ResnetBlock(channels, channels, embedding, config.norm_num_groups, config.norm_eps) for _ in range(blocks)]
        )
        self.attentions = nn.ModuleList(
            [] if layers is None else [config.attention(-1, channels, layers, only_cross=False)]
        )

    def forward(self, features: Tensor, embedding: Tensor, states: Tensor) -> Tensor:
        features = self.resnets[0](features, embedding)
        if len(self.attentions):
            features = self.resnets[1](self.attentions[0](features, states), embedding)
        return features


class UNet(nn.Module):
    """Predicts noise, velocity or clean latents from noisy latents (B, C, h, w), timesteps (B,) and text (B, T, D)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        embedding = 4 * channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], embedding, config.time_cond_proj_dim)
        self.class_embedding = nn.Embedding(config.num_class_embeds, embedding) if config.num_class_embeds else None
        added = config.projection_class_embeddings_input_dim if config.addition_embed_type else None
        self.add_embedding = None if added is None else TimestepEmbedding(added, embedding)
        self.down_blocks = nn.ModuleList(self._down_levels(embedding))
        self.mid_block = None if config.mid_block_type is None else MidBlock(config, embedding)
        self.up_blocks = nn.ModuleList(self._up_levels(embedding))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, Attention):
                module.upcast = bool(config.upcast_attention)

    def _down_levels(self, embedding: int) -> list[DownLevel]:
        config, levels = self.config, []
        previous = config.block_out_channels[0]
        for index, channels in enumerate(config.block_out_channels):
            resnets = config.resnets(index, decoder=False)
            widths = [(previous if resnet == 0 else channels, channels) for resnet in range(resnets)]
            layers = config.transformer_layers(index, decoder=False)
            level = DownLevel(config, index, widths, layers=layers, embedding=embedding)
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
            resnets = config.resnets(index, decoder=True)
            skips = [below if resnet == resnets - 1 else channels for resnet in range(resnets)]
            widths = [((previous if resnet == 0 else channels) + skips[resnet], channels) for resnet in range(resnets)]
            layers = config.transformer_layers(index, decoder=True)
            level = UpLevel(config, index, widths, layers=layers, embedding=embedding)
            if index > 0:
                level.upsamplers = nn.ModuleList([Upsample(channels)])
            levels.append(level)
            previous = channels
        return levels

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        encoder_hidden_states: Tensor,
        *,
        class_labels: Tensor | None = None,
        added: Tensor | None = None,
        guidance_embedding: Tensor | None = None,
    ) -> Tensor:
        """Return the output (B, C, h, w). ValueError unless just the conditions that the config names are given.

        They are class_labels (B,) for num_class_embeds, `added` (B, V) for text_time: the pooled text and the
        sinusoids of sizes, and guidance_embedding (B, W) for time_cond_proj_dim."""
        embedding = self._embedding(latents, timesteps, class_labels, added, guidance_embedding)
        features = self.conv_in(latents)
        skips = [features]
        for level in self.down_blocks:
            features = level(features, skips, embedding, encoder_hidden_states)
        if self.mid_block is not None:
            features = self.mid_block(features, embedding, encoder_hidden_states)
        for level in self.up_blocks:
            features = level(features, skips, embedding, encoder_hidden_states)
        return self.conv_out(F.silu(self.conv_norm_out(features)))

    def _embedding(
        self,
        latents: Tensor,
        timesteps: Tensor,
        class_labels: Tensor | None,
        added: Tensor | None,
        guidance_embedding: Tensor | None,
    ) -> Tensor:
        """Return the embedding (B, embedding) of the timestep and of all conditions but the text."""
        config = self.config
        _check_given("class_labels", class_labels, self.class_embedding)
        _check_given("added", added, self.add_embedding)
        _check_given("guidance_embedding", guidance_embedding, self.time_embedding.cond_proj)
        sinusoids = timestep_embedding(
            timesteps,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        ).to(latents.dtype)
        guidance = None if guidance_embedding is None else guidance_embedding.to(latents.dtype)
        embedding = self.time_embedding(sinusoids, guidance)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        if self.add_embedding is not None and added is not None:
            embedding = embedding + self.add_embedding(added.to(latents.dtype))
        return embedding


def _check_given(name: str, condition: Tensor | None, layer: nn.Module | None) -> None:
    """Raise ValueError if a condition is missing, or if it is given and the network has no layer for it."""
    if (condition is None) != (layer is None):
        raise ValueError(f"this U-Net takes {'no ' if layer is None else ''}{name}")
