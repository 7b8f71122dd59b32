"""A checkpoint that cannot be loaded is refused by the driver, before any actor starts and before the output exists."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import CheckpointError, RunError
from pipeline.inference.checkpoint_info import read_checkpoint_info
from pipeline.models.configs import EMBEDDED
from pipeline.output.lease import Lease
from pipeline.run.job import prepare_run
from tests.checkpoints import tiny_checkpoint
from tests.family_checkpoints import small_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def config(saved: Path, tmp_path: Path) -> RunConfig:
    model = shutil.copytree(saved, tmp_path / "tiny")
    pq.write_table(pa.table({"id": ["a"], "prompt": ["a red circle"]}), tmp_path / "manifest.parquet")
    manifest, output = str(tmp_path / "manifest.parquet"), str(tmp_path / "out")
    return RunConfig(task="generate", manifest=manifest, output=output, model=str(model))


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / "unet" / WEIGHTS)


def add_half_weights_of_another_network(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")


def cut_weights(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_scheduler(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))


def change_scheduler_option(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.json").write_text("{")


def change_index(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "model_index.json", **entries)


def change_json(path: Path, **entries: Any) -> None:
    values = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def change_tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def change_file(folder: Path) -> None:
        tensors = load_file(folder / "unet" / WEIGHTS)
        tensors["conv_in.bias"] = change(tensors["conv_in.bias"])
        save_file(tensors, folder / "unet" / WEIGHTS)

    return change_file


def turn_weights_into_a_pickle(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def leave_a_pointer_of_git_lfs(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")


def lose_a_shard(folder: Path) -> None:
    shards = {name: f"diffusion_pytorch_model-0000{name}-of-00002.safetensors" for name in "12"}
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / shards["1"])
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))


def widen_the_cross_attention(folder: Path) -> None:
    change_json(folder / "unet" / "config.json", cross_attention_dim=64)


REFUSED: tuple[tuple[Callable[[Path], None], str], ...] = (
    (remove(f"unet/{WEIGHTS}"), "unet: holds no *.safetensors file"),
    (remove("vae"), "vae/config.json: no such file"),
    (remove("tokenizer"), "tokenizer: holds no vocab.json; a CLIPTokenizer has vocab.json and merges.txt"),
    (remove("tokenizer/merges.txt"), "tokenizer: holds no merges.txt"),
    (remove("scheduler"), "scheduler/scheduler_config.json: no such file"),
    (remove("model_index.json"), "model_index.json"),
    (turn_weights_into_a_pickle, "diffusion_pytorch_model.bin: is a pickle"),
    (leave_a_pointer_of_git_lfs, "it is a pointer of Git LFS"),
    (lose_a_shard, "diffusion_pytorch_model-00002-of-00002.safetensors: no such file; the index beside it names it"),
    (change_tensor(lambda bias: bias[:3].clone()), "tensor conv_in.bias is (3,); unet/config.json makes it (32,)"),
    (change_tensor(lambda bias: bias.to(torch.int8)), "tensor conv_in.bias has the type I8"),
    (widen_the_cross_attention, "unet/config.json makes it (32, 64)"),
    (change_index(unet=["diffusers", "UNetFlat"]), "unet has the unknown class UNetFlat"),
    (change_index(vae=[None, None]), "lists no vae"),
    (change_index(scheduler=None), "lists no scheduler"),
    (change_index(text_encoder=["transformers", "T5EncoderModel"]), "unknown class T5EncoderModel"),
)
REFUSED_XL: tuple[tuple[Callable[[Path], None], str], ...] = (
    (change_index(text_encoder_2=None), "lists no text_encoder_2"),
    (remove("text_encoder_2"), "text_encoder_2/config.json: no such file"),
    (remove("tokenizer_2"), "tokenizer_2: holds no vocab.json"),
    (change_index(requires_aesthetics_score=True), "projection_class_embeddings_input_dim is 72"),
)


@pytest.mark.parametrize(
    ("break_checkpoint", "message"),
    [
        (drop_tensor, "tensor conv_in.bias missing"),
        (add_half_weights_of_another_network, "tensor other is unknown"),
        (cut_weights, "model.safetensors: is not a readable safetensors file"),
        (change_scheduler, "scheduler class FlowMatchEulerDiscreteScheduler is not supported"),
        (change_scheduler_option, "prediction_type 'sample' is not supported by sampler pndm"),
        (break_tokenizer, "cannot be read as a CLIPTokenizer"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_leaves_no_output(
    config: RunConfig, break_checkpoint: Callable[[Path], None], message: str
) -> None:
    break_checkpoint(Path(config.model))
    refuse(config, message)


def refuse(config: RunConfig, message: str) -> None:
    with pytest.raises(RunError) as caught:
        prepare_run(config, Lease(config.output))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(("break_checkpoint", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_broken_checkpoint_is_refused_in_one_line(
    config: RunConfig, break_checkpoint: Callable[[Path], None], message: str
) -> None:
    break_checkpoint(Path(config.model))
    refuse(config, message)


def test_a_broken_sdxl_checkpoint_is_refused_in_one_line(config: RunConfig, tmp_path: Path) -> None:
    saved = small_checkpoint(tmp_path / "sdxl", "sdxl")
    for number, (break_checkpoint, message) in enumerate(REFUSED_XL):
        model = shutil.copytree(saved, tmp_path / str(number))
        break_checkpoint(model)
        refuse(replace(config, model=str(model)), message)


def test_the_command_line_says_one_line_and_the_right_model_can_still_use_the_output(config: RunConfig) -> None:
    broken = shutil.copytree(config.model, Path(f"{config.model}-broken"))
    cut_weights(broken)
    command = [sys.executable, "-m", "jobs.cli", "generate", config.manifest, config.output, "--model", str(broken)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"Error: {broken}/text_encoder/model.safetensors: is not a readable safetensors file")
    assert not Path(config.output).exists()
    lease = Lease(config.output)
    assert prepare_run(config, lease).todo == 1
    lease.release()


def test_a_scheduler_that_another_sampler_replaces_need_not_be_supported(config: RunConfig) -> None:
    change_scheduler_option(Path(config.model))
    read_checkpoint_info(replace(config, defaults=RowDefaults(sampler="ddim")))


def test_a_checkpoint_is_described_without_reading_its_weights(config: RunConfig) -> None:
    info = read_checkpoint_info(config)
    assert (info.downsample_factor, info.native_pixels) == (8, 64 * 64)
    read = [Path(config.model) / name / WEIGHTS for name in ("unet", "vae")]
    read.append(Path(config.model) / "text_encoder" / "model.safetensors")
    assert info.size_bytes == sum(path.stat().st_size for path in read)


def test_a_clip_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    clip = shutil.copytree(EMBEDDED / "shapes-clip", tmp_path / "clip")
    tensors = load_file(clip / "model.safetensors")
    tensors["logit_scale"] = torch.zeros(2)
    save_file(tensors, clip / "model.safetensors")
    for config in (
        RunConfig(task="classify", model=str(clip), labels=("a", "b")),
        RunConfig(task="generate", model="shapes", clip_score=str(clip)),
    ):
        with pytest.raises(CheckpointError, match=r"tensor logit_scale is \(2,\)"):
            read_checkpoint_info(config)
