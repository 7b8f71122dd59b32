"""The LoRA recipe: its low-rank terms, its styles, a stopped run, and files that PEFT and diffusers load."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import CheckpointError, RunError
from pipeline.models.checkpoint.lora import read_lora
from pipeline.models.checkpoint.lora_kinds import LowRank
from pipeline.training.base_model import load_base_model
from pipeline.training.config import TrainConfig, check_options, configured_recipe, record_options
from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import COLORS
from pipeline.training.data.styles import STYLES, StyledScenes
from pipeline.training.low_rank import LowRankLayers
from pipeline.training.ray_train import run_training
from pipeline.training.recipes.lora import LORA, train_lora
from tests.training.tiny_recipes import StoppingWorker, losses

MANIFESTS = Path(__file__).parents[2] / "manifests"
TINY = replace(LORA, images=32, rank=4, alpha=8.0, loop=replace(LORA.loop, steps=30, learning_rate=0.02, log_every=10))


@pytest.fixture(scope="module")
def lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LoRA. Tests must not change it."""
    folder = tmp_path_factory.mktemp("loras") / "blueprint"
    train_lora(replace(TINY, base_model=str(checkpoint), source=StyledScenes("blueprint")), folder)
    return folder


def merged_output(checkpoint: Path, lora: Path, inputs: tuple[Tensor, ...]) -> Tensor:
    """The base's output with weights W + alpha / rank * up @ down, from the tensors of kohya's file."""
    tensors, unet = load_file(lora / f"{lora.name}.safetensors"), load_base_model(str(checkpoint)).unet
    for name, module in unet.named_modules():
        key = f"lora_unet_{name.replace('.', '_')}"
        if f"{key}.alpha" in tensors:
            down, up = (tensors[f"{key}.lora_{part}.weight"].float().flatten(1) for part in ("down", "up"))
            weight = module.get_parameter("weight")
            weight += (tensors[f"{key}.alpha"] / len(down) * up @ down).view_as(weight)
    return unet(*inputs)


def unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)
    return latents, torch.tensor([20, 700]), states


def test_new_terms_change_nothing_and_trained_ones_are_products_of_low_rank(checkpoint: Path) -> None:
    unet, inputs = load_base_model(str(checkpoint)).unet, unet_inputs()
    before = unet(*inputs)
    layers = LowRankLayers(unet, rank=3, alpha=6.0)
    assert torch.equal(unet(*inputs), before)
    assert {name.split(".")[-1] for name in layers.names} >= {"to_q", "to_k", "to_v", "0", "proj_in", "proj_out"}
    term = next(term for term, name in zip(layers.terms, layers.names, strict=True) if name.endswith("attn2.to_k"))
    nn.init.normal_(term.get_parameter("up.weight"))
    linear = unet.get_submodule(next(name for name in layers.names if name.endswith("attn2.to_k")))
    features = torch.randn(2, 5, 32)
    product = term.get_parameter("up.weight") @ term.get_parameter("down.weight")
    torch.testing.assert_close(linear(features), features @ (linear.get_parameter("weight") + 2 * product).T)


def test_training_lowers_the_loss_and_only_low_rank_tensors_are_saved(lora: Path) -> None:
    values = losses(lora / "lora")
    assert values[-1] < 0.9 * values[0]
    for name, tensor in load_file(lora / "adapter_model.safetensors").items():
        assert min(tensor.flatten(1).shape) == TINY.rank, name


def test_peft_loads_the_folder(checkpoint: Path, lora: Path) -> None:
    inputs = unet_inputs()
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    base = unet(*inputs, return_dict=False)[0]
    adapted = PeftModel.from_pretrained(unet, lora)(*inputs, return_dict=False)[0]
    assert (adapted - base).abs().max() > 0.05
    torch.testing.assert_close(adapted, merged_output(checkpoint, lora, inputs), atol=1e-4, rtol=1e-4)


