"""Build, load and save the text encoders of the diffusion recipes.

- "clip": a new CLIP text encoder, trained with the U-Net.
- "frozen-clip": the text encoder of the CLIP in `output/clip`, frozen, as in Stable Diffusion.
- "bert": a new transformer on BERT tokens, trained with the U-Net, as in the latent diffusion paper.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.models.bert import BertConfig, BertModel
from pipeline.models.checkpoint.components import load_text_encoder
from pipeline.training.save import replacing, write_json
from pipeline.training.tokenizer import END, START, save_tokenizer, word_tokenizer

Conditioning = Literal["clip", "frozen-clip", "bert"]

BERT_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class TextModel:
    """A tokenizer and the text encoder that reads its tokens."""

    tokenizer: CLIPTokenizer | BertTokenizer
    network: nn.Module
    """Maps token ids (B, window) to an output with `last_hidden_state` (B, window, D)."""

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Return token ids (B, window); longer captions are truncated."""
        return torch.tensor(self.tokenizer(list(captions), padding="max_length", truncation=True).input_ids)

    def save(self, network: nn.Module, output: Path) -> dict[str, list[str]]:
        """Write the trained `network` and the tokenizer, and return their entries of model_index.json."""
        if isinstance(network, BertModel):
            _save_bert(network, output / "bert")
            self.tokenizer.save_pretrained(output / "tokenizer")
            return {"bert": ["latent_diffusion", "LDMBertModel"], "tokenizer": ["transformers", "BertTokenizer"]}
        assert isinstance(network, CLIPTextModel)
        assert isinstance(self.tokenizer, CLIPTokenizer)
        network.half().save_pretrained(output / "text_encoder")
        save_tokenizer(self.tokenizer, output / "tokenizer")
        return {
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
        }


def new_clip_text_model(words: Sequence[str], *, width: int, window: int, layers: int, heads: int) -> TextModel:
    """Return a CLIP tokenizer for `words` and an untrained CLIP text encoder."""
    tokenizer = word_tokenizer(words, window)
    return TextModel(tokenizer, CLIPTextModel(clip_text_config(tokenizer, width=width, layers=layers, heads=heads)))


def new_bert_text_model(words: Sequence[str], *, width: int, window: int, layers: int, heads: int) -> TextModel:
    """Return a BERT tokenizer for `words` and an untrained transformer."""
    vocabulary = {word: index for index, word in enumerate((*BERT_TOKENS, *words))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=window,
        d_model=width,
        encoder_layers=layers,
        encoder_ffn_dim=4 * width,
        encoder_attention_heads=heads,
        head_dim=width // heads,
    )
    return TextModel(BertTokenizer(vocab=vocabulary, model_max_length=window), BertModel(config))


def load_frozen_clip(folder: Path) -> TextModel:
    """Load the tokenizer and the text encoder of the CLIP in `folder`, with frozen weights."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    config = clip.config.text_config
    assert isinstance(config, CLIPTextConfig)
    network = CLIPTextModel(config)
    network.load_state_dict(clip.text_model.state_dict())
    return TextModel(CLIPTokenizer.from_pretrained(folder), network.requires_grad_(False))


def load_text_model(output: Path) -> TextModel:
    """Load the tokenizer and the CLIP text encoder of the checkpoint folder `output`, to train them further."""
    text = load_text_encoder(output / "text_encoder", output / "tokenizer")
    assert isinstance(text.tokenizer, CLIPTokenizer)
    return TextModel(text.tokenizer, text.model.requires_grad_(True))


def clip_text_config(tokenizer: CLIPTokenizer, *, width: int, layers: int, heads: int) -> CLIPTextConfig:
    """Return the config of a small CLIP text encoder for the vocabulary and the window of the tokenizer."""
    ids = tokenizer.get_vocab()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="quick_gelu",
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
    )


def _save_bert(network: BertModel, folder: Path) -> None:
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt"})
    write_json(
        folder / "config.json", {"architectures": ["LDMBertModel"], "model_type": "ldmbert"} | asdict(network.config)
    )
