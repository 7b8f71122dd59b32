"""The paper's text transformer, and images of a checkpoint that has it, against diffusers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
    LDMTextToImagePipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import BertTokenizer

from pipeline.config import RowDefaults
from pipeline.errors import CheckpointError
from pipeline.models.bert import BertConfig, BertModel
from pipeline.models.checkpoint.folder import load_stack
from pipeline.tasks.generate import Generate
from pipeline.tasks.rows import Row
from tests.row_images import image_of

CONFIG = BertConfig(
    vocab_size=100,
    max_position_embeddings=12,
    d_model=24,
    encoder_layers=3,
    encoder_ffn_dim=48,
    encoder_attention_heads=4,
    head_dim=8,
)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "##s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the paper's text-to-image model, scaled down, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "ldm"
    words = tmp_path_factory.mktemp("words") / "vocab.txt"
    words.write_text("\n".join(WORDS))
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    bert = LDMBertConfig(
        vocab_size=len(WORDS),
        d_model=32,
        encoder_layers=2,
        encoder_ffn_dim=64,
        encoder_attention_heads=2,
        head_dim=8,
        init_std=0.5,
    )
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", set_alpha_to_one=False, clip_sample=False
    )
    tokenizer = BertTokenizer(str(words), model_max_length=77)
    LDMTextToImagePipeline(
        vqvae=autoencoder, bert=LDMBertModel(bert), tokenizer=tokenizer, unet=unet, scheduler=scheduler
    ).save_pretrained(folder)
    return folder


def test_an_image_equals_that_of_diffusers(folder: Path) -> None:
    pipeline = LDMTextToImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a red circle, a blue squares"
    generator = torch.Generator().manual_seed(5)
    expected: Any = pipeline(
        prompt, height=64, width=64, num_inference_steps=4, guidance_scale=5.0, generator=generator, output_type="np"
    )
    stack = load_stack(folder)
    task = Generate(stack, RowDefaults())
    row = {"prompt": prompt, "seed": 5, "num_inference_steps": 4, "guidance_scale": 5.0}
    assert np.abs(image_of(task, Row(**row)) - 255 * expected.images[0]).max() <= 1
    requests = [task.request("any", task.prepare(Row(**{**row, "prompt": text}))) for text in (prompt, "a blue square")]
    texts = [each.conditions[0].inputs["encoder_hidden_states"] for each in requests]
    assert (texts[0] - texts[1]).abs().max() > 0.1


def test_a_missing_tokenizer_is_an_error_that_names_it(folder: Path, tmp_path: Path) -> None:
    incomplete = tmp_path / "ldm"
    incomplete.mkdir()
    for path in folder.iterdir():
        if path.name != "tokenizer":
            (incomplete / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="tokenizer: holds no vocab.txt; a BertTokenizer has vocab.txt"):
        load_stack(incomplete)


def test_hidden_states_equal_those_of_diffusers() -> None:
    torch.manual_seed(0)
    reference = LDMBertModel(LDMBertConfig(**asdict(CONFIG))).eval()
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    ours = BertModel(CONFIG)
    ours.load_state_dict(reference.state_dict())
    tokens = torch.randint(0, 100, (3, 12))
    with torch.inference_mode():
        expected, states = reference(tokens, return_dict=True).last_hidden_state, ours(tokens).last_hidden_state
    assert (states - expected).abs().max() <= 1e-5 * expected.abs().max()
