"""The CLIP recipe: an image and a text encoder trained on (image, caption) pairs (Radford et al. 2021)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from pipeline.training.conditioning import clip_text_config
from pipeline.training.data.examples import HARD_NEGATIVES, SCENES, Source, stack_pixels
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, train
from pipeline.training.losses import contrastive_loss
from pipeline.training.save import write_json
from pipeline.training.tokenizer import save_tokenizer, word_tokenizer

IMAGE_MEAN: Final = 0.5
IMAGE_STD: Final = 0.5
"""With this mean and standard deviation of color values, the input of the image encoder is in [-1, 1]."""
MAX_LOGIT_SCALE: Final = 100.0
"""The value to which the paper clips the scale of the logits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveRecipe:
    """The configuration of a CLIP recipe."""

    width: int
    """The side of the square training images in pixels."""
    patch: int
    """The side of one patch, a token of the image encoder, in pixels."""
    window: int
    """The length of the text encoder's input in tokens."""
    hidden: int
    image_layers: int
    text_layers: int
    heads: int
    embedding: int
    """The width of the space that image and text embeddings share."""
    source: Source = SCENES
    batch: int
    seed: int
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3))


SHAPES_CLIP: Final = ContrastiveRecipe(
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


def new_clip(recipe: ContrastiveRecipe, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP of the recipe's size."""
    text = clip_text_config(tokenizer, width=recipe.hidden, layers=recipe.text_layers, heads=recipe.heads)
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
    """Train a CLIP and save it as `output/clip`; state and log are in `output/contrastive`.

    ValueError for more than one worker, since the loss compares all pairs of a batch.
    """
    if worker.count > 1:
        raise ValueError(
            f"the CLIP recipe runs on one worker, not {worker.count}: its loss compares all pairs of a batch"
        )
    torch.manual_seed(recipe.seed)
    tokenizer = word_tokenizer(recipe.source.words(), recipe.window)
    clip = new_clip(recipe, tokenizer)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        examples = recipe.source.examples(recipe.seed, step * recipe.batch, recipe.batch, recipe.width)
        captions = [caption for _, caption in examples]
        tokens = torch.tensor(tokenizer(captions, padding="max_length", truncation=True).input_ids)
        pixels = stack_pixels(examples)
        output = clip(input_ids=worker.local_rows(tokens), pixel_values=worker.local_rows(pixels))
        scale = clip.logit_scale.exp().clamp_max(MAX_LOGIT_SCALE)
        loss = contrastive_loss(output.image_embeds, output.text_embeds, scale)
        correct = (output.image_embeds @ output.text_embeds.T).argmax(1).cpu() == torch.arange(len(examples))
        return loss, {"accuracy": correct.float().mean().item(), "scale": scale.item()}

    average = train(clip, step_loss, recipe.loop, output / "contrastive", worker, batch=recipe.batch)
    assert isinstance(average, CLIPModel)
    _save(average.cpu().half(), tokenizer, recipe.width, output / "clip")


def _save(clip: CLIPModel, tokenizer: CLIPTokenizer, width: int, folder: Path) -> None:
    """Write the CLIP, its tokenizer and the config of its image processor."""
    clip.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": width, "width": width},
        "size": {"shortest_edge": width},
        "image_mean": [IMAGE_MEAN] * 3,
        "image_std": [IMAGE_STD] * 3,
        "do_convert_rgb": True,
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    write_json(folder / "preprocessor_config.json", processor)
