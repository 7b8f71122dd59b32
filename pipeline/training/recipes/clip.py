"""The recipe of a CLIP: an image and a text tower that agree on (picture, caption) pairs (Radford et al. 2021)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from pipeline.training.data.examples import HARD_NEGATIVES, SCENES, Source, pixels_of
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, train
from pipeline.training.losses import contrastive_loss
from pipeline.training.save import write_json
from pipeline.training.tokenizer import END, START, save_tokenizer, word_tokenizer

ImageFeatures = Callable[[Tensor], list[Tensor]]
"""Pixels (B, 3, H, W) in [-1, 1] to features (B, T, D) of each layer."""

MEAN = DEVIATION = 0.5
"""Of the color values: CLIP's image tower reads pixels in [-1, 1] here, and preprocessor_config.json says so."""
LARGEST_SCALE = 100.0
"""To which the paper clips the logits' scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveRecipe:
    """What to train, on what, and how."""

    width: int
    """Pixels of a picture's side."""
    patch: int
    """Pixels of the side of what the image tower sees as one token."""
    window: int
    """Tokens that the text tower sees at once."""
    hidden: int
    image_layers: int
    text_layers: int
    heads: int
    embedding: int
    """Width of the space that pictures and captions share."""
    source: Source = SCENES
    batch: int
    seed: int
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3))


SHAPES_CLIP = ContrastiveRecipe(
    width=64,
    patch=8,
    window=32,
    hidden=128,
    image_layers=4,
    text_layers=2,
    heads=4,
    embedding=128,
    source=HARD_NEGATIVES,
    batch=64,
    seed=3,
    loop=LoopConfig(steps=4000, learning_rate=1e-3, warmup_steps=200, cooldown=0.4, average_decay=0.998),
)


def text_config(tokenizer: CLIPTokenizer, *, hidden: int, layers: int, heads: int) -> CLIPTextConfig:
    """A small CLIP text tower for the tokenizer's words and window."""
    ids = tokenizer.get_vocab()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="quick_gelu",
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
    )


def new_clip(recipe: ContrastiveRecipe, tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of the recipe's size."""
    text = text_config(tokenizer, hidden=recipe.hidden, layers=recipe.text_layers, heads=recipe.heads)
    vision = CLIPVisionConfig(
        image_size=recipe.width,
        patch_size=recipe.patch,
        hidden_size=recipe.hidden,
        intermediate_size=4 * recipe.hidden,
        num_hidden_layers=recipe.image_layers,
        num_attention_heads=recipe.heads,
        hidden_act="quick_gelu",
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=recipe.embedding)
    )


def train_clip(recipe: ContrastiveRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train, and save `output/clip`: a CLIPModel, its tokenizer and how pictures are prepared for it.

    With one worker only: each pair is compared with all others of its batch.
    """
    if worker.count > 1:
        raise ValueError("a CLIP is trained by one worker, since each pair is compared with all of its batch")
    torch.manual_seed(recipe.seed)
    tokenizer = word_tokenizer(recipe.source.words(), recipe.window)
    clip = new_clip(recipe, tokenizer)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        drawn = recipe.source.examples(recipe.seed, step * recipe.batch, recipe.batch, recipe.width)
        captions = [caption for _, caption in drawn]
        tokens = torch.tensor(tokenizer(captions, padding="max_length", truncation=True).input_ids)
        seen = clip(input_ids=worker.part(tokens), pixel_values=worker.part(pixels_of(drawn)))
        scale = clip.logit_scale.exp().clamp_max(LARGEST_SCALE)
        loss = contrastive_loss(seen.image_embeds, seen.text_embeds, scale)
        found = (seen.image_embeds @ seen.text_embeds.T).argmax(1).cpu() == torch.arange(len(drawn))
        return loss, {"found": found.float().mean().item(), "scale": scale.item()}

    average = train(clip, step_loss, recipe.loop, output / "contrastive", worker)
    assert isinstance(average, CLIPModel)
    average.cpu().half().save_pretrained(output / "clip")
    save_tokenizer(tokenizer, output / "clip")
    write_json(
        output / "clip" / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": recipe.width, "width": recipe.width},
            "size": {"shortest_edge": recipe.width},
            "image_mean": [MEAN] * 3,
            "image_std": [DEVIATION] * 3,
            "do_convert_rgb": True,
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "rescale_factor": 1 / 255,
            "resample": 3,
        },
    )


def load_image_features(folder: Path, device: str = "cpu") -> ImageFeatures:
    """The image tower in `folder`, held still, as what a perceptual distance compares: every layer's tokens."""
    tower = CLIPModel.from_pretrained(folder, dtype=torch.float32).vision_model
    tower = tower.eval().requires_grad_(False).to(device)  # pyright: ignore[reportArgumentType]

    def features(pixels: Tensor) -> list[Tensor]:
        states = tower(pixel_values=pixels.contiguous(), output_hidden_states=True).hidden_states
        return list(states[1:])

    return features
