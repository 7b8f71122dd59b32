"""The U-Nets of published families against diffusers: outputs of small ones, tensor names of full-size ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.components import load_unet
from pipeline.models.configs import check_levels
from pipeline.models.unet import UNet
from pipeline.models.unet_config import UNetConfig
from tests.family_checkpoints import PUBLISHED_UNETS, SIZE_WIDTH, UNetFamily, small_unet_config

TOLERANCE = 1e-4
"""The maximum error, relative to the largest output."""
TEXT_WIDTH = 48
POOLED_WIDTH = 24


def unet_of(config: dict[str, Any]) -> UNet:
    typed = UNetConfig.from_dict(config, "config.json")
    check_levels(typed, "config.json")
    return UNet(typed)


def conditions(config: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a U-Net's conditions under our names and under those of diffusers."""
    ours: dict[str, Tensor] = {}
    reference: dict[str, Any] = {}
    if config.get("num_class_embeds"):
        ours["class_labels"] = reference["class_labels"] = torch.tensor([20, 300])
    if config.get("time_cond_proj_dim"):
        embedding = torch.randn(2, config["time_cond_proj_dim"])
        ours["guidance_embedding"] = reference["timestep_cond"] = embedding
    if config.get("addition_embed_type"):
        numbers = (config["projection_class_embeddings_input_dim"] - POOLED_WIDTH) // SIZE_WIDTH
        pooled, sizes = torch.randn(2, POOLED_WIDTH), torch.randint(0, 2048, (2, numbers)).float()
        reference["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    return ours, reference


@pytest.mark.parametrize("family", PUBLISHED_UNETS)
@pytest.mark.parametrize("size", [(8, 8), (12, 10)])
def test_the_unet_of_a_family_equals_diffusers(tmp_path: Path, family: UNetFamily, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = small_unet_config(family, text_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH)
    reference = UNet2DConditionModel(**config).eval()
    reference.save_pretrained(tmp_path / "unet")
    unet = load_unet(tmp_path / "unet")
    ours, theirs = conditions(config)
    if added := theirs.get("added_cond_kwargs"):
        sinusoids = reference.add_time_proj(added["time_ids"].flatten()).unflatten(0, (2, -1)).flatten(1)
        ours["added"] = torch.cat([added["text_embeds"], sinusoids], dim=-1)
    latents, timesteps = torch.randn(2, config["in_channels"], *size), torch.tensor([3.0, 777.0])
    states = torch.randn(2, 77, TEXT_WIDTH)
    with torch.no_grad():
        expected = reference(latents, timesteps, states, **theirs).sample
        actual = unet(latents, timesteps, states, **ours)
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("family", PUBLISHED_UNETS)
def test_the_tensors_of_a_published_unet_have_the_names_and_shapes_of_diffusers(family: UNetFamily) -> None:
    with torch.device("meta"):
        expected = UNet2DConditionModel(**PUBLISHED_UNETS[family]).state_dict()
        actual = unet_of(PUBLISHED_UNETS[family]).state_dict()
    assert {name: tensor.shape for name, tensor in actual.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("ssd-1b", {"reverse_transformer_layers_per_block": None}, "give reverse_transformer_layers_per_block too"),
        ("ssd-1b", {"transformer_layers_per_block": [1, [2], [4, 4]]}, r"for 1 layers, \[2\]; it needs 2"),
        ("sdxl", {"addition_time_embed_dim": None}, "addition_embed_type is 'text_time', which needs addition_time_em"),
        ("sdxl", {"addition_embed_type": "image"}, "addition_embed_type is 'image'; only None or 'text_time' is supp"),
        ("sdxl", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type is 'UNetMidBlock2DSimpleCross"),
        ("sd15", {"class_embed_type": "projection"}, "class_embed_type is 'projection'; only None is supported"),
        ("lcm", {"time_cond_proj_dim": 15}, "time_cond_proj_dim is 15; must be even"),
    ],
)
def test_options_that_cannot_be_honored_are_refused_by_name(
    family: UNetFamily, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        unet_of({**small_unet_config(family, text_width=TEXT_WIDTH), **changes})


@pytest.mark.parametrize(
    ("family", "name"), [("sdxl", "added"), ("lcm", "guidance_embedding"), ("x4-upscaler", "class_labels")]
)
def test_a_unet_refuses_a_missing_condition_and_one_that_it_does_not_take(family: UNetFamily, name: str) -> None:
    unet = unet_of(small_unet_config(family, text_width=TEXT_WIDTH))
    plain = unet_of(small_unet_config("sd15", text_width=TEXT_WIDTH))
    latents, timesteps = torch.randn(1, unet.config.in_channels, 8, 8), torch.tensor([3.0])
    states = torch.randn(1, 77, TEXT_WIDTH)
    with pytest.raises(ValueError, match=f"this U-Net takes {name}"):
        unet(latents, timesteps, states)
    with pytest.raises(ValueError, match=f"this U-Net takes no {name}"):
        plain(latents[:, :4], timesteps, states, **{name: torch.zeros(1)})


@pytest.mark.slow
def test_the_unet_of_sdxl_runs_at_full_size_in_bfloat16() -> None:
    """2.6 billion random parameters, 5 GB."""
    config = PUBLISHED_UNETS["sdxl"]
    with torch.device("meta"):
        unet = unet_of(config).to(torch.bfloat16).eval()
    unet.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.inference_mode():
        for name, parameter in unet.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(float("norm" in name and name.endswith("weight")))
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        output = unet(
            torch.randn(1, 4, 16, 16).bfloat16(),
            torch.tensor([500.0]),
            torch.randn(1, 77, 2048).bfloat16(),
            added=torch.randn(1, 2816),
        )
    assert output.shape == (1, 4, 16, 16)
    assert output.isfinite().all()
    assert output.std() > 0