def test_diffusers_loads_the_single_file(checkpoint: Path, lora: Path) -> None:
    inputs = unet_inputs()
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.load_lora_weights(lora, weight_name=f"{lora.name}.safetensors")
    output = pipeline.unet(*inputs, return_dict=False)[0]
    torch.testing.assert_close(output, merged_output(checkpoint, lora, inputs), atol=1e-4, rtol=1e-4)


def test_both_forms_are_read_as_the_same_low_rank_changes(checkpoint: Path, lora: Path) -> None:
    networks = {"unet": load_base_model(str(checkpoint)).unet}
    forms = [read_lora(path, networks).changes["unet"] for path in (lora, lora / f"{lora.name}.safetensors")]
    assert forms[0].keys() == forms[1].keys()
    for name, change in forms[0].items():
        other = forms[1][name]
        assert isinstance(change, LowRank) and isinstance(other, LowRank)
        assert change.scale == other.scale == TINY.alpha / TINY.rank  # pyright: ignore[reportOptionalOperand]
        assert torch.equal(change.down, other.down) and torch.equal(change.up, other.up)


def test_a_stopped_training_goes_on_with_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    short = replace(TINY, base_model=str(checkpoint), loop=replace(TINY.loop, steps=8, save_every=4))
    train_lora(short, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_lora(short, tmp_path / "parts", StoppingWorker(calls=iter(range(6 * 4 + 2))))
    train_lora(short, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.parametrize("name", STYLES)
def test_a_style_draws_lines_of_its_color_on_its_background(name: str) -> None:
    style = STYLES[name]
    for scene in scenes(5, 0, 20):
        pixels = np.asarray(style.draw(scene)).reshape(-1, 3)
        colors, counts = np.unique(pixels, axis=0, return_counts=True)
        found = {tuple(color) for color, count in zip(colors.tolist(), counts, strict=True) if count >= 4}
        if style.background is not None:
            assert tuple(colors[counts.argmax()].tolist()) == COLORS[style.background]
        expected = {style.line or thing.color for thing in scene.things} - {"black"}
        assert {COLORS[color] for color in expected} <= found


def test_options_configure_the_recipe_and_a_resume_needs_the_same(tmp_path: Path) -> None:
    config = TrainConfig(recipe="lora", output=tmp_path, style="neon", rank=16, alpha=4.0, steps=7)
    recipe = configured_recipe(config)
    assert (recipe.source, recipe.rank, recipe.alpha, recipe.loop.steps) == (StyledScenes("neon"), 16, 4.0, 7)
    record_options(config)
    record_options(replace(config, steps=9))
    with pytest.raises(RunError, match="was trained in it with --style neon --rank 16 --alpha 4.0, not with --style"):
        record_options(replace(config, rank=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"recipe": "shapes-vq", "model": "shapes"},
            "shapes-vq does not take --model; .* are lcm, lora",
        ),
        ({"recipe": "lcm", "rank": 4}, "lcm does not take --rank; the recipes that do are lora"),
        ({"recipe": "lora", "style": "fauve"}, "--style 'fauve' is unknown; known are outlined, blueprint, neon"),
        ({"recipe": "lora", "style": "neon", "data": "own"}, "--data and --style are both given"),
        ({"recipe": "shapes-inpainting", "data": "own"}, "shapes-inpainting does not take --data"),
    ],
)
def test_an_option_that_a_recipe_does_not_take_is_refused(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        check_options(TrainConfig(output=tmp_path, **options))  # pyright: ignore[reportArgumentType]


def test_a_base_that_does_not_fit_leaves_nothing_that_refuses_the_right_one(tmp_path: Path) -> None:
    config = TrainConfig(recipe="lora", output=tmp_path, model="upscaler")
    with pytest.raises(CheckpointError, match="upscaler: its U-Net takes 7 channels, its latents have 4"):
        run_training(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", STYLES)
def test_the_lora_of_each_style_fits_the_embedded_model(name: str) -> None:
    unet = load_base_model("shapes").unet
    lora = read_lora(MANIFESTS / "loras" / f"{name}.safetensors", {"unet": unet})
    assert set(lora.changes["unet"]) == set(LowRankLayers(unet, rank=8, alpha=8.0).names)
