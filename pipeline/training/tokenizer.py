"""A CLIP tokenizer with a small vocabulary: all bytes, and each of the given words as one token."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def word_tokenizer(words: Iterable[str], window: int) -> CLIPTokenizer:
    """Return a byte-pair tokenizer that encodes each of `words` as one token and every other word as bytes.

    `window` is the length of the text encoder's input in tokens.
    """
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _pieces(word, merges)
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = len(merges)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = [*alphabet, *(letter + END_OF_WORD for letter in alphabet)]
    vocabulary += dict.fromkeys(left + right for left, right in merges)
    ids = {token: index for index, token in enumerate([*vocabulary, START, END])}
    return CLIPTokenizer(vocab=ids, merges=list(merges), model_max_length=window)  # pyright: ignore[reportArgumentType]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json, which every version of transformers reads."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.model_max_length,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
    }
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _pieces(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """Return the pieces into which byte-pair encoding splits a word (Sennrich et al. 2016, algorithm 1)."""
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    while True:
        pairs = [(merges[pair], index) for index, pair in enumerate(itertools.pairwise(pieces)) if pair in merges]
        if not pairs:
            return pieces
        _, index = min(pairs)
        pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
