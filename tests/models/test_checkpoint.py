"""Loading checkpoint folders: every form that people have, and one clear line for what can't be loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.components import load_text_encoder
from pipeline.models.checkpoint.folder import load_stack
from tests.checkpoints import tiny_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_checkpoint(folder, family="sd15")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def test_text_encoder_equals_the_pipelines_own(saved: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(saved)
    prompts = ["a red circle", "", "A Photograph, of 3 cats!"]
    encoder = load_text_encoder(saved / "text_encoder", saved / "tokenizer")
    for prompt, ours in zip(prompts, encoder.encode(prompts), strict=True):
        expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        assert (ours - expected[0]).abs().max() <= 1e-4 * expected.abs().max()


def test_a_long_prompt_is_encoded_in_windows_and_none_of_it_is_lost(saved: Path) -> None:
    encoder = load_text_encoder(saved / "text_encoder", saved / "tokenizer")
    words = ["red"] * encoder.window * 2 + ["circle"]
    long, other = encoder.encode([" ".join(words), " ".join([*words[:-1], "square"])])
    assert len(long) == encoder.chunks(" ".join(words)) * encoder.window > encoder.window
    assert torch.equal(long[: encoder.window], other[: encoder.window])
    assert not torch.equal(long[-encoder.window :], other[-encoder.window :])
    assert len(encoder.encode(["red"], chunks=3)[0]) == 3 * encoder.window


def test_text_tensors_load_with_and_without_the_old_prefix(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    before = load_text_encoder(folder / "text_encoder", folder / "tokenizer").encode(["a red circle"])[0]
    bare = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    for prefix in ("", "text_model."):
        positions = {f"{prefix}embeddings.position_ids": torch.arange(8)[None]}
        save_file({prefix + name: tensor for name, tensor in bare.items()} | positions, path)
        assert torch.equal(
            load_text_encoder(folder / "text_encoder", folder / "tokenizer").encode(["a red circle"])[0], before
        )


def test_shards_and_the_fp16_variant_load(folder: Path) -> None:
    whole = load_stack(folder).unet.state_dict()
    tensors = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / "unet" / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    sharded = load_stack(folder).unet.state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)

    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    both = load_stack(folder).unet.state_dict()
    assert all(torch.equal(whole[name], both[name]) for name in whole)
    for path in [*(folder / "unet").glob("[ab].safetensors"), folder / "unet" / f"{WEIGHTS}.index.json"]:
        path.unlink()
    variant = load_stack(folder).unet.state_dict()
    assert all(torch.equal(half[name].float(), variant[name]) for name in half)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_stack(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_pickle_is_refused(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin: is a pickle" in refused(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / "unet" / WEIGHTS)
    assert "tensor conv_in.bias missing" in refused(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    tensors = load_file(folder / "vae" / WEIGHTS)
    tensors["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(tensors, folder / "vae" / WEIGHTS)
    message = refused(folder)
    assert "tensor decoder.conv_in.bias is (3,)" in message and str(folder / "vae" / WEIGHTS) in message


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    save_file({**tensors, "extra.weight": torch.zeros(1)}, folder / "unet" / WEIGHTS)
    assert "tensor extra.weight is unknown" in refused(folder)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_an_unknown_class_is_named(folder: Path, component: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index[component] = ["diffusers", "Mystery"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert f"{component} has the unknown class Mystery" in refused(folder)


def test_a_config_that_the_networks_do_not_know_is_named(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "addition_embed_type": "text_time"}))
    assert "addition_embed_type is 'text_time'" in refused(folder)
    path.write_text(json.dumps({**config, "down_block_types": ["AttnDownBlock2D"] * 4}))
    assert "unknown class AttnDownBlock2D" in refused(folder)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "tokenizer/vocab.json"])
@pytest.mark.parametrize("content", [None, b"", b"{]", b"\x00" * 64])
def test_a_missing_or_broken_file_is_named(folder: Path, file: str, content: bytes | None) -> None:
    for path in (folder / "tokenizer").glob("tokenizer.json"):
        path.unlink()
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    assert str(folder / Path(file).parts[0]) in refused(folder)


def test_the_digest_changes_with_any_weight_and_config(folder: Path) -> None:
    first = load_stack(folder).weights_sha256
    assert load_stack(folder).weights_sha256 == first
    tensors = load_file(folder / "vae" / WEIGHTS)
    tensors["decoder.conv_in.bias"] += 1
    save_file(tensors, folder / "vae" / WEIGHTS)
    assert load_stack(folder).weights_sha256 != first
