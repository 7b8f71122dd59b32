"""Text encoders: CLIP or the paper's BERT; long prompts are encoded in several windows."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)

from pipeline.errors import CheckpointError
from pipeline.models.bert import BertConfig, BertModel
from pipeline.models.prompt_syntax import Segment


class Window(NamedTuple):
    """The tokens of one call of a text encoder, with start, end and padding, and the weight of each."""

    ids: list[int]
    weights: list[float]


class TextEncoder:
    """Encodes prompts into the U-Net's cross-attention input: the last hidden states after the final norm."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: CLIPTextModel | CLIPTextModelWithProjection | BertModel
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self._words: dict[str, list[int]] = {}
        self.window = int(model.config.max_position_embeddings)
        bert = isinstance(model, BertModel)
        self.start: int = tokenizer.cls_token_id if bert else tokenizer.bos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.padding: int = tokenizer.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.end: int = tokenizer.sep_token_id if bert else tokenizer.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def layers(self) -> int:
        """The number of the network's layers."""
        config = self.model.config
        return config.encoder_layers if isinstance(config, BertConfig) else int(config.num_hidden_layers)

    @property
    def projection_width(self) -> int:
        """Features of a window's projected vector; 0 if the network has no projection."""
        return self.model.text_projection.out_features if isinstance(self.model, CLIPTextModelWithProjection) else 0

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> list[Tensor]:
        """Return each prompt's last states (T, D); T is a multiple of the window.

        Windows go through the network one at a time, so the states of a prompt do not depend on the others.
        """
        return [torch.cat([self.encode_window(ids)[0] for ids in self.token_ids(prompt)]) for prompt in prompts]

    def add_word(self, word: str, vectors: Tensor) -> None:
        """Add vectors (n, D) to the embedding table; prompts write them as `word` (Gal et al. 2023).

        CheckpointError if the vocabulary has the word already. As in diffusers, letters may be of either case, and the
        word may stand inside of another."""
        if len(self.tokens(word)) == 1:
            raise CheckpointError(f"{word!r} is a word of the text encoder's vocabulary; give another NAME")
        embeddings = self._inner.embeddings.token_embedding
        first = embeddings.weight.shape[0]
        rows = torch.cat([embeddings.weight, vectors.to(embeddings.weight)])
        embeddings.weight, embeddings.num_embeddings = nn.Parameter(rows, requires_grad=False), len(rows)
        self._words[word.lower()] = list(range(first, len(rows)))

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text without start, end and padding."""
        if not self._words:
            return self._vocabulary_tokens(text)
        longest_first = sorted(self._words, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text, flags=re.IGNORECASE)
        return [token for piece in pieces for token in self._words.get(piece.lower()) or self._vocabulary_tokens(piece)]

    def windows(self, parts: Sequence[Sequence[Segment]]) -> list[Window]:
        """Return the tokens of a prompt's segments in windows; each part starts a new one."""
        room, windows = self.window - 2, list[Window]()
        for part in parts:
            pairs = [(token, segment.weight) for segment in part for token in self.tokens(segment.text)]
            chunks = [pairs[start : start + room] for start in range(0, len(pairs), room)] or [[]]
            windows += [self._padded(chunk) for chunk in chunks]
        return windows

    def empty_window(self) -> Window:
        """Return a window without tokens."""
        return self._padded([])

    def token_ids(self, prompt: str) -> list[list[int]]:
        """Return a plain prompt's tokens in windows of equal length, each with start, end and padding."""
        return [window.ids for window in self.windows([[Segment(prompt)]])]

    @property
    def _inner(self) -> Any:
        return self.model.text_model if isinstance(self.model, CLIPTextModelWithProjection) else self.model

    def _vocabulary_tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def attention_mask(self, window: list[int]) -> Tensor:
        """Return the mask (1, T) of a window: 1 for tokens up to the end token, 0 for padding."""
        length = window.index(self.end, 1) + 1
        return (torch.arange(len(window), device=self.model.device) < length).long()[None]

    def _padded(self, pairs: list[tuple[int, float]]) -> Window:
        """Return a window of tokens and their weights; start, end and padding weigh 1."""
        empty = self.window - 2 - len(pairs)
        ids = [self.start, *(token for token, _ in pairs), self.end, *[self.padding] * empty]
        return Window(ids, [1.0, *(weight for _, weight in pairs), *[1.0] * (empty + 1)])

    def encode_window(
        self, window: list[int], *, skip: int = 0, normalized: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return a window's states (T, D), and its projected vector (P,) if the network has a projection.

        The states are those before the last `skip` layers, after the final norm if `normalized`. The vector is that of
        the first end token, also where a config's eos_token_id is the legacy value 2. Padding is masked if the
        network's config says so."""
        ids = torch.tensor([window], device=self.model.device)
        if isinstance(self.model, BertModel):
            if skip or not normalized:
                raise ValueError("clip_skip needs a CLIP text encoder; this checkpoint has a BERT")
            return self.model(ids).last_hidden_state[0], None
        masked = getattr(self.model.config, "use_attention_mask", False)
        mask = self.attention_mask(window) if masked else None
        projects, inner = isinstance(self.model, CLIPTextModelWithProjection), self._inner
        output = inner(ids, attention_mask=mask, output_hidden_states=bool(skip) or not normalized)
        states = output.last_hidden_state
        if skip or not normalized:
            states = output.hidden_states[-1 - skip]
            states = inner.final_layer_norm(states) if normalized else states
        pooled = None
        if projects:
            project: Any = self.model.text_projection
            pooled = project(output.last_hidden_state[:, window.index(self.end, 1)])[0]
        return states[0], pooled


def load_tokenizer(
    folder: Path, vocabulary: int, kind: type[BertTokenizer | CLIPTokenizer] = CLIPTokenizer
) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`; CheckpointError if it cannot be read or has more tokens than `vocabulary`."""
    names = ("vocab.txt",) if kind is BertTokenizer else ("vocab.json", "merges.txt")
    missing = [name for name in names if not (folder / name).exists()]
    if missing and not (folder / "tokenizer.json").exists():
        raise CheckpointError(f"{folder}: holds no {missing[0]}; a {kind.__name__} has {' and '.join(names)}")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare ones for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder}: cannot be read as a {kind.__name__}: {reason}") from None
    if len(tokenizer) > vocabulary:
        raise CheckpointError(f"{folder}: has {len(tokenizer)} tokens; the text encoder's config has {vocabulary}")
    return tokenizer
