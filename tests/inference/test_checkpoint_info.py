"""A checkpoint that cannot be loaded is refused by the driver, before any actor starts and before the output exists."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
    with pytest.raises(RunError) as caught:
        prepare_run(config, Lease(config.output))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(config.output).exists()


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
