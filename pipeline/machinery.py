"""What an actor holds: a model, a task, a lane engine, and the thread that runs rows through them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.diffusion.engine import LaneEngine
from pipeline.lane_thread import LaneThread, Made, Outcome, Task

__all__ = ["LaneThread", "Machinery", "Made", "Outcome", "Task", "load_machinery", "load_score"]

_TEXTS: Final = 4096
"""Whose vectors are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machinery:
    """A task, the engine that it runs on, and what they are."""

    task: Task
    engine: LaneEngine
    model: str
    weights_sha256: str
    device: str
    dtype: str


def load_score(
    model: str, threads: int, device: str, weights_sha256: str | None = None
) -> Callable[[NDArray[np.uint8], str], float]:
    """How well a picture (H, W, 3) fits a text: 100 times the cosine of their CLIP vectors, or 0 where that is below.

    As of Hessel et al. 2021, equation 1, who weigh the cosine by 2.5. Each picture goes through the network alone, so
    that its score depends on it alone. `weights_sha256`: the driver's; CheckpointError if this node's are others."""
    from pipeline.checkpoint_files import check_weights, local_checkpoint
    from pipeline.models.clip import load_clip
    from pipeline.models.weights import weights_digest

    folder = local_checkpoint(model)
    check_weights(model, weights_digest(folder, half=False), weights_sha256)
    clip = load_clip(folder, device=device)
    of_text = lru_cache(maxsize=_TEXTS)(clip.of_text)

    def score(pixels: NDArray[np.uint8], text: str) -> float:
        torch.set_num_threads(threads)
        picture = clip.of_pictures(clip.prepared(pixels)[None])[0]
        return max(100 * float(picture @ of_text(text)), 0.0)

    return score


def device_name(device: str) -> str:
    """What the provenance calls "cuda" or "cpu"."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device == "cuda" else device


def load_machinery(config: RunConfig, device: str) -> Machinery:
    """The checkpoint that the run names, ready to run its task; CheckpointError says what is wrong with it."""
    from pipeline.checkpoint_files import local_checkpoint  # here: a machinery of another kind needs no networks
    from pipeline.models.checkpoint import load_stack
    from pipeline.tasks.generate import Generate
    from pipeline.tasks.inpaint import Inpaint
    from pipeline.tasks.upscale import Upscale

    tasks = {"generate": Generate, "inpaint": Inpaint, "upscale": Upscale}
    torch.set_num_threads(config.threads)
    dtype = config.dtype_on(device)
    stack = load_stack(local_checkpoint(config.model), device=device, dtype=getattr(torch, dtype))
    return Machinery(
        task=tasks[config.task](stack, config.defaults),
        engine=LaneEngine(stack.denoise, lanes=config.lanes, device=stack.device, dtype=stack.dtype),
        model=stack.name,
        weights_sha256=stack.weights_sha256,
        device=device_name(device),
        dtype=dtype,
    )
