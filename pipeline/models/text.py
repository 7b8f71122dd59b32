"""Text encoders: CLIP or the paper's BERT; long prompts are encoded in several windows."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)

from pipeline.errors import CheckpointError
from pipeline.models.bert import BertConfig, BertModel


class TextEncoder:
    """Encodes prompts into the U-Net's cross-attention input: the last hidden states after the final norm."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: CLIPTextModel | CLIPTextModelWithProjection | BertModel
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
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
    def encode(self, prompts: list[str], *, chunks: int = 1) -> list[Tensor]:
        """Return each prompt's embeddings (T, D), padded to at least `chunks` windows; T is a multiple of the window.

        Windows go through the network one at a time, so the embeddings of a prompt do not depend on the others.
        """
        return [
            torch.cat([self.encode_window(window)[0] for window in self.padded_windows(prompt, chunks)])
            for prompt in prompts
        ]

    def chunks(self, prompt: str) -> int:
        """Return the number of windows that the prompt fills."""
        return len(self.token_ids(prompt))

    def token_ids(self, prompt: str) -> list[list[int]]:
        """Return the prompt's tokens in windows of equal length, each with start, end and padding."""
        tokens = self.tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        room = self.window - 2
        parts = [tokens[start : start + room] for start in range(0, len(tokens), room)] or [[]]
        return [self._padded(part) for part in parts]

    def attention_mask(self, window: list[int]) -> Tensor:
        """Return the mask (1, T) of a window: 1 for tokens up to the end token, 0 for padding."""
        length = window.index(self.end, 1) + 1
        return (torch.arange(len(window), device=self.model.device) < length).long()[None]

    def _padded(self, tokens: list[int]) -> list[int]:
        window = [self.start, *tokens, self.end]
        return window + [self.padding] * (self.window - len(window))

    def padded_windows(self, prompt: str, windows: int) -> list[list[int]]:
        """Return the prompt's tokens as `token_ids` does, with empty windows added up to `windows`."""
        filled = self.token_ids(prompt)
        return filled + [self._padded([])] * (windows - len(filled))

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
        projects = isinstance(self.model, CLIPTextModelWithProjection)
        inner: Any = self.model.text_model if projects else self.model
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
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare ones for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder}: cannot be read as a {kind.__name__}: {reason}") from None
    if len(tokenizer) > vocabulary:
        raise CheckpointError(f"{folder}: has {len(tokenizer)} tokens; the text encoder's config has {vocabulary}")
    return tokenizer
