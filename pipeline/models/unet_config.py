"""The options of U-Nets: diffusers' config keys, and the attention that they choose for each level."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from pipeline.models.configs import Config
from pipeline.models.layers import PixelAttention, SpatialTransformer


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig(Config):
    """The options of a `UNet2DConditionModel`'s config.json."""

    sample_size: int | tuple[int, int] | None = 64
    """Latents per side, or height and width; None is 64."""
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    """UNetMidBlock2D: one residual block without attention; None: no middle."""
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    """Transformer blocks of each attention; of a level, a number, or one per layer."""
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    """Those of the decoder half, from its lowest resolution; None: as the encoder half's."""
    attention_head_dim: int | tuple[int, ...] = 8
    """The number of heads per level, in spite of the name."""
    num_attention_heads: int | tuple[int, ...] | None = None
    cross_attention_dim: int | tuple[int, ...] = 1280
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    num_class_embeds: int | None = None
    addition_embed_type: str | None = None
    """text_time: the pooled text and sinusoids of sizes are added to the time embedding (Podell et al. 2023)."""
    addition_time_embed_dim: int | None = None
    """Width of the sinusoids of one number of text_time."""
    projection_class_embeddings_input_dim: int | None = None
    """Width of the pooled text and all of its sinusoids."""
    time_cond_proj_dim: int | None = None
    """Width of the guidance scale's embedding (Luo et al. 2023, section 4.1); None: the network takes none."""

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "addition_embed_type": (None, "text_time"),
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
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "class_embeddings_concat": (False,),
    }
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {
            "dropout",
            "addition_embed_type_num_heads",
            "resnet_skip_time_act",
            "resnet_out_scale_factor",
            "mid_block_only_cross_attention",
            "cross_attention_norm",
        }
    )
    PER_LEVEL: ClassVar[tuple[str, ...]] = (
        "layers_per_block",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
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
        """The widths of the text states that the cross-attention layers expect."""
        widths = self.per_level("cross_attention_dim")
        middle = set[int]() if self.mid_layers is None else {widths[-1]}
        halves = itertools.product(enumerate(widths), (False, True))
        return middle | {width for (level, width), decoder in halves if self._attends(level, decoder=decoder)}

    def per_level(self, name: str) -> tuple:
        """Return the value of an option for each level; the config has one value, or one per level."""
        value = getattr(self, name)
        return tuple(value) if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        return self.per_level("attention_head_dim" if self.num_attention_heads is None else "num_attention_heads")

    def resnets(self, level: int, *, decoder: bool) -> int:
        """Return the number of residual blocks of a level; the decoder half has one more than the encoder half."""
        return self.per_level("layers_per_block")[level] + decoder

    def transformer_layers(self, level: int, *, decoder: bool) -> tuple[int, ...]:
        """Return the number of transformer blocks after each residual block of a level; empty without attention."""
        if not self._attends(level, decoder=decoder):
            return ()
        depth, resnets = self._depth(level, decoder=decoder), self.resnets(level, decoder=decoder)
        return depth[:resnets] if isinstance(depth, tuple) else (depth,) * resnets

    @property
    def mid_layers(self) -> int | None:
        """The number of transformer blocks of the middle; None if the middle has no attention."""
        if self.mid_block_type != "UNetMidBlock2DCrossAttn":
            return None
        depth = self._depth(-1, decoder=False)
        return depth[0] if isinstance(depth, tuple) else depth

    def _attends(self, level: int, *, decoder: bool) -> bool:
        return "Attn" in (self.up_block_types[::-1] if decoder else self.down_block_types)[level]

    def _depth(self, level: int, *, decoder: bool) -> int | tuple[int, ...]:
        """Return the number of transformer blocks of a level as the config gives it."""
        if decoder and self.reverse_transformer_layers_per_block is not None:
            return self.reverse_transformer_layers_per_block[::-1][level]
        return self.per_level("transformer_layers_per_block")[level]

    def problem(self) -> str | None:
        nested = any(isinstance(layers, tuple) for layers in self.per_level("transformer_layers_per_block"))
        if nested and self.reverse_transformer_layers_per_block is None:
            return "transformer_layers_per_block has a list for a level; give reverse_transformer_layers_per_block too"
        for level, decoder in itertools.product(range(len(self.block_out_channels)), (False, True)):
            layers, needed = self.transformer_layers(level, decoder=decoder), self.resnets(level, decoder=decoder)
            if self._attends(level, decoder=decoder) and len(layers) < needed:
                return f"a level has transformer blocks for {len(layers)} layers, {list(layers)}; it needs {needed}"
        sizes = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        if self.addition_embed_type and (missing := [key for key in sizes if not getattr(self, key)]):
            return f"addition_embed_type is {self.addition_embed_type!r}, which needs {missing[0]}"
        if odd := [key for key in (sizes[0], "time_cond_proj_dim") if (getattr(self, key) or 0) % 2]:
            return f"{odd[0]} is {getattr(self, odd[0])}; must be even"
        return None

    def attention(self, level: int, channels: int, layers: int, *, only_cross: bool | None = None) -> nn.Module:
        """Return an attention of a level, which maps features (B, C, h, w) and text (B, T, D) to features."""
        return SpatialTransformer(
            channels,
            self.heads[level],
            self.per_level("cross_attention_dim")[level],
            layers,
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
    mid_block_type: str | None = "UNetMidBlock2D"
    """Two residual blocks with attention between them, unlike the class of this name in a conditional U-Net."""
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

    @property
    def mid_layers(self) -> int | None:
        return 1

    def attention(self, level: int, channels: int, layers: int, *, only_cross: bool | None = None) -> nn.Module:
        heads = channels // self.attention_head_dim if self.attention_head_dim else 1
        return UnconditionalAttention(channels, heads, self.norm_num_groups, self.norm_eps)


class UnconditionalAttention(PixelAttention):
    """Self-attention with the interface of SpatialTransformer; it ignores the text."""

    def forward(self, features: Tensor, states: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(features)
