"""The texts' side of a diffusion recipe: which network reads captions, how it is trained, how the field keeps it.

- "clip": a CLIP text tower that learns with the U-Net.
- "frozen-clip": the text tower of `output/clip`, held still, as Stable Diffusion has it.
- "bert": the latent-diffusion paper's transformer on BERT's tokens, which learns with the U-Net.
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
from pipeline.training.recipes.clip import text_config
from pipeline.training.save import write_json
from pipeline.training.tokenizer import save_tokenizer, word_tokenizer

Kind = Literal["clip", "frozen-clip", "bert"]

BERT_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class TextModel:
    """A tokenizer and the network that makes states of its tokens."""

    tokenizer: CLIPTokenizer | BertTokenizer
    network: nn.Module
    """Token ids (B, window) to an output with `last_hidden_state` (B, window, D)."""

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, window) of captions that fit the window."""
        return torch.tensor(self.tokenizer(list(captions), padding="max_length", truncation=True).input_ids)

    def save(self, network: nn.Module, output: Path) -> dict[str, list[str]]:
        """Write the trained `network` and the tokenizer; what model_index.json has to say of them."""
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


def text_model(
    kind: Kind, words: Sequence[str], output: Path, *, width: int, window: int, layers: int, heads: int
) -> TextModel:
    """The text model to train a U-Net with, whose cross-attention is `width` wide; sizes are a frozen tower's own."""
    if kind == "frozen-clip":
        clip = CLIPModel.from_pretrained(output / "clip", dtype=torch.float32)
        config = clip.config.text_config
        assert isinstance(config, CLIPTextConfig)
        tower = CLIPTextModel(config)
        tower.load_state_dict(clip.text_model.state_dict())
        return TextModel(CLIPTokenizer.from_pretrained(output / "clip"), tower.requires_grad_(False))
    if kind == "clip":
        tokenizer = word_tokenizer(words, window)
        return TextModel(tokenizer, CLIPTextModel(text_config(tokenizer, hidden=width, layers=layers, heads=heads)))
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


def kept_text_model(output: Path) -> TextModel:
    """The CLIP text encoder and the tokenizer of the checkpoint folder `output`, to be trained further."""
    kept = load_text_encoder(output / "text_encoder", output / "tokenizer")
    assert isinstance(kept.tokenizer, CLIPTokenizer)
    return TextModel(kept.tokenizer, kept.model.requires_grad_(True))


def _save_bert(network: BertModel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "config.json", {"architectures": ["LDMBertModel"], "model_type": "ldmbert"} | asdict(network.config)
    )
