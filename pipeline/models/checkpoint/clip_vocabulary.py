"""CLIP's tokenizer files, built from its byte-pair merges (Radford et al. 2021; the data is OpenCLIP's, MIT)."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from transformers import CLIPTokenizer

from pipeline.errors import CheckpointError, one_line

VOCABULARY: Final = 49_408
"""Tokens of CLIP's vocabulary."""
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"

_MERGES: Final = Path(__file__).parent / "data" / "clip_merges.txt.gz"


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return CLIP's tokens with their ids, and its merges in their order."""
    merges = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    letters = list(_letters().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return {token: index for index, token in enumerate([*tokens, START, END])}, merges


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return the tokens and merges of the tokenizer in a folder; CheckpointError if there is none."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare ones for a broken file
        raise CheckpointError(f"--tokenizer {folder}: cannot be read as a CLIPTokenizer: {one_line(error)}") from None
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


def write_tokenizer(
    folder: Path, vocabulary: Mapping[str, int], merges: Sequence[str], *, padding: str, window: int
) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of a CLIPTokenizer that pads with the token `padding`."""
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": window,
        "bos_token": START,
        "eos_token": END,
        "pad_token": padding,
        "unk_token": END,
        "do_lower_case": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _letters() -> dict[int, str]:
    """Return the letter that stands for each byte: itself if it can be printed, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
