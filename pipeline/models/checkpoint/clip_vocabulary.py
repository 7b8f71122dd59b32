"""CLIP's tokenizer files, built from its byte-pair merges (Radford et al. 2021; the data is OpenCLIP's, MIT)."""

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from transformers import CLIPTokenizer

from pipeline.errors import CheckpointError, one_line

START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"

_MERGES: Final = Path(__file__).parent / "data" / "clip_merges.txt.gz"


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return CLIP's tokens with their ids, and its merges in their order."""
    merges = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    letters = list(_letters().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return {token: index for index, token in enumerate([*tokens, START, END])}, merges


def write_tokenizers(
    folder: Path,
    encoders: Mapping[str, Mapping[str, Any]],
    paddings: Sequence[str | None],
    given: Path | None,
    *,
    source: str,
) -> None:
    """Write the tokenizer of each text encoder, given by its component's name and config, to a checkpoint folder.

    `paddings` are their padding tokens, None for token 0. `given` is a tokenizer's folder, or one with `tokenizer` and
    `tokenizer_2`; None for CLIP's vocabulary. CheckpointError if a text encoder has fewer tokens; `source` is the file
    of the text encoders, for errors."""
    first: Path | None = None
    for (name, config), padding in zip(encoders.items(), paddings, strict=True):
        target = folder / name.replace("text_encoder", "tokenizer")
        if given is None:
            vocabulary, merges = clip_vocabulary()
            _check_size(source, len(vocabulary), config, "CLIP's vocabulary")
            window = config["max_position_embeddings"]
            write_tokenizer(target, vocabulary, merges, padding=padding or next(iter(vocabulary)), window=window)
            continue
        own = next((each for each in (given / target.name, given / "tokenizer") if each.is_dir()), given)
        _check_size(source, len(_read_tokenizer(own)), config, f"the tokenizer in {own}")
        shutil.copytree(own, target)
        if own == first:  # it pads as the first text encoder needs
            _pad_with_token_0(target)
        first = first or own


def _check_size(source: str, tokens: int, config: Mapping[str, Any], whose: str) -> None:
    if tokens > config["vocab_size"]:
        raise CheckpointError(
            f"{source}: its text encoder has {config['vocab_size']} tokens, {whose} {tokens}; give another --tokenizer"
        )


def _read_tokenizer(folder: Path) -> CLIPTokenizer:
    if not folder.is_dir():
        raise CheckpointError(f"--tokenizer {folder}: no such folder")
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise CheckpointError(f"--tokenizer {folder}: holds no vocab.json and no tokenizer.json; a tokenizer has one")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare ones for a broken file
        raise CheckpointError(f"--tokenizer {folder}: cannot be read as a CLIPTokenizer: {one_line(error)}") from None


def _pad_with_token_0(folder: Path) -> None:
    token = _read_tokenizer(folder).convert_ids_to_tokens(0)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**values, "pad_token": token}, indent=2) + "\n", encoding="utf-8")


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
