"""Textual inversion: vectors for new words of the text encoders (Gal et al. 2023), read from the files in use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.weights import open_safetensors, refuse_pickle
from pipeline.models.text import TextEncoder

_PAIR: Final = ("clip_l", "clip_g")
"""The keys of SDXL's files: vectors for each text encoder."""
_BASES: Final = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL's second text encoder"}


def add_textual_inversion(encoders: Sequence[TextEncoder], word: str, path: Path) -> None:
    """Add the vectors in a file to the text encoders under a word. CheckpointError if they do not fit."""
    vectors = _read(path, len(encoders))
    for encoder, rows in zip(encoders, vectors, strict=True):
        width = encoder.model.config.hidden_size
        if rows.shape[1] != width:
            base = f", those of {_BASES[rows.shape[1]]}" if rows.shape[1] in _BASES else ""
            raise CheckpointError(
                f"{path}: its vectors have {rows.shape[1]} values{base}; the text encoder takes {width}"
            )
        encoder.add_word(word, rows)


def _read(path: Path, encoders: int) -> list[Tensor]:
    """Return the vectors (n, D) for each text encoder."""
    refuse_pickle(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    with open_safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    if set(_PAIR) <= tensors.keys():
        pair = [torch.atleast_2d(tensors[name]) for name in _PAIR]
        if encoders == 2:
            return pair
        raise CheckpointError(f"{path}: has clip_l and clip_g, which SDXL takes; this checkpoint has one text encoder")
    names = ["emb_params"] if "emb_params" in tensors else sorted(tensors)
    if len(names) > 1 or not names or tensors[names[0]].ndim not in (1, 2):
        raise CheckpointError(
            f"{path}: is not a textual inversion; one has a single tensor (n, D), or clip_l and clip_g"
        )
    if encoders == 2:
        raise CheckpointError(f"{path}: has vectors for one text encoder; SDXL takes a file with clip_l and clip_g")
    return [torch.atleast_2d(tensors[names[0]])]
