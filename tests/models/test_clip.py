"""CLIP against transformers, with small random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from pipeline.errors import CheckpointError
from pipeline.models.clip import Clip, load_clip
from pipeline.models.configs import EMBEDDED
from pipeline.training.data.examples import SCENES

SIDE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights and the embedded tokenizer, without a preprocessor_config.json."""
    folder = tmp_path_factory.mktemp("clip") / "random"
    embedded = EMBEDDED / "shapes-clip"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text_config = json.loads((embedded / "config.json").read_text())["text_config"] | sizes
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, num_hidden_layers=2, **sizes)
    torch.manual_seed(0)
    text = CLIPTextConfig(**text_config).to_dict()
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=24)).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((embedded / name).read_bytes())
    return folder


def random_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def test_embeddings_equal_those_of_transformers(folder: Path) -> None:
    clip, reference = load_clip(folder), CLIPModel.from_pretrained(folder).eval()
    texts, pixels = ["a red circle", "a small blue star on a white background"], random_images(3)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    values = torch.from_numpy((pixels / 255 - mean) / np.array(deviation)).permute(0, 3, 1, 2).float()
    tokens = clip._text.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = reference(input_ids=tokens, pixel_values=values)
    torch.testing.assert_close(clip.embed_images(pixels), expected.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        torch.stack([clip.embed_text(text) for text in texts]), expected.text_embeds, rtol=0, atol=1e-5
    )
    assert clip.scale == pytest.approx(reference.logit_scale.exp().item())


@pytest.mark.parametrize(("height", "width"), [(48, 48), (100, 64), (37, 211), (20, 30)])
def test_images_are_cropped_as_in_transformers(folder: Path, height: int, width: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    clip = load_clip(folder)
    smooth = np.linspace(0, 255, height)[:, None, None] * np.linspace(0, 1, width)[None, :, None] * np.ones(3)
    image = np.ascontiguousarray(smooth.astype(np.uint8))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_normalize=False, do_rescale=False
    )
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    cropped = clip.crop(image)
    assert cropped.shape == (SIDE, SIDE, 3)
    assert np.abs(cropped.astype(int) - expected.astype(int)).max() <= 1


def test_the_embedding_of_a_long_text_depends_on_its_end(folder: Path) -> None:
    clip = load_clip(folder)
    long = "a red circle left of a blue star and " * 20
    assert clip.embed_text(long).norm().item() == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(clip.embed_text(long + "a heart"), clip.embed_text(long + "a cross"), atol=1e-4)


def test_a_folder_without_a_clip_or_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a CLIP: its config.json needs text_config and vision_config"):
        load_clip(EMBEDDED / "shapes")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"holds no \*.safetensors file"):
        load_clip(broken)


@pytest.fixture(scope="module")
def embedded() -> Clip:
    return load_clip(EMBEDDED / "shapes-clip")


def test_the_embedded_clip_picks_the_right_caption_among_64(embedded: Clip) -> None:
    examples = SCENES.examples(1_000, 0, 64, embedded.side)
    texts = torch.stack([embedded.embed_text(caption) for _, caption in examples])
    images = embedded.embed_images(np.stack([np.asarray(image) for image, _ in examples]))
    correct = (images @ texts.T).argmax(1) == torch.arange(len(examples))
    assert correct.float().mean() >= 0.95
