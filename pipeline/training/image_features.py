"""The features of a CLIP image encoder, which the perceptual distance compares."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel

ImageFeatures = Callable[[Tensor], list[Tensor]]
"""Maps pixels (B, 3, H, W) in [-1, 1] to the features (B, T, D) of each layer."""


def load_image_features(folder: Path, device: str = "cpu") -> ImageFeatures:
    """Load the frozen image encoder of the CLIP in `folder`; its features are the tokens of every layer."""
    encoder = CLIPModel.from_pretrained(folder, dtype=torch.float32).vision_model
    encoder = encoder.eval().requires_grad_(False).to(device)  # pyright: ignore[reportArgumentType]

    def features(pixels: Tensor) -> list[Tensor]:
        states = encoder(pixel_values=pixels.contiguous(), output_hidden_states=True).hidden_states
        return list(states[1:])

    return features
