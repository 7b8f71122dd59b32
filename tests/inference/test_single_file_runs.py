"""Runs on a single file: the driver and the actors load it as they load a folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import CheckpointError
from pipeline.inference.checkpoint_info import read_checkpoint_info
from pipeline.inference.loaded_model import load_model
from pipeline.inference.node_cache import local_checkpoint
from pipeline.models.checkpoint.single_file import SingleFileOptions
from pipeline.models.checkpoint.weights import weights_digest
from pipeline.storage import write_bytes
from pipeline.tasks.rows import Row
from tests.checkpoints import tiny_checkpoint
from tests.row_images import image_on
from tests.single_files import write_single_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("single") / "sd21", "sd21")


@pytest.fixture
def config(tmp_path: Path, source: Path) -> RunConfig:
    file = write_single_file(source, tmp_path / "model.safetensors", "sd2")
    defaults = RowDefaults(width=64, height=64, num_inference_steps=2)
    return RunConfig(task="generate", model=str(file), tokenizer=str(source / "tokenizer"), defaults=defaults)


def picture_of(config: RunConfig) -> np.ndarray:
    loaded = load_model(config, "cpu")
    return image_on(loaded.engine, loaded.task, Row(prompt="a red circle", seed=5))


def test_the_drivers_facts_and_hash_are_those_of_the_file(config: RunConfig) -> None:
    info, file = read_checkpoint_info(config), Path(config.model)
    assert info.folder is not None and info.folder.name == "model"
    assert (info.size_bytes, info.native_pixels) == (file.stat().st_size, 512 * 512)
    digest = weights_digest(info.folder, half=False)
    assert load_model(config, "cpu").weights_sha256 == digest
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, file)
    changed = read_checkpoint_info(config).folder
    assert changed is not None and weights_digest(changed, half=False) != digest


def test_weights_are_not_copied_and_a_file_is_opened_once(config: RunConfig, cache: Path, source: Path) -> None:
    options = SingleFileOptions(tokenizer=source / "tokenizer")
    folder = local_checkpoint(config.model, options=options)
    written = (folder / "model_index.json").stat().st_mtime_ns
    assert local_checkpoint(config.model, options=options) == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == written
    sizes = [path.stat().st_size for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(sizes) < Path(config.model).stat().st_size / 4
    with pytest.raises(CheckpointError, match="--tokenizer is for single files"):
        local_checkpoint(str(source), options=options)


def test_a_file_at_a_url_makes_the_images_of_the_local_one(config: RunConfig) -> None:
    write_bytes("memory://models/sub/model.safetensors", Path(config.model).read_bytes())
    remote = replace(config, model="memory://models/sub/model.safetensors")
    assert read_checkpoint_info(remote).size_bytes == Path(config.model).stat().st_size
    assert np.array_equal(picture_of(remote), picture_of(config))


def test_what_a_run_says_of_predictions_also_tells_the_native_size(config: RunConfig) -> None:
    predicts_v = replace(config, prediction_type="v_prediction")
    assert read_checkpoint_info(predicts_v).native_pixels == 768 * 768  # as Stable Diffusion 2's 768-pixel model
    assert np.abs(picture_of(predicts_v).astype(int) - picture_of(config)).max() > 1


def test_a_file_without_an_autoencoder_needs_another_one(config: RunConfig, source: Path) -> None:
    expected = picture_of(config)
    tensors = load_file(config.model)
    save_file({name: value for name, value in tensors.items() if not name.startswith("first_stage")}, config.model)
    with pytest.raises(CheckpointError, match="has no autoencoder .*; a run takes one by --vae"):
        read_checkpoint_info(config)
    with_vae = replace(config, vae=str(source / "vae"))
    assert read_checkpoint_info(with_vae).vae == source / "vae"
    assert np.abs(picture_of(with_vae).astype(int) - expected).max() <= 1


def test_a_changed_tokenizer_is_opened_again(config: RunConfig, tmp_path: Path, source: Path) -> None:
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    own = SingleFileOptions(tokenizer=tmp_path / "tokenizer")
    first = local_checkpoint(config.model, options=own)
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert local_checkpoint(config.model, options=own) != first
