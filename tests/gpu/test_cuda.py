"""The whole stack on a GPU, against itself on CPUs."""

import numpy as np
import pytest
import torch

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.tasks.generate import Generate
from pipeline.tasks.rows import Row

pytestmark = pytest.mark.gpu

PROMPTS = ("a large red circle on a white background", "a small blue star left of a green heart on a black background")


def made_on(device: str, dtype: torch.dtype = torch.float32) -> tuple[np.ndarray, LaneEngine]:
    """Pictures (B, H, W, 3) of PROMPTS."""
    task = Generate(load_stack(EMBEDDED / "shapes", device=device, dtype=dtype), RowDefaults())
    engine = LaneEngine(task.stack.denoise, lanes=4, device=task.stack.device, dtype=dtype)
    rows = [task.prepare(Row(prompt=prompt, seed=seed)) for seed, prompt in enumerate(PROMPTS)]
    pictures: dict[object, np.ndarray] = {}
    for key, latents in engine.run(task.request(index, row) for index, row in enumerate(rows)):
        assert isinstance(latents, torch.Tensor)
        pictures[key] = task.decode(latents, rows[int(str(key))])
    return np.stack([pictures[index] for index in range(len(rows))]), engine


def test_a_gpu_makes_the_pictures_that_a_cpu_makes() -> None:
    ours, engine = made_on("cuda")
    theirs, _ = made_on("cpu")
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 3
    assert engine.stats.memory_bytes > 2**20


def test_half_precision_makes_nearly_the_same() -> None:
    ours, _ = made_on("cuda", torch.float16)
    theirs, _ = made_on("cpu")
    assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 3
