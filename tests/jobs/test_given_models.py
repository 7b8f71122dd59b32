"""Whatever is given as --model says in one line what it is, before anything is written; `latentmill convert`."""

import json
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs import cli
from pipeline.models.checkpoint.folder import load_stack
from tests.checkpoints import tiny_checkpoint
from tests.single_files import write_single_file

Captured = pytest.CaptureFixture[str]

FILES: Final[dict[str, tuple[str, str]]] = {
    "lora": ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA; give it as --lora NAME={path}"),
    "flux-lora": ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "a LoRA; give it as --lora"),
    "lokr": ("lora_unet_mid_block.lokr_w1", "a LoRA; give it as --lora"),
    "controlnet": ("control_model.input_hint_block.0.weight", "a ControlNet, which is not supported yet"),
    "ip-adapter": ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter, which is not supported yet"),
    "inversion": ("emb_params", "a textual inversion; give it as --embedding NAME={path}"),
    "concept": ("<cat-toy>", "if it is a textual inversion, give it as --embedding NAME={path}"),
    "vae": ("first_stage_model.encoder.conv_in.weight", "an autoencoder alone; give it as --vae {path}"),
    "unet": ("input_blocks.0.0.weight", "a U-Net alone, without autoencoder and text encoder"),
    "whole-unet": ("model.diffusion_model.input_blocks.0.0.weight", "not a supported U-Net"),
    "t5": ("encoder.block.0.layer.0.SelfAttention.k.weight", "a text encoder alone"),
    "flux": ("model.diffusion_model.double_blocks.0.img_mod.lin.weight", "is FLUX, which is not supported"),
    "sd3": ("joint_blocks.0.x_block.attn.proj.weight", "is Stable Diffusion 3, which is not supported"),
    "z-image": ("layers.0.adaLN_modulation.0.weight", "is Z-Image, which is not supported"),
    "sana": ("blocks.0.mlp.inverted_conv.conv.weight", "is Sana, which is not supported"),
    "pixart": ("blocks.0.cross_attn.q_linear.weight", "is PixArt or another transformer, which is not supported"),
    "other": ("model.embed_tokens.weight", "a file of one tensor"),
}
"""A tensor's name in a file of each kind, and what is said of it."""

FOLDERS: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "flux": (
        "model_index.json",
        {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
        "is a FluxPipeline, a diffusion transformer, which is not supported",
    ),
    "cascade": (
        "model_index.json",
        {"_class_name": "StableCascadePriorPipeline", "prior": ["a", "b"]},
        "not supported",
    ),
    "controlnet": ("config.json", {"_class_name": "ControlNetModel"}, "ControlNets are not supported yet"),
    "transformer": ("config.json", {"_class_name": "SD3Transformer2DModel"}, "a diffusion transformer, which is not"),
    "vae": ("config.json", {"_class_name": "AutoencoderKL"}, "is one component of a checkpoint, .*; give it as --vae "),
    "text_encoder": ("config.json", {"architectures": ["CLIPTextModel"]}, "is one component of a checkpoint"),
    "lora": ("adapter_config.json", {}, "is a LoRA in PEFT's form; give it as --lora NAME="),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"id": ["a"], "prompt": ["a red circle"]}), tmp_path / "m.parquet")


def refusal_of(capsys: Captured, model: str) -> str:
    """Return the line that a run with this model ends with; it leaves no output."""
    capsys.readouterr()  # what was printed by saving the model
    assert cli.run(("generate", "m.parquet", "output", "--model", model)) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert not Path("output").exists()
    return error


@pytest.mark.parametrize("kind", FILES)
def test_a_file_says_what_it_is_and_leaves_no_output(capsys: Captured, kind: str) -> None:
    name, message = FILES[kind]
    save_file({name: torch.ones(4, 4)}, f"{kind}.safetensors")
    error = refusal_of(capsys, f"{kind}.safetensors")
    assert message.format(path=f"{kind}.safetensors") in error


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_says_what_it_is_and_leaves_no_output(capsys: Captured, kind: str) -> None:
    name, values, message = FOLDERS[kind]
    Path(kind).mkdir()
    (Path(kind) / name).write_text(json.dumps(values))
    error = refusal_of(capsys, kind)
    start, _, end = message.partition(".*")
    assert start in error
    assert end in error


