"""Tiny trained checkpoints, made once per test session."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.training.recipes.autoencoder import train_autoencoder
from pipeline.training.recipes.clip import train_clip
from pipeline.training.recipes.diffusion import train_diffusion
from tests.training.tiny_recipes import AUTOENCODER, CLIP, DIFFUSION, copy_of


@pytest.fixture(scope="session")
def components(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the CLIP and the autoencoder recipe. Tests must not change it."""
    folder = tmp_path_factory.mktemp("components")
    train_clip(CLIP, folder)
    train_autoencoder(AUTOENCODER, folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(components: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image checkpoint. Tests must not change it."""
    folder = copy_of(components, tmp_path_factory.mktemp("checkpoint"), "vae")
    train_diffusion(DIFFUSION, folder)
    return folder


@pytest.fixture(scope="session")
def frozen_clip_checkpoint(components: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image checkpoint with the text encoder of the CLIP. Tests must not change it."""
    folder = copy_of(components, tmp_path_factory.mktemp("frozen-clip"), "vae", "clip")
    train_diffusion(replace(DIFFUSION, conditioning="frozen-clip"), folder)
    return folder
