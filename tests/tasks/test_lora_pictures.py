"""Pictures of rows with LoRAs against diffusers' pipelines, on small random checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import load_file

from pipeline.adapters import AdapterWeight, NamedPath
from pipeline.config import RowDefaults, RunConfig
from pipeline.diffusion.engine import LaneEngine
from pipeline.inference.loaded_model import add_loras
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.stack import Stack
from pipeline.tasks.generate import Generate
from pipeline.tasks.rows import Row
from tests.checkpoints import tiny_checkpoint
from tests.family_checkpoints import small_checkpoint
from tests.lora_checkpoints import (
    ATTENTION,
    FORMS,
    random_factors,
    save,
    save_diffusers,
    save_kohya,
    save_old_diffusers,
)

ROW: dict[str, Any] = {"prompt": "a red circle", "seed": 4, "num_inference_steps": 4, "guidance_scale": 4.0}
PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / family
    return tiny_checkpoint(folder, "sd15") if family == "sd15" else small_checkpoint(folder, "sdxl")


def stack_with(folder: Path, loras: dict[str, Path]) -> Stack:
    named = tuple(NamedPath(name, str(path)) for name, path in loras.items())
    return add_loras(RunConfig(task="generate", loras=named), load_stack(folder))


def pictures(stack: Stack, rows: Sequence[dict[str, Any]], lanes: int = 4) -> list[np.ndarray]:
    task = Generate(stack, RowDefaults())
    prepared = [task.prepare(Row(**row)) for row in rows]
    engine = LaneEngine(stack.denoise, lanes=lanes, device=stack.device, dtype=stack.dtype)
    latents = dict(engine.run(task.request(index, row) for index, row in enumerate(prepared)))
    return [task.decode(latents[index], row) for index, row in enumerate(prepared)]


def reference(folder: Path, family: str, loras: dict[str, Path], used: dict[str, float]) -> np.ndarray:
    pipeline = PIPELINES[family].from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for name, path in loras.items():
        pipeline.load_lora_weights(str(path), adapter_name=name)
    pipeline.set_adapters(list(used), list(used.values()))
    generator = torch.Generator().manual_seed(ROW["seed"])
    image = pipeline(ROW["prompt"], num_inference_steps=4, guidance_scale=4.0, generator=generator).images[0]
    return np.asarray(image)


def levels_apart(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    assert theirs.std() > 1
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


def weights(used: dict[str, float]) -> tuple[AdapterWeight, ...]:
    return tuple(AdapterWeight(name, weight) for name, weight in used.items())


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_file_gives_diffusers_picture(folder: Path, family: str, form: str, tmp_path: Path) -> None:
    stack = load_stack(folder)
    path = FORMS[form](tmp_path / "style.safetensors", stack, random_factors(stack))
    with_lora = stack_with(folder, {"style": path})
    [ours, plain] = pictures(with_lora, [ROW | {"loras": "style:0.7"}, ROW])
    if form == "kohya-single-file" and family == "sd15":  # diffusers knows these paths for SDXL alone
        path = FORMS["kohya"](tmp_path / "reference.safetensors", stack, random_factors(stack))
    assert levels_apart(ours, reference(folder, family, {"style": path}, {"style": 0.7})) <= 1
    assert levels_apart(ours, plain) > 10
    assert (plain == pictures(stack, [ROW])[0]).all()


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_attention_processors_of_old_diffusers_give_diffusers_picture(
    folder: Path, family: str, prefix: str, tmp_path: Path
) -> None:
    factors = random_factors(load_stack(folder), endings=ATTENTION, networks=["unet"])
    path = save_old_diffusers(tmp_path / "style.safetensors", factors, prefix=prefix)
    theirs = save_old_diffusers(tmp_path / "reference.safetensors", factors)  # diffusers needs the prefix by now
    [ours] = pictures(stack_with(folder, {"style": path}), [ROW | {"loras": "style"}])
    assert levels_apart(ours, reference(folder, family, {"style": theirs}, {"style": 1.0})) <= 1


def test_two_loras_with_weights_give_diffusers_picture(folder: Path, family: str, tmp_path: Path) -> None:
    stack = load_stack(folder)
    one = save_kohya(tmp_path / "one.safetensors", stack, random_factors(stack, seed=1))
    two = save_kohya(
        tmp_path / "two.safetensors", stack, random_factors(stack, seed=2, endings=ATTENTION, networks=["unet"])
    )
    loras, used = {"one": one, "two": two}, {"one": 0.7, "two": -0.4}
    [ours] = pictures(stack_with(folder, loras), [ROW | {"loras": weights(used)}])
    assert levels_apart(ours, reference(folder, family, loras, used)) <= 1


def test_convolutions_and_embeddings_of_the_time_give_diffusers_picture(
    folder: Path, family: str, tmp_path: Path
) -> None:
    stack = load_stack(folder)
    endings = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "to_q", "samplers.0.conv")
    factors = random_factors(stack, endings=endings, networks=["unet"], size=0.15)
    path = save_kohya(tmp_path / "style.safetensors", stack, factors)
    [ours, plain] = pictures(stack_with(folder, {"style": path}), [ROW | {"loras": "style:0.7"}, ROW])
    assert levels_apart(ours, reference(folder, family, {"style": path}, {"style": 0.7})) <= 1
    assert (plain == pictures(stack, [ROW])[0]).all()


def test_biases_of_low_rank_terms_give_diffusers_picture(folder: Path, family: str, tmp_path: Path) -> None:
    factors = random_factors(load_stack(folder), endings=(*ATTENTION, "proj_in"), networks=["unet"])
    tensors = load_file(save_diffusers(tmp_path / "a.safetensors", factors, scale=False))
    ups = [key for key in tensors if key.endswith("lora_B.weight")]
    generator = torch.Generator().manual_seed(3)
    biases = {key: torch.randn(len(tensors[key]), generator=generator) / 4 for key in ups}
    path = save(tmp_path / "style.safetensors", tensors | {key[:-6] + "bias": bias for key, bias in biases.items()})
    [ours, plain] = pictures(
        stack_with(folder, {"style": path, "other": tmp_path / "a.safetensors"}), [ROW | {"loras": "style:0.7"}, ROW]
    )
    assert levels_apart(ours, reference(folder, family, {"style": path}, {"style": 0.7})) <= 1
    assert levels_apart(ours, plain) > 10


def test_a_projection_of_the_pooled_text_is_changed(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "sdxl", "sdxl")
    changed = load_stack(folder)
    factors = random_factors(changed, endings=("text_projection",))
    [(down, up, alpha)] = factors.values()
    path = save_kohya(tmp_path / "style.safetensors", changed, factors)
    [ours, plain] = pictures(stack_with(folder, {"style": path}), [ROW | {"loras": "style:5"}, ROW])
    changed.networks["text_encoder_2"].get_parameter("text_projection.weight").add_(5 * alpha / len(down) * up @ down)
    [expected] = pictures(changed, [ROW])
    assert levels_apart(ours, expected) <= 1
    assert levels_apart(ours, plain) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loras_run_in_half_precision(folder: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    stack = load_stack(folder, dtype=dtype)
    endings = {"lanes": ATTENTION, "merged": (*ATTENTION, "conv1")}
    named = tuple(
        NamedPath(
            name,
            str(save_kohya(tmp_path / f"{name}.safetensors", stack, random_factors(stack, endings=ends, size=0.1))),
        )
        for name, ends in endings.items()
    )
    rows = [ROW | {"loras": choice} for choice in ("lanes:0.5", "merged:0.5", "lanes:0.5, merged:-0.2")]
    with_loras = add_loras(RunConfig(task="generate", loras=named), stack)
    exact = add_loras(RunConfig(task="generate", loras=named), load_stack(folder))
    for ours, theirs in zip(pictures(with_loras, rows), pictures(exact, rows), strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 8


def test_rows_with_different_loras_share_calls(folder: Path, tmp_path: Path) -> None:
    stack = load_stack(folder)
    loras = {
        name: save_kohya(tmp_path / f"{name}.safetensors", stack, random_factors(stack, seed=seed, networks=["unet"]))
        for seed, name in enumerate(("one", "two", "three"))
    }
    task = Generate(stack_with(folder, loras), RowDefaults())
    engine = LaneEngine(task.stack.denoise, lanes=10, device="cpu", dtype=torch.float32)
    choices = ["", "one", "two:0.5", "one:0.3, two:0.4", "one, two, three"]
    rows = [task.prepare(Row(**ROW | {"seed": index, "loras": choice})) for index, choice in enumerate(choices)]
    latents = dict(engine.run(task.request(index, row) for index, row in enumerate(rows)))
    assert (engine.stats.calls, engine.stats.occupancy) == (len(task.request(0, rows[0]).table), 1.0)
    for index, row in enumerate(rows):
        [(_, isolated)] = engine.run([task.request(index, row)])
        assert torch.equal(isolated, latents[index]), choices[index]
    [(_, plain)] = LaneEngine(stack.denoise, lanes=10, device="cpu", dtype=torch.float32).run(
        [task.request(0, rows[0])]
    )
    assert torch.equal(plain, latents[0])


def test_a_row_has_the_same_bytes_whatever_its_neighbors(folder: Path, family: str, tmp_path: Path) -> None:
    stack = load_stack(folder)
    loras = {
        "one": save_kohya(tmp_path / "one.safetensors", stack, random_factors(stack, seed=1)),
        "two": save_kohya(tmp_path / "two.safetensors", stack, random_factors(stack, seed=2)),
        "locon": save_kohya(
            tmp_path / "locon.safetensors", stack, random_factors(stack, seed=3, endings=("conv1",), size=0.1)
        ),
    }
    choices = ["", "one", "two:0.5", "one:0.3, two:0.4", "locon", "locon:0.5, one", "two:0"]
    rows = [ROW | {"seed": index, "loras": choice} for index, choice in enumerate(choices * 2)]
    stack = stack_with(folder, loras)
    first = pictures(stack, rows, lanes=6)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = pictures(stack_with(folder, loras), [rows[index] for index in order], lanes=6)
    for position, index in enumerate(order):
        assert (shuffled[position] == first[index]).all(), rows[index]
    isolated = pictures(stack, [rows[3]], lanes=6)
    assert (isolated[0] == first[3]).all()
