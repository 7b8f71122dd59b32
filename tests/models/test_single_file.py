"""Single-file checkpoints: the pictures are those of the folder that they were made from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.clip_vocabulary import END, clip_vocabulary, write_tokenizer
from pipeline.models.checkpoint.convert import convert_single_file
from tests.checkpoints import tiny_checkpoint
from tests.family_checkpoints import small_checkpoint
from tests.models.test_xl import image_of, reference_of
from tests.single_files import write_single_file


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("single") / "sdxl", "sdxl")


def heads_of_the_table(folder: Path) -> None:
    """Give a small checkpoint the heads that a single file's family has: 64 channels each."""
    for name in ("unet", "text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        if path.exists():
            config = json.loads(path.read_text())
            if name == "unet":
                config["attention_head_dim"] = [max(1, width // 64) for width in config["block_out_channels"]]
            else:
                config["num_attention_heads"] = 1
            path.write_text(json.dumps(config))


def test_images_of_a_single_file_are_those_of_its_folder(tmp_path: Path, sdxl: Path) -> None:
    heads_of_the_table(sdxl)
    file = write_single_file(sdxl, tmp_path / "model.safetensors", "sdxl")
    convert_single_file(file, tmp_path / "converted", tokenizer=sdxl / "tokenizer")
    expected = image_of(sdxl, guidance_scale=4.0)
    set_native_size(tmp_path / "converted", 8)
    assert np.array_equal(image_of(tmp_path / "converted", guidance_scale=4.0), expected)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "converted")
    assert np.abs(reference_of(pipeline, guidance_scale=4.0) - expected).max() <= 1


def set_native_size(folder: Path, size: int) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": size}))


def test_clips_vocabulary_is_openclips(tmp_path: Path) -> None:
    """Token ids that open_clip_torch 3.3 gives."""
    write_tokenizer(tmp_path, *clip_vocabulary(), padding=END, window=77)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 49408
    for text, ids in FACTS.items():
        assert tokenizer(text).input_ids == [49406, *ids, 49407], text


FACTS: dict[str, list[int]] = {
    "": [],
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "A Photograph of an astronaut riding a horse, 8k, trending on artstation!": [
        320,
        8853,
        539,
        550,
        18376,
        6765,
        320,
        4558,
        267,
        279,
        330,
        267,
        6087,
        525,
        1486,
        2631,
        256,
    ],
    "don't stop: it's the dog's": [847, 713, 1691, 281, 585, 568, 518, 1929, 568],
    "naïve café über straße": [1097, 35689, 563, 15304, 6522, 1516, 1894, 127, 253, 324],
    "12345 67.89 3x": [272, 273, 274, 275, 276, 277, 278, 269, 279, 280, 274, 343],
    "日本語のテキスト": [39121, 44353, 34002, 252, 21575, 2429, 228, 47121, 32421, 486],
    "Привет мир": [26302, 16370, 29503, 110, 22176, 141, 480, 38018, 16701, 141, 478],
    "emoji 😀🎉 here": [16327, 12832, 3986, 763],
    "masterpiece, best quality, (detailed:1.2)": [12066, 267, 949, 3027, 267, 263, 12609, 281, 272, 269, 273, 264],
    "hello   world\n new\tline": [3306, 1002, 686, 1148],
    "supercalifragilisticexpialidocious": [1642, 2857, 13093, 2076, 5868, 26850, 835, 639, 38466],
    "#hashtag @user http://example.com/a?b=c": [
        258,
        9238,
        287,
        7031,
        15066,
        12441,
        6228,
        269,
        2464,
        270,
        320,
        286,
        321,
        284,
        322,
    ],
    "e = mc²; α β γ": [324, 284, 4126, 41175, 282, 138, 365, 138, 366, 138, 367],
    "jekyll & hyde": [49405, 261, 16343],
    "<lora:x:1>": [283, 2179, 320, 281, 343, 281, 272, 285],
}