def test_a_folder_of_one_file_says_what_that_is(capsys: Captured) -> None:
    Path("downloaded").mkdir()
    save_file({"unet.a.lora_A.weight": torch.ones(2, 2)}, "downloaded/pytorch_lora_weights.safetensors")
    assert "pytorch_lora_weights.safetensors in it is a LoRA; give it as --lora" in refusal_of(capsys, "downloaded")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("stabilityai/sdxl-turbo", "hf download stabilityai/sdxl-turbo --local-dir sdxl-turbo"),
        ("nothing", "no such checkpoint folder, and no embedded model of this name"),
        ("missing.safetensors", "missing.safetensors: no such file"),
        ("old.ckpt", "is a pickle, which can run code when it is read; load it with diffusers (from_single_file)"),
        ("memory://models/old.ckpt", "is a pickle"),
        ("broken.safetensors", "is not a readable safetensors file"),
        ("model.gguf", "a checkpoint is a folder with a model_index.json, or a .safetensors file"),
    ],
)
def test_a_path_that_cannot_be_read_says_what_to_do(capsys: Captured, model: str, message: str) -> None:
    for name in ("old.ckpt", "broken.safetensors", "model.gguf"):
        Path(name).write_bytes(b"x")
    assert message in refusal_of(capsys, model)


def test_a_file_without_text_encoder_says_what_is_missing(capsys: Captured) -> None:
    file = write_single_file(tiny_checkpoint(Path("source")), Path("m.safetensors"), "sd1")
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "cond_stage" not in name}, file)
    assert "but no text encoder; give a file that has all" in refusal_of(capsys, "m.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name.startswith("model.")}, file)
    assert "but neither a text encoder nor an autoencoder" in refusal_of(capsys, "m.safetensors")


def test_a_file_is_converted_to_a_folder_that_loads(capsys: Captured) -> None:
    source = tiny_checkpoint(Path("source"))
    write_single_file(source, Path("m.safetensors"), "sd1")
    options = ("--tokenizer", "source/tokenizer", "--prediction-type", "v_prediction", "--zero-terminal-snr")
    assert cli.run(("convert", "m.safetensors", "folder", *options)) == 0
    assert capsys.readouterr().out == "folder is a checkpoint folder; give it as --model folder\n"
    stack = load_stack(Path("folder"))
    assert stack.schedule_config["prediction_type"] == "v_prediction"
    assert stack.schedule_config["rescale_betas_zero_snr"]
    ours, theirs = stack.unet.state_dict(), load_stack(source).unet.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_guess_of_the_prediction_type_is_said(capsys: Captured) -> None:
    write_single_file(tiny_checkpoint(Path("source"), "sd21"), Path("m.safetensors"), "sd2")
    for folder, options, said in (("guessed", (), True), ("said", ("--prediction-type", "epsilon"), False)):
        assert cli.run(("convert", "m.safetensors", folder, "--tokenizer", "source/tokenizer", *options)) == 0
        assert ("does not say what its network predicts; epsilon is taken" in capsys.readouterr().out) == said


def test_a_conversion_that_cannot_be_done_leaves_nothing(capsys: Captured) -> None:
    write_single_file(tiny_checkpoint(Path("source")), Path("m.safetensors"), "sd1")
    before = sorted(path.name for path in Path().iterdir())
    for arguments, message in (
        (("m.safetensors", "source"), "source: exists and is not empty; give a new folder"),
        (("m.safetensors", "new"), "m.safetensors: its text encoder has 640 tokens, CLIP's vocabulary 49408"),
        (("m.safetensors", "new", "--tokenizer", "no"), "--tokenizer no: no such folder"),
        (("source", "new"), "source: is a folder; a checkpoint folder needs no conversion"),
        (("no.safetensors", "new"), "no.safetensors: no such file"),
        (("m.parquet", "new"), "m.parquet: is a file; a checkpoint is a folder"),
    ):
        assert cli.run(("convert", *arguments)) == 1
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == before
