"""The conditional U-Net that denoises latents (Rombach et al. 2022, section 3.3), under diffusers' config keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.configs import Config
from pipeline.models.layers import (
    Attention,
    Downsample,
    PixelAttention,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    timestep_embedding,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig(Config):
    """The options of a `UNet2DConditionModel`'s config.json."""

    sample_size: int | tuple[int, int] | None = 64
    """Latents per side, or height and width; None is 64."""
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    """The number of heads per level, in spite of the name."""
    num_attention_heads: int | tuple[int, ...] | None = None
    cross_attention_dim: int | tuple[int, ...] = 1280
    use_linear_projection: bool = False
    upcast_attention: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    num_class_embeds: int | None = None

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "addition_embed_type": (None,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "dual_cross_attention": (False,),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1, 1.0),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "class_embeddings_concat": (False,),
        "reverse_transformer_layers_per_block": (None,),
    }
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {
            "dropout",
            "addition_time_embed_dim",
            "addition_embed_type_num_heads",
            "projection_class_embeddings_input_dim",
            "resnet_skip_time_act",
            "resnet_out_scale_factor",
            "mid_block_only_cross_attention",
            "cross_attention_norm",
        }
    )
    PER_LEVEL: ClassVar[tuple[str, ...]] = (
        "layers_per_block",
        "transformer_layers_per_block",
        "attention_head_dim",
        "num_attention_heads",
        "cross_attention_dim",
        "only_cross_attention",
    )
    BLOCKS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the model was trained on."""
        size = 64 if self.sample_size is None else self.sample_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def text_widths(self) -> set[int]:
        """The widths of the text states that the attentions take."""
        widths = self.per_level("cross_attention_dim")
        down, up = self.down_block_types, self.up_block_types[::-1]
        attends = ["Attn" in down[level] or "Attn" in up[level] for level in range(len(widths))]
        return {widths[-1], *(width for width, does in zip(widths, attends, strict=True) if does)}

    def per_level(self, name: str) -> tuple:
        """Return an option for each level; the config gives it once, or once per level."""
        value = getattr(self, name)
        return tuple(value) if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        return self.per_level("attention_head_dim" if self.num_attention_heads is None else "num_attention_heads")

    def attention(self, level: int, channels: int, *, only_cross: bool | None = None) -> nn.Module:
        """Return the attention of a level: features (B, C, h, w) and text (B, T, D) to features."""
        return SpatialTransformer(
            channels,
            self.heads[level],
            self.per_level("cross_attention_dim")[level],
            self.per_level("transformer_layers_per_block")[level],
            self.norm_num_groups,
            linear=self.use_linear_projection,
            only_cross=self.per_level("only_cross_attention")[level] if only_cross is None else only_cross,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UnconditionalUNetConfig(UNetConfig):
    """The options of a `UNet2DModel`'s config.json: the same levels, with self-attention and no text."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    mid_block_type: str = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    attention_head_dim: int | None = 8  # pyright: ignore[reportIncompatibleVariableOverride]
    """Channels per head; None: one head."""

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,),
        "mid_block_scale_factor": (1, 1.0),
        "downsample_padding": (1,),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
        "resnet_time_scale_shift": ("default",),
        "attn_norm_num_groups": (None,),
        "add_attention": (True,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "mid_block_type": ("UNetMidBlock2D",),
    }
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"dropout", "num_train_timesteps"})
    BLOCKS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }

    @property
    def text_widths(self) -> set[int]:
        return set()

    def attention(self, level: int, channels: int, *, only_cross: bool | None = None) -> nn.Module:
        heads = channels // self.attention_head_dim if self.attention_head_dim else 1
        return UnconditionalAttention(channels, heads, self.norm_num_groups, self.norm_eps)


class UnconditionalAttention(PixelAttention):
    """Self-attention with the interface of a transformer: the text is ignored."""

    def forward(self, features: Tensor, states: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(features)


class Level(nn.Module):
    """One resolution of the encoder or decoder half: residual blocks, each followed by attention if `attends`."""

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
    """The U-Net: noisy latents (B, C, h, w), timesteps (B,) and text (B, T, D) to the schedule's prediction type."""

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
