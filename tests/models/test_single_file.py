"""Single-file checkpoints: the pictures are those of the folder that they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.errors import CheckpointError
from pipeline.inference.task import RowResult
from pipeline.inference.worker import LaneWorker
from pipeline.models.checkpoint.convert import convert_single_file, refer_to_single_file
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.checkpoint.single_file import SingleFileOptions, read_single_file
from pipeline.tasks.generate import Generate
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.rows import Row
from pipeline.tasks.upscale import Upscale
from tests.checkpoints import tiny_checkpoint, tiny_upscaler
from tests.family_checkpoints import small_checkpoint
from tests.models.test_xl import PROMPT, reference_of
from tests.single_files import write_single_file

BETAS: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PNDM: Final = {
    "_class_name": "PNDMScheduler",
    **BETAS,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
DDIM: Final = {
    "_class_name": "DDIMScheduler",
    **BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}
X4: Final = {**DDIM, "beta_start": 1e-4, "beta_end": 0.02}
ANCESTRAL: Final = {"_class_name": "EulerAncestralDiscreteScheduler", **BETAS, "steps_offset": 1}
EULER: Final = {
    "_class_name": "EulerDiscreteScheduler",
    **BETAS,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("single") / "sdxl", "sdxl")


FAMILIES: dict[str, tuple[Callable[[Path], Path], str, dict[str, Any]]] = {
    "sd1": (lambda folder: tiny_checkpoint(folder, "sd15"), "sd1", PNDM),
    "sd1-inpainting": (lambda folder: tiny_checkpoint(folder, "sd15-inpainting"), "sd1", PNDM),
    "sd1-edit": (lambda folder: small_checkpoint(folder, "instruct-pix2pix"), "sd1", ANCESTRAL),
    "sd2-base": (lambda folder: tiny_checkpoint(folder, "sd21"), "sd2", PNDM),
    "sd2": (lambda folder: tiny_checkpoint(folder, "sd21"), "sd2", DDIM),
    "sdxl": (lambda folder: small_checkpoint(folder, "sdxl"), "sdxl", EULER),
    "sdxl-inpainting": (lambda folder: small_checkpoint(folder, "sdxl-inpainting"), "sdxl", EULER),
    "ssd-1b": (lambda folder: small_checkpoint(folder, "ssd-1b"), "sdxl", EULER),
    "sdxl-refiner": (lambda folder: small_checkpoint(folder, "sdxl-refiner"), "sdxl-refiner", EULER),
    "x4-upscaler": (tiny_upscaler, "x4-upscaler", X4),
}
"""How a small folder of each family is made, the form of its single file, and its published scheduler."""


def as_published(folder: Path, family: str) -> Path:
    """Give a small checkpoint what single files do not say as its family has it: heads, scheduler, size."""
    _, form, scheduler = FAMILIES[family]
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if (folder / name).exists():
            channels = json.loads((folder / name / "config.json").read_text()).get("block_out_channels", ())
            by_width = [max(1, width // 64) for width in channels]
            heads = 8 if form in ("sd1", "x4-upscaler") else by_width
            changes = {"attention_head_dim": heads} if name == "unet" else {"num_attention_heads": 1}
            if family == "x4-upscaler" and name == "unet":
                changes["sample_size"] = 128  # the tile
            change_json(folder / name / "config.json", **changes)
    change_json(folder / "model_index.json", scheduler=["diffusers", scheduler["_class_name"]])
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def picture_of(folder: Path, family: str, **row: Any) -> np.ndarray:
    stack = load_stack(folder)
    tasks: dict[str, Any] = {"sd1-inpainting": Inpaint, "sdxl-inpainting": Inpaint, "x4-upscaler": Upscale}
    task = tasks.get(family, Generate)(stack, RowDefaults())
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:48] = 255
    given: dict[str, Any] = {"prompt": PROMPT, "seed": 5, "num_inference_steps": 3, **row}
    if family in ("sd1", "sd2", "sd2-base", "sdxl", "ssd-1b"):
        given |= {"width": 64, "height": 64}
    else:
        given |= {"pixels": pixels[:32, :32] if family == "x4-upscaler" else pixels}
    if family == "sdxl-refiner":
        given |= {"strength": 0.7}
    if tasks.get(family) is Inpaint:
        given |= {"mask": mask}
    engine = LaneEngine(stack.denoise, lanes=4, device=stack.device, dtype=stack.dtype)
    lanes = LaneWorker(task, engine, threads=1, report=lambda amounts: None)
    [result] = lanes.run([Row(**given)])
    lanes.close()
    assert isinstance(result, RowResult), result
    return result.pixels


def levels_apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).max())


def options_of(source: Path, family: str) -> SingleFileOptions:
    tokenizer = source / ("tokenizer_2" if family == "sdxl-refiner" else "tokenizer")
    return SingleFileOptions(tokenizer=tokenizer, prediction_type="v_prediction" if family == "sd2" else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_its_folder_and_diffusers_are_the_same(tmp_path: Path, family: str) -> None:
    build, form, scheduler = FAMILIES[family]
    source = as_published(build(tmp_path / "source"), family)
    file = write_single_file(source, tmp_path / "model.safetensors", form)
    refer_to_single_file(file, tmp_path / "referring" / "model", options_of(source, family))
    convert_single_file(file, tmp_path / "converted", options_of(source, family))
    expected = picture_of(source, family)
    assert expected.std() > 1  # a flat picture would show nothing
    for folder in (tmp_path / "referring" / "model", tmp_path / "converted"):
        assert levels_apart(picture_of(folder, family), expected) <= 1  # rounding depends on how the files are aligned

    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "converted")
    reference = type(pipeline).from_single_file(str(file), config=str(source), local_files_only=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (source / name).exists():
            theirs, ours = getattr(reference, name).state_dict(), getattr(pipeline, name).state_dict()
            assert theirs.keys() == ours.keys()
            assert all(torch.equal(tensor, ours[key]) for key, tensor in theirs.items())
    assert {key: pipeline.scheduler.config[key] for key in scheduler if key[0] != "_"} == {
        key: value for key, value in scheduler.items() if key[0] != "_"
    }
    if family in ("sd1", "sd2", "sd2-base", "sdxl", "ssd-1b"):
        for each in (pipeline, reference):
            each.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
            options = {"num_inference_steps": 3, "width": 64, "height": 64}
            assert levels_apart(reference_of(each, **options), expected) <= 1


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("*.safetensors")
    return {
        name.removeprefix("text_model."): tensor.squeeze()
        for name, tensor in load_file(path).items()
        if not name.endswith("position_ids")
    }


def test_half_precision_and_float8_are_stored_as_halves(tmp_path: Path, sdxl: Path) -> None:
    file = write_single_file(sdxl, tmp_path / "full.safetensors", "sdxl")
    tensors = load_file(file)
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, tmp_path / "m.safetensors")
    convert_single_file(
        tmp_path / "m.safetensors", tmp_path / "converted", SingleFileOptions(tokenizer=sdxl / "tokenizer")
    )
    weights = weights_of(tmp_path / "converted" / "unet")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    expected = tensors["model.diffusion_model.out.2.bias"].to(torch.float8_e4m3fn).half()
    assert torch.equal(weights["conv_out.bias"], expected)
    options = SingleFileOptions(tokenizer=sdxl / "tokenizer")
    refer_to_single_file(tmp_path / "m.safetensors", tmp_path / "referring", options)
    ours, theirs = (load_stack(tmp_path / name).unet.state_dict() for name in ("referring", "converted"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("extra", "metadata", "expected"),
    [
        ({}, {}, ("epsilon", None)),
        ({"v_pred": torch.ones(0)}, {}, ("v_prediction", None)),
        ({"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, {}, ("v_prediction", True)),
        ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", None)),
    ],
)
def test_what_a_file_says_of_its_prediction_is_in_the_scheduler(
    tmp_path: Path, sdxl: Path, extra: dict[str, torch.Tensor], metadata: dict[str, str], expected: tuple[str, bool]
) -> None:
    file = write_single_file(sdxl, tmp_path / "m.safetensors", "sdxl", extra, **metadata)
    convert_single_file(file, tmp_path / "converted", SingleFileOptions(tokenizer=sdxl / "tokenizer"))
    config = json.loads((tmp_path / "converted/scheduler/scheduler_config.json").read_text())
    assert (config["prediction_type"], config.get("rescale_betas_zero_snr")) == expected


@pytest.mark.parametrize(
    ("extra", "metadata", "message"),
    [
        ({"edm_vpred.sigma_max": torch.ones(1)}, {}, "edm_vpred.sigma_max marks a noise schedule"),
        ({}, {"modelspec.prediction_type": "flow"}, "prediction_type is 'flow'; supported is epsilon or v"),
        ({"v_pred": torch.ones(0)}, {"modelspec.prediction_type": "epsilon"}, "its tensor v_pred marks a v_prediction"),
        ({"model.diffusion_model.out.2.scale_weight": torch.ones(1)}, {}, "scaled float8 weights"),
        ({"edm_mean": torch.ones(4), "edm_std": torch.ones(4)}, {}, "is Playground 2.5"),
    ],
)
def test_a_file_whose_predictions_are_not_supported_is_refused(
    tmp_path: Path, sdxl: Path, extra: dict[str, torch.Tensor], metadata: dict[str, str], message: str
) -> None:
    file = write_single_file(sdxl, tmp_path / "m.safetensors", "sdxl", extra, **metadata)
    with pytest.raises(CheckpointError, match=message):
        read_single_file(file)


def test_a_file_with_missing_or_reshaped_tensors_is_refused(tmp_path: Path, sdxl: Path) -> None:
    tensors = load_file(write_single_file(sdxl, tmp_path / "m.safetensors", "sdxl"))
    name = "model.diffusion_model.middle_block.1.norm.weight"
    without_block = {key: value for key, value in tensors.items() if ".input_blocks.4." not in key}
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != name}, f"lacks {name}, which its unet needs"),
        ({**tensors, name: torch.ones(3)}, rf"{name} is \(3,\); its unet needs \(64,\)"),
        (without_block, "has some tensors of sdxl but not its structure"),
    ):
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(CheckpointError, match=message):
            convert_single_file(tmp_path / "changed.safetensors", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_old_names_and_matrices_are_found(tmp_path: Path) -> None:
    """The first files have no `text_model.`, and some tools save autoencoders as `vae.` with matrices for attention."""
    source = as_published(tiny_checkpoint(tmp_path / "source"), "sd1")
    tensors = load_file(write_single_file(source, tmp_path / "m.safetensors", "sd1"))
    old: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        name = name.replace("transformer.text_model.", "transformer.").replace("first_stage_model.", "vae.")
        old[name] = tensor.flatten(1) if ".attn_1." in name and tensor.ndim == 4 else tensor
    assert old.keys().isdisjoint(name for name in tensors if "stage_model" in name)
    save_file(old, tmp_path / "old.safetensors")
    for file in ("m", "old"):
        convert_single_file(tmp_path / f"{file}.safetensors", tmp_path / file, options_of(source, "sd1"))
    for name in ("vae", "text_encoder"):
        expected, actual = weights_of(tmp_path / "m" / name), weights_of(tmp_path / "old" / name)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(tensor, actual[key]) for key, tensor in expected.items())


def test_large_components_are_written_in_shards(tmp_path: Path, sdxl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, options = write_single_file(sdxl, tmp_path / "m.safetensors", "sdxl"), options_of(sdxl, "sdxl")
    convert_single_file(file, tmp_path / "whole", options)
    monkeypatch.setattr("pipeline.models.checkpoint.convert._SHARD_BYTES", 300_000)
    convert_single_file(file, tmp_path / "sharded", options)
    assert len(list((tmp_path / "sharded" / "unet").glob("*-of-*.safetensors"))) > 2
    whole, sharded = (load_stack(tmp_path / name).unet.state_dict() for name in ("whole", "sharded"))
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "sharded")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in pipeline.unet.state_dict().items())


def test_unknown_tensors_are_refused_with_their_count(tmp_path: Path, sdxl: Path) -> None:
    extra = {"model.diffusion_model.input_blocks.99.0.weight": torch.ones(1), "first_stage_model.x": torch.ones(1)}
    file = write_single_file(sdxl, tmp_path / "m.safetensors", "sdxl", extra)
    with pytest.raises(
        CheckpointError, match=r"2 of its \d+ tensors are unknown to the networks of its family, such as first"
    ):
        convert_single_file(file, tmp_path / "converted", SingleFileOptions(tokenizer=sdxl / "tokenizer"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_vocabulary_that_is_larger_than_the_text_encoders_needs_another(tmp_path: Path, sdxl: Path) -> None:
    file = write_single_file(sdxl, tmp_path / "m.safetensors", "sdxl")
    with pytest.raises(CheckpointError, match=r"has \d+ tokens, CLIP's vocabulary 49408; give another --tokenizer"):
        convert_single_file(file, tmp_path / "converted")
