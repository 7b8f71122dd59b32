"""CLIP as the field saves it (transformers' CLIPModel): pictures and texts as unit vectors of one space."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from pipeline.images.resize import center_square
from pipeline.models.checkpoint.clip_config import check_clip, clip_colors, clip_side
from pipeline.models.checkpoint.weights import load_weights, read_json
from pipeline.models.text import TextEncoder, load_tokenizer


class Clip:
    """A CLIP on one device. Each picture and each window of text goes through alone where bits must not vary."""

    def __init__(self, folder: Path, model: CLIPModel, text: TextEncoder, device: torch.device) -> None:
        self.name, self.model, self.device = folder.name, model, device
        self.side = clip_side(folder)
        """Pixels of the square that a picture is cut to."""
        self._text = text
        mean, deviation = clip_colors(folder)
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._deviation = torch.tensor(deviation, device=device)[:, None, None]
        self.scale = model.logit_scale.exp().item()
        """What cosines are multiplied by to be logits."""

    @torch.inference_mode()
    def of_pictures(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Unit vectors (B, D) of pictures (B, side, side, 3), as `prepared` cuts them; float32, on the CPU."""
        values = torch.tensor(pixels, device=self.device).permute(0, 3, 1, 2).float() / 255
        values = ((values - self._mean) / self._deviation).to(self.model.dtype)
        pooled = self.model.vision_model(pixel_values=values).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1).cpu()

    @torch.inference_mode()
    def of_text(self, text: str) -> Tensor:
        """The unit vector (D,) of a text, of any length: the direction of its windows' mean; float32, on the CPU."""
        windows = torch.tensor(self._text.token_ids(text), device=self.device)
        vectors = [self.model.text_projection(self._text.model(window[None]).pooler_output) for window in windows]
        return F.normalize(F.normalize(torch.cat(vectors).float(), dim=-1).mean(0), dim=-1).cpu()

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The middle square (side, side, 3) of a picture (H, W, 3) that is made as small as that allows."""
        return center_square(pixels, self.side)


def load_clip(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Clip:
    """The CLIP in `folder`; a CheckpointError names the file and what is wrong with it."""
    check_clip(folder)
    values = read_json(folder / "config.json")
    model = CLIPModel(CLIPConfig(**values))
    load_weights(model, folder, half=dtype == torch.float16, ignored=(".position_ids",))
    place = torch.device(device)
    model = model.eval().requires_grad_(False).to(place, dtype)  # pyright: ignore[reportArgumentType]
    tokenizer = load_tokenizer(folder, model.text_model.config.vocab_size)
    return Clip(folder, model, TextEncoder(tokenizer, model.text_model), place)
