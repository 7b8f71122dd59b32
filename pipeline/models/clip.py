"""CLIP in the layout of transformers' CLIPModel: images and texts as unit vectors in one space."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from pipeline.errors import CheckpointError, one_line
from pipeline.images.resize import center_square
from pipeline.models.checkpoint.clip_config import check_clip, clip_colors, clip_side
from pipeline.models.checkpoint.layout import TRANSFORMERS_STEM
from pipeline.models.checkpoint.tensor_names import TensorNames
from pipeline.models.checkpoint.weights import load_weights, match_tensors, read_json
from pipeline.models.text import TextEncoder, load_tokenizer

_NAMES: Final = TensorNames(ignored=(".position_ids",))


class Clip:
    """A CLIP on one device. A text's embedding depends only on the text; an image's also on the batch shape."""

    def __init__(self, folder: Path, model: CLIPModel, text: TextEncoder, device: torch.device) -> None:
        self.name, self.model, self.device = folder.name, model, device
        self.side = clip_side(folder)
        """The side of the square to which an image is cropped, in pixels."""
        self._text = text
        mean, deviation = clip_colors(folder)
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._deviation = torch.tensor(deviation, device=device)[:, None, None]
        self.scale = model.logit_scale.exp().item()
        """The factor between cosines and logits."""

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return unit vectors (B, D) of uint8 images (B, side, side, 3), float32 on the CPU."""
        values = torch.tensor(pixels, device=self.device).permute(0, 3, 1, 2).float() / 255
        values = ((values - self._mean) / self._deviation).to(self.model.dtype)
        pooled = self.model.vision_model(pixel_values=values).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1).cpu()

    @torch.inference_mode()
    def embed_text(self, text: str) -> Tensor:
        """Return the unit vector (D,) of a text of any length, the mean of its windows; float32 on the CPU."""
        windows = torch.tensor(self._text.token_ids(text), device=self.device)
        vectors = [self.model.text_projection(self._text.model(window[None]).pooler_output) for window in windows]
        return F.normalize(F.normalize(torch.cat(vectors).float(), dim=-1).mean(0), dim=-1).cpu()

    def crop(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the center square (side, side, 3) of an image (H, W, 3) whose shorter side is scaled to `side`."""
        return center_square(pixels, self.side)


def load_clip(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Clip:
    """Load the CLIP in `folder`; CheckpointError names the file and what is wrong with it."""
    check_clip(folder)
    model = _build(folder)
    half = dtype == torch.float16
    load_weights(model, folder, TRANSFORMERS_STEM, half=half, names=_NAMES)
    target = torch.device(device)
    model = model.eval().requires_grad_(False).to(target, dtype)  # pyright: ignore[reportArgumentType]
    tokenizer = load_tokenizer(folder, model.text_model.config.vocab_size)
    return Clip(folder, model, TextEncoder(tokenizer, model.text_model), target)


def check_clip_weights(folder: Path, *, half: bool = False) -> None:
    """Raise CheckpointError if the CLIP in `folder` cannot be loaded; no weights are read."""
    check_clip(folder)
    clip_colors(folder)
    with torch.device("meta"):
        model = _build(folder)
    match_tensors(model, folder, TRANSFORMERS_STEM, half=half, names=_NAMES)
    load_tokenizer(folder, model.text_model.config.vocab_size)


def _build(folder: Path) -> CLIPModel:
    try:
        return CLIPModel(CLIPConfig(**read_json(folder / "config.json")))
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers raises many kinds for impossible values
        raise CheckpointError(f"{folder / 'config.json'}: a CLIP cannot be built of it: {one_line(error)}") from None
