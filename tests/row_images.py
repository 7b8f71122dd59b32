"""The image of one row, from its task to its pixels."""

import numpy as np
import torch

from pipeline.diffusion.engine import LaneEngine
from pipeline.diffusion.request import DenoisingRequest
from pipeline.inference.task import Task
from pipeline.tasks.decode import no_heartbeat
from pipeline.tasks.generate import Generate
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.rows import Row


def image_of(task: Generate | Inpaint, row: Row, *, lanes: int = 2) -> np.ndarray:
    """Return a row's image, on an engine of the task's stack."""
    stack = task.stack
    engine = LaneEngine(stack.denoise, lanes=lanes, device=stack.device, dtype=stack.dtype)
    return image_on(engine, task, row)


def image_on(engine: LaneEngine, task: Task, row: Row) -> np.ndarray:
    """Return a row's image, which is the only row of the engine."""
    prepared = task.prepare(row)
    request = task.request("only", prepared)
    assert isinstance(request, DenoisingRequest)
    [(key, latents)] = engine.run([request])
    assert key == "only"
    assert isinstance(latents, torch.Tensor), latents
    return task.decode(latents, prepared, no_heartbeat)
