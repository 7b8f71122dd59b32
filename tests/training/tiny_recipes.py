"""The recipes at a size that trains in a second, and what their tests share."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.training.loop import LoopConfig, Worker
from pipeline.training.recipes.autoencoder import SHAPES_AUTOENCODER
from pipeline.training.recipes.clip import SHAPES_CLIP
from pipeline.training.recipes.diffusion import SHAPES_DIFFUSION

WIDTH = 32
CLIP = replace(
    SHAPES_CLIP,
    width=WIDTH,
    hidden=32,
    embedding=32,
    image_layers=2,
    batch=16,
    loop=LoopConfig(steps=60, learning_rate=3e-3, log_every=10),
)
AUTOENCODER = replace(
    SHAPES_AUTOENCODER,
    model=replace(SHAPES_AUTOENCODER.model, block_out_channels=(16, 32, 32)),
    width=WIDTH,
    batch=8,
    loop=LoopConfig(steps=40, learning_rate=6e-3, warmup_steps=5, log_every=10),
)
DIFFUSION = replace(
    SHAPES_DIFFUSION,
    unet=replace(
        SHAPES_DIFFUSION.unet,
        sample_size=WIDTH // 4,
        block_out_channels=(16, 32, 32),
        attention_head_dim=(2, 2, 2),
        norm_num_groups=8,
        cross_attention_dim=32,
    ),
    width=WIDTH,
    images=64,
    batch=16,
    loop=LoopConfig(steps=24, learning_rate=2e-3, warmup_steps=5, log_every=8),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppingWorker(Worker):
    """A worker that is interrupted when it has made its calls of `local_rows`."""

    calls: Iterator[int]

    def local_rows(self, batch: Tensor) -> Tensor:
        if next(self.calls, None) is None:
            raise KeyboardInterrupt
        return Worker.local_rows(self, batch)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder)]


def copy_of(source: Path, target: Path, *components: str) -> Path:
    """Copy components of the checkpoint `source` to the folder `target` (all of it, if none is named)."""
    target.mkdir(exist_ok=True)
    for path in [source / name for name in components] or source.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy(path, target)
    return target
