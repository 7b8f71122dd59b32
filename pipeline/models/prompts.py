"""The text part of a stack: prompts to what the U-Net is conditioned by, with one text encoder or SDXL's two."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import PromptSyntax
from pipeline.models.prompt_syntax import parse_prompt
from pipeline.models.text import TextEncoder, Window


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """A prompt as the U-Net gets it."""

    states: Tensor  # (T, D), for cross-attention
    pooled: Tensor | None  # (P,), SDXL's vector of the whole prompt; None for other models


class PromptEncoder:
    """One or two text encoders whose states are joined on the last axis.

    Stable Diffusion takes the last states after the final norm. SDXL takes the penultimate states without that norm,
    and beside them the projected vector of the last encoder's end token (Podell et al. 2023, section 2.1).
    """

    def __init__(self, encoders: tuple[TextEncoder, ...], *, is_xl: bool, zeros_for_none: bool) -> None:
        """`zeros_for_none`: a negative prompt that is not given is zeros, and not the encoded empty text."""
        self.encoders, self.is_xl, self.zeros_for_none = encoders, is_xl, zeros_for_none

    @property
    def width(self) -> int:
        """Features per token (D)."""
        return sum(encoder.model.config.hidden_size for encoder in self.encoders)

    @property
    def pooled_width(self) -> int | None:
        """Features of the pooled vector (P); None if there is none."""
        return self.encoders[-1].projection_width if self.is_xl else None

    @property
    def layers(self) -> int:
        """The layers of the encoder that has the fewest."""
        return min(encoder.layers for encoder in self.encoders)

    def windows(self, prompt: str | None, syntax: PromptSyntax = "plain") -> int:
        """Return the number of windows that a prompt fills."""
        parts = parse_prompt(prompt or "", syntax)
        return max(len(encoder.windows(parts)) for encoder in self.encoders)

    @torch.inference_mode()
    def encode(
        self, prompt: str | None, *, windows: int = 1, clip_skip: int = 0, syntax: PromptSyntax = "plain"
    ) -> PromptEmbedding:
        """Return a prompt's embedding, padded to at least `windows` windows; None is a prompt that is not given.

        `clip_skip` is the number of layers left out at the end, as in diffusers (SDXL leaves out one more anyway).
        ValueError if the encoders have too few layers. Windows go through the networks one at a time, so the embedding
        depends on the prompt alone; the pooled vector is that of the first window."""
        if clip_skip and clip_skip >= self.layers - self.is_xl:
            most = self.layers - self.is_xl - 1
            raise ValueError(f"clip_skip is {clip_skip}; the model's text encoder allows 0 to {most}")
        parts = parse_prompt(prompt or "", syntax)
        per_encoder: list[Tensor] = []
        pooled: Tensor | None = None
        for encoder in self.encoders:
            filled = encoder.windows(parts)
            filled += [encoder.empty_window()] * (windows - len(filled))
            outputs = [self._encode_window(encoder, window, clip_skip) for window in filled]
            per_encoder.append(torch.cat([states for states, _ in outputs]))
            pooled = outputs[0][1]
        states = torch.cat(per_encoder, dim=-1)
        if prompt is None and self.zeros_for_none:
            return PromptEmbedding(torch.zeros_like(states), None if pooled is None else torch.zeros_like(pooled))
        return PromptEmbedding(states, pooled if self.is_xl else None)

    def _encode_window(self, encoder: TextEncoder, window: Window, clip_skip: int) -> tuple[Tensor, Tensor | None]:
        states, pooled = encoder.encode_window(window.ids, skip=clip_skip + self.is_xl, normalized=not self.is_xl)
        if any(weight != 1 for weight in window.weights):
            states = _emphasized(states, torch.tensor(window.weights, device=states.device))
        return states, pooled


def _emphasized(states: Tensor, weights: Tensor) -> Tensor:
    """Return states (T, D) times the weights (T,) of their tokens, scaled so that their mean stays the same.

    (A1111's "original" emphasis.)"""
    weighted = states.float() * weights[:, None]
    return (weighted * (states.float().mean() / weighted.mean())).to(states.dtype)
