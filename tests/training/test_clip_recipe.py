"""The CLIP recipe: it learns, and its result opens in transformers."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from pipeline.training.data.examples import SCENES, stack_pixels
from pipeline.training.loop import Worker
from pipeline.training.recipes.clip import train_clip
from tests.training.tiny_recipes import CLIP, WIDTH, losses


def test_the_contrastive_loss_falls_and_the_clip_opens_in_transformers(components: Path) -> None:
    values = losses(components / "contrastive")
    assert values[-1] < values[0] - 0.1
    clip = CLIPModel.from_pretrained(components / "clip", dtype=torch.float32)
    tokens = CLIPTokenizer.from_pretrained(components / "clip")(["a red circle"], return_tensors="pt")
    output = clip(input_ids=tokens.input_ids, pixel_values=stack_pixels(SCENES.examples(0, 0, 1, WIDTH)))
    assert output.logits_per_image.shape == (1, 1)


def test_several_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs on one worker, not 2"):
        train_clip(CLIP, tmp_path, Worker(count=2))
