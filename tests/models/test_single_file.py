"""Single-file checkpoints: the pictures are those of the folder that they were made from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from pipeline.errors import CheckpointError
from pipeline.inference.node_cache import local_checkpoint
from pipeline.models.checkpoint.clip_vocabulary import END, clip_vocabulary, write_tokenizer
from pipeline.models.checkpoint.convert import SingleFileOptions, convert_single_file
from tests.checkpoints import tiny_checkpoint, tiny_upscaler
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
    convert_single_file(file, tmp_path / "converted", SingleFileOptions(tokenizer=sdxl / "tokenizer"))
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
    "jekyll & hyde": [49405, 261, 16343],
    "<lora:x:1>": [283, 2179, 320, 281, 343, 281, 272, 285],
}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl-refiner", "x4-upscaler"])
def test_a_family_is_told_from_its_tensors(tmp_path: Path, family: str) -> None:
    """A conversion writes the tensors of the folder that the file was made from, and the same options."""
    source = {
        "sd1": lambda: tiny_checkpoint(tmp_path / "source", "sd15-inpainting"),
        "sd2": lambda: tiny_checkpoint(tmp_path / "source", "sd21"),
        "sdxl-refiner": lambda: small_checkpoint(tmp_path / "source", "sdxl-refiner"),
        "x4-upscaler": lambda: tiny_upscaler(tmp_path / "source"),
    }[family]()
    heads_of_the_table(source)
    file = write_single_file(source, tmp_path / "model.safetensors", family)
    tokenizer = source / ("tokenizer_2" if family == "sdxl-refiner" else "tokenizer")
    convert_single_file(file, tmp_path / "converted", SingleFileOptions(tokenizer=tokenizer))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (source / name).is_dir():
            expected, actual = weights_of(source / name), weights_of(tmp_path / "converted" / name)
            assert expected.keys() == actual.keys()
            assert all(torch.equal(value, actual[key]) for key, value in expected.items())
    options = [json.loads((folder / "unet/config.json").read_text()) for folder in (source, tmp_path / "converted")]
    for key in ("in_channels", "block_out_channels", "down_block_types", "up_block_types", "use_linear_projection"):
        assert options[0][key] == options[1][key], key


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


REFUSED = {
    "a LoRA; give it as --lora NAME=": {"lora_unet_down_blocks_0.lora_down.weight": torch.ones(4, 4)},
    "a ControlNet, which is not supported yet": {"control_model.input_hint_block.0.weight": torch.ones(4, 4)},
    "an IP-Adapter": {"image_proj.proj.weight": torch.ones(4, 4)},
    "a textual inversion; give it as --embedding NAME=": {"emb_params": torch.ones(4, 4)},
    "an autoencoder alone; give it as --vae ": {"first_stage_model.encoder.conv_in.weight": torch.ones(4, 4)},
    "is FLUX, which is not supported": {"model.diffusion_model.double_blocks.0.img_mod.lin.weight": torch.ones(4, 4)},
    "is Stable Diffusion 3, which": {"model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight": torch.ones(4, 4)},
    "a U-Net alone": {"input_blocks.0.0.weight": torch.ones(4, 4)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_file_of_another_kind_says_what_it_is(tmp_path: Path, message: str) -> None:
    save_file(REFUSED[message], tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        local_checkpoint(str(tmp_path / "m.safetensors"))
    assert "\n" not in str(caught.value)


def test_tensors_without_a_place_are_refused_with_their_count(tmp_path: Path, sdxl: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stabilityai/sdxl-turbo", "hf download stabilityai/sdxl-turbo --local-dir sdxl-turbo"),
        ("nothing", "no such checkpoint folder, and no embedded model"),
    ],
)
def test_a_name_that_is_no_path_says_what_to_do(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        local_checkpoint(name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.ckpt": ""}, "is a pickle"),
        (
            {"model_index.json": '{"_class_name": "FluxPipeline", "transformer": ["a", "b"]}'},
            "is a FluxPipeline, a diff",
        ),
        (
            {"config.json": '{"_class_name": "ControlNetModel"}'},
            "one component of a checkpoint, ControlNetModel; ControlNets are not",
        ),
        (
            {"config.json": '{"_class_name": "AutoencoderKL"}'},
            "is one component of a checkpoint, AutoencoderKL; give it as --vae",
        ),
        ({"adapter_config.json": "{}"}, "is a LoRA in PEFT's form; give it as --lora NAME="),
        ({"m.safetensors": ""}, "m.safetensors in it is not a readable safetensors file"),
    ],
)
def test_a_folder_of_another_kind_says_what_it_is(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        local_checkpoint(str(tmp_path / "model.ckpt" if "model.ckpt" in files else tmp_path))


def test_a_single_file_is_converted_once_and_makes_images(
    tmp_path: Path, sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    file = write_single_file(sdxl, tmp_path / "model.safetensors", "sdxl")
    folder = local_checkpoint(str(file), tokenizer=str(sdxl / "tokenizer"))
    assert folder.name == "model"
    written = (folder / "model_index.json").stat().st_mtime_ns
    assert local_checkpoint(str(file), tokenizer=str(sdxl / "tokenizer")) == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == written
    with pytest.raises(CheckpointError, match="--tokenizer is for single files"):
        local_checkpoint(str(sdxl), tokenizer=str(sdxl / "tokenizer"))
