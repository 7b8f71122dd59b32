"""The options of U-Nets: diffusers' config keys, and the attention that they choose for each level."""

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
        """The widths of the text states that the cross-attention layers expect."""
        widths = self.per_level("cross_attention_dim")
        down, up = self.down_block_types, self.up_block_types[::-1]
        attends = ["Attn" in down[level] or "Attn" in up[level] for level in range(len(widths))]
        return {widths[-1], *(width for width, does in zip(widths, attends, strict=True) if does)}

    def per_level(self, name: str) -> tuple:
        """Return the value of an option for each level; the config has one value, or one per level."""
        value = getattr(self, name)
        return tuple(value) if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        return self.per_level("attention_head_dim" if self.num_attention_heads is None else "num_attention_heads")

    def attention(self, level: int, channels: int, *, only_cross: bool | None = None) -> nn.Module:
        """Return the attention of a level, which maps features (B, C, h, w) and text (B, T, D) to features."""
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
    """Self-attention with the interface of SpatialTransformer; it ignores the text."""

    def forward(self, features: Tensor, states: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(features)
