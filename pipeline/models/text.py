"""Text encoders: CLIP or the paper's BERT; long prompts are encoded in several windows."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import BertTokenizer, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

from pipeline.errors import CheckpointError
from pipeline.models.bert import BertModel


class TextEncoder:
    """Encodes prompts into the U-Net's cross-attention input: the last hidden states after the final norm."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: CLIPTextModel | BertModel) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.window = int(model.config.max_position_embeddings)
        bert = isinstance(model, BertModel)
        self.start: int = tokenizer.cls_token_id if bert else tokenizer.bos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.padding: int = tokenizer.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.end: int = tokenizer.sep_token_id if bert else tokenizer.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]

    @torch.inference_mode()
    def encode(self, prompts: list[str], *, chunks: int = 1) -> list[Tensor]:
        """Return each prompt's embeddings (T, D), padded to at least `chunks` windows; T is a multiple of the window.

        Windows go through the network one at a time, so the embeddings of a prompt do not depend on the others.
        """
        return [self._encode(prompt, chunks) for prompt in prompts]

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

    def _encode(self, prompt: str, chunks: int) -> Tensor:
        windows = self.token_ids(prompt)
        windows += [self._padded([])] * (chunks - len(windows))
        return torch.cat([self._states(ids) for ids in windows])

    def _states(self, window: list[int]) -> Tensor:
        """Return the states (T, D) of a window; padding is masked if the model's config says so."""
        ids = torch.tensor([window], device=self.model.device)
        if isinstance(self.model, CLIPTextModel) and getattr(self.model.config, "use_attention_mask", False):
            return self.model(ids, attention_mask=self.attention_mask(window)).last_hidden_state[0]
        return self.model(ids).last_hidden_state[0]


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
