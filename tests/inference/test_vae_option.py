"""`--vae`: an autoencoder from a folder, a file, a checkpoint or a URL takes the place of a checkpoint's own."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file

from pipeline.config import RunConfig
from pipeline.errors import CheckpointError
from pipeline.inference.checkpoint_info import read_checkpoint_info
from pipeline.inference.loaded_model import load_model
from pipeline.inference.node_cache import local_vae
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.checkpoint.weights import weights_digest
from pipeline.models.configs import EMBEDDED
from pipeline.storage import write_bytes
from pipeline.tasks.rows import Row
from tests.autoencoder_checkpoints import AutoencoderKind, small_autoencoder
from tests.checkpoints import tiny_checkpoint
from tests.row_images import image_on

WEIGHTS = "diffusion_pytorch_model.safetensors"
IN_SINGLE_FILES = (
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"mid_block\.resnets\.0", r"mid.block_1"),
    (r"mid_block\.resnets\.1", r"mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    *((rf"decoder\.up_blocks\.{i}\.resnets\.(\d)", rf"decoder.up.{3 - i}.block.\1") for i in range(4)),
    *((rf"decoder\.up_blocks\.{i}\.upsamplers\.0", rf"decoder.up.{3 - i}.upsample") for i in range(4)),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def save_single_file(component: Path, path: Path, prefix: str) -> Path:
    """Save an autoencoder under the names of single files, its attention as 1x1 convolutions."""
    tensors: dict[str, torch.Tensor] = {f"{prefix}loss.logvar": torch.zeros(())}
    for name, tensor in load_file(component / WEIGHTS).items():
        for pattern, stored in IN_SINGLE_FILES:
            name = re.sub(pattern, stored, name)
        is_projection = ".attn_1." in name and tensor.ndim == 2
        tensors[prefix + name] = (tensor[:, :, None, None] if is_projection else tensor).contiguous()
    if prefix:
        tensors |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "alphas_cumprod": torch.zeros(9)}
    save_file(tensors, path)
    return path


def in_folder(component: Path, folder: Path) -> Path:
    return component


def in_checkpoint(component: Path, folder: Path) -> Path:
    (folder / "other").mkdir()
    shutil.copytree(component, folder / "other" / "vae")
    (folder / "other" / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    return folder / "other"


def in_plain_file(component: Path, folder: Path) -> Path:
    return Path(shutil.copy(component / WEIGHTS, folder / "other.safetensors"))


def in_single_file(component: Path, folder: Path) -> Path:
    return save_single_file(component, folder / "other.safetensors", "")


def in_whole_checkpoint_file(component: Path, folder: Path) -> Path:
    return save_single_file(component, folder / "other.safetensors", "first_stage_model.")


def image_of(config: RunConfig) -> np.ndarray:
    loaded = load_model(config, "cpu")
    row = Row(prompt="a red circle", seed=5, num_inference_steps=3, sampler="ddim")
    return image_on(loaded.engine, loaded.task, row)


def reference_of(checkpoint: Path, vae: Path, kind: Any) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, vae=kind.from_pretrained(vae))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    [image], _ = pipeline("a red circle", num_inference_steps=3, generator=generator, return_dict=False)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    "form",
    [in_folder, in_checkpoint, in_plain_file, in_single_file, in_whole_checkpoint_file],
    ids=lambda f: f.__name__,
)
def test_pictures_with_another_autoencoder_are_diffusers(
    checkpoint: Path, tmp_path: Path, form: Callable[[Path, Path], Path]
) -> None:
    # a file does not say its scale, which is then the checkpoint's
    component = small_autoencoder(tmp_path / "vae", "plain", scaling_factor=0.18215)
    config = RunConfig(task="generate", model=str(checkpoint), vae=str(form(component, tmp_path)))
    read_checkpoint_info(config)
    actual = image_of(config)
    assert np.abs(actual - reference_of(checkpoint, component, AutoencoderKL)).max() <= 1
    assert np.abs(actual.astype(int) - image_of(replace(config, vae=None))).max() > 1


@pytest.mark.parametrize("name", ["vae", "taesd.safetensors"])
def test_taesd_is_used_from_a_folder_and_from_a_file(checkpoint: Path, tmp_path: Path, name: str) -> None:
    # as in TAESD itself, since a file does not say its sizes
    sizes = {"encoder_block_out_channels": [64] * 4, "decoder_block_out_channels": [64] * 4}
    blocks = {"num_encoder_blocks": [1, 3, 3, 3], "num_decoder_blocks": [3, 3, 3, 1]}
    small_autoencoder(tmp_path / "vae", "tiny", **sizes, **blocks)
    shutil.copy(tmp_path / "vae" / WEIGHTS, tmp_path / "taesd.safetensors")
    config = RunConfig(task="generate", model=str(checkpoint), vae=str(tmp_path / name))
    expected = reference_of(checkpoint, tmp_path / "vae", AutoencoderTiny)
    assert np.abs(image_of(config) - expected).max() <= 1


def test_the_weights_of_a_run_are_those_in_use(checkpoint: Path, tmp_path: Path) -> None:
    own, other = checkpoint / "vae", small_autoencoder(tmp_path / "vae", "plain")
    digest = weights_digest(checkpoint, half=False)
    assert weights_digest(checkpoint, half=False, vae=own) == digest
    assert weights_digest(checkpoint, half=False, vae=other) != digest
    loaded = load_stack(checkpoint, vae=other)
    assert loaded.weights_sha256 == weights_digest(checkpoint, half=False, vae=other)
    assert loaded.vae_sha256 is not None and load_stack(checkpoint).vae_sha256 is None


def test_the_weights_of_an_autoencoder_that_is_replaced_may_be_missing(checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "without")
    (model / "vae" / WEIGHTS).unlink()
    config = RunConfig(task="generate", model=str(model), vae=str(checkpoint / "vae"))
    assert (image_of(config) == image_of(replace(config, model=str(checkpoint), vae=None))).all()
    assert (
        read_checkpoint_info(config).size_bytes
        == read_checkpoint_info(replace(config, model=str(checkpoint))).size_bytes
    )


def test_an_autoencoder_at_a_url_is_copied_without_what_is_not_used(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    for path in (checkpoint / "vae").iterdir():
        write_bytes(f"memory://vaes/one/vae/{path.name}", path.read_bytes())
    write_bytes("memory://vaes/one/vae/diffusion_pytorch_model.bin", b"unused")
    write_bytes("memory://vaes/one/model_index.json", (checkpoint / "model_index.json").read_bytes())
    write_bytes("memory://vaes/file.safetensors", (checkpoint / "vae" / WEIGHTS).read_bytes())
    for vae in ("memory://vaes/one", "memory://vaes/one/vae"):
        folder = local_vae(vae)
        assert {path.name for path in folder.iterdir()} == {"config.json", WEIGHTS}
    assert local_vae("memory://vaes/file.safetensors").read_bytes() == (checkpoint / "vae" / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match="memory://vaes: holds no config.json"):
        local_vae("memory://vaes")


def test_an_embedded_model_gives_its_autoencoder() -> None:
    assert local_vae("shapes") == EMBEDDED / "shapes" / ("vae" if (EMBEDDED / "shapes" / "vae").exists() else "vqvae")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("plain", {"latent_channels": 16}, "its latents have 16 channels at 1/8 of the image's size; the checkpoint's"),
        ("plain", {"shift_factor": 0.1159}, "shift_factor is 0.1159"),
        ("normalized", {}, "supported for SDXL alone"),
        (
            "plain",
            {
                "block_out_channels": (32, 32, 32),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
            },
            "its latents have 4 channels at 1/4 of the image's size; the checkpoint's own have 4 at 1/8",
        ),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused_in_one_line(
    checkpoint: Path, tmp_path: Path, kind: AutoencoderKind, options: dict, message: str
) -> None:
    vae = small_autoencoder(tmp_path / "vae", kind, **options)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint_info(RunConfig(task="generate", model=str(checkpoint), vae=str(vae)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_autoencoder_are_refused_by_what_they_are(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "vae.ckpt").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    save_file({"unet.to_q.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    for name, message in {
        "nowhere": "no such file or folder, and no embedded model of this name",
        "empty": "holds no config.json",
        "vae.ckpt": "is a pickle",
        "broken.safetensors": "is not a readable safetensors file",
        "lora.safetensors": "holds no autoencoder; it is a LoRA; give it as --lora NAME=",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint_info(RunConfig(task="generate", model=str(checkpoint), vae=str(tmp_path / name)))
    with pytest.raises(CheckpointError, match="its class is UNet2DConditionModel"):
        read_checkpoint_info(RunConfig(task="generate", model=str(checkpoint), vae=str(checkpoint / "unet")))
