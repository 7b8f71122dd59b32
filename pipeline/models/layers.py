"""Blocks that U-Nets and autoencoders share. Attribute names are diffusers' tensor names."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NARROW: Final = 16
"""On CPUs, heads with fewer channels are padded with zeros to this width."""


def timestep_embedding(timesteps: Tensor, width: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Return sinusoids of `timesteps` (B,) as (B, width) in float32 (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(exponent / (half - freq_shift))[None]
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=-1)


def guidance_embedding(scales: Tensor, width: int) -> Tensor:
    """Return the sinusoids of guidance scales (B,) as (B, width), as in diffusers (Luo et al. 2023, section 4.2)."""
    return timestep_embedding(1000 * (scales - 1), width, flip_sin_to_cos=False, freq_shift=1)


class TimestepEmbedding(nn.Module):
    """Two linear layers that map the sinusoids of a timestep (B, width) to the time embedding (B, embedding).

    With `condition_width`, a projection of a condition (B, condition_width) is added to the sinusoids."""

    def __init__(self, width: int, embedding: int, condition_width: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, embedding)
        self.cond_proj = nn.Linear(condition_width, width, bias=False) if condition_width else None
        self.linear_2 = nn.Linear(embedding, embedding)

    def forward(self, sinusoids: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.cond_proj is not None:
            sinusoids = sinusoids + self.cond_proj(condition)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class ResnetBlock(nn.Module):
    """Residual block of two convolutions (He et al. 2016); the time embedding is added between them."""

    def __init__(self, channels: int, out_channels: int, embedding: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, out_channels) if embedding is not None else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, features: Tensor, embedding: Tensor | None = None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(features)))
        if self.time_emb_proj is not None and embedding is not None:
            hidden = hidden + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (features if self.conv_shortcut is None else self.conv_shortcut(features))


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, C) over `states` (B, T, D), or over themselves."""

    def __init__(self, channels: int, heads: int, *, states: int | None = None, bias: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels of an attention cannot be divided among {heads} heads")
        self.heads = heads
        self.upcast = False
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(states or channels, channels, bias=bias)
        self.to_v = nn.Linear(states or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor, states: Tensor | None = None) -> Tensor:
        states = tokens if states is None else states
        query, key, value = (
            self._split_heads(self.to_q(tokens)),
            self._split_heads(self.to_k(states)),
            self._split_heads(self.to_v(states)),
        )
        if self.upcast:
            attended = _attend(query.float(), key.float(), value.float()).to(tokens.dtype)
        else:
            attended = _attend(query, key, value)
        return self.to_out[0](attended.transpose(1, 2).flatten(2))

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return attention (B, heads, tokens, width). torch's CPU kernel is slow for narrow heads, so they are padded."""
    width = query.shape[-1]
    if query.is_cuda or width >= _NARROW:
        return F.scaled_dot_product_attention(query, key, value)
    query, key, value = (F.pad(heads, (0, _NARROW - width)) for heads in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)[..., :width]


class PixelAttention(Attention):
    """Self-attention over the positions of a feature map, with pre-normalization and a residual connection."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)

    def forward(self, features: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        attended = super().forward(self.group_norm(features).flatten(2).transpose(1, 2))
        return features + attended.transpose(1, 2).unflatten(2, features.shape[-2:])


class GEGLU(nn.Module):
    """A linear layer, one half of whose output is gated by the GELU of the other half (Shazeer 2020)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and a linear layer; the identity in `net` keeps diffusers' tensor names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net[2](self.net[0](tokens))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text and feed-forward, each pre-normalized with a residual connection."""

    def __init__(self, channels: int, heads: int, states: int, *, only_cross: bool) -> None:
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, states=states if only_cross else None)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, states=states)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, states: Tensor) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens), states if self.only_cross else None)
        tokens = tokens + self.attn2(self.norm2(tokens), states)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of a feature map (Rombach et al. 2022, appendix E.2.1)."""

    def __init__(
        self, channels: int, heads: int, states: int, layers: int, groups: int, *, linear: bool, only_cross: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, heads, states, only_cross=only_cross) for _ in range(layers)]
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        hidden = self.norm(features)
        if self.linear:
            tokens = self.proj_in(hidden.flatten(2).transpose(1, 2))
        else:
            tokens = self.proj_in(hidden).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, states)
        if self.linear:
            tokens = self.proj_out(tokens)
            return features + tokens.transpose(1, 2).unflatten(2, (height, width))
        return features + self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """A strided convolution that halves a feature map; `asymmetric` pads only right and below (autoencoders)."""

    def __init__(self, channels: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(F.pad(features, (0, 1, 0, 1)) if self.asymmetric else features)


class Upsample(nn.Module):
    """Nearest-neighbor upsampling of a feature map to `size`, followed by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(features, size=size, mode="nearest"))
