"""The text transformer of the latent-diffusion paper, on BERT's tokens (Rombach et al. 2022, section 4.3.1).

Attribute names are diffusers' tensor names (LDMBertModel). The head width is a separate option; queries, keys and
values have no bias; padding is not masked, as in training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from pipeline.models.configs import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class BertConfig(Config):
    """The options of an `LDMBertModel`'s config.json."""

    vocab_size: int = 30522
    max_position_embeddings: int = 77
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_ffn_dim: int = 5120
    encoder_attention_heads: int = 8
    head_dim: int = 64
    pad_token_id: int = 0

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "activation_function": ("gelu",),
        "scale_embedding": (False,),
    }
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "activation_dropout", "attention_dropout", "classifier_dropout", "encoder_layerdrop"}
        | {"init_std", "use_cache"}
    )

    @property
    def hidden_size(self) -> int:
        """The width of the states, under the name that other text encoders use."""
        return self.d_model


class SelfAttention(nn.Module):
    """Multi-head attention of tokens (B, T, D) over themselves; the heads together may be wider than D."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        inner = config.encoder_attention_heads * config.head_dim
        self.heads = config.encoder_attention_heads
        self.k_proj = nn.Linear(config.d_model, inner, bias=False)
        self.v_proj = nn.Linear(config.d_model, inner, bias=False)
        self.q_proj = nn.Linear(config.d_model, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """A transformer layer that normalizes before attention (Xiong et al. 2020)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.self_attn(self.self_attn_layer_norm(tokens))
        return tokens + self.fc2(F.gelu(self.fc1(self.final_layer_norm(tokens))))


class Encoder(nn.Module):
    """Token and position embeddings, the transformer layers and the final norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, token_ids: Tensor) -> Tensor:
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        tokens = self.embed_tokens(token_ids) + self.embed_positions(positions)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.layer_norm(tokens)


class BertModel(nn.Module):
    """Maps token ids (B, T) to states (B, T, D) after the final norm; `to_logits` is loaded but not used."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Encoder(config)
        self.to_logits = nn.Linear(config.d_model, config.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return self.to_logits.weight.device

    def forward(self, token_ids: Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.model(token_ids))  # pyright: ignore[reportArgumentType]
