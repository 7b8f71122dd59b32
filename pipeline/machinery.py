"""What an actor holds: a model, a task, a lane engine, and the thread that runs rows through them."""

from dataclasses import dataclass

import torch

from pipeline.config import RunConfig
from pipeline.diffusion.engine import LaneEngine
from pipeline.lane_thread import LaneThread, Made, Outcome, Task

__all__ = ["LaneThread", "Machinery", "Made", "Outcome", "Task", "load_machinery"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machinery:
    """A task, the engine that it runs on, and what they are."""

    task: Task
    engine: LaneEngine
    model: str
    weights_sha256: str
    device: str
    dtype: str


def load_machinery(config: RunConfig, device: str) -> Machinery:
    """The checkpoint that the run names, ready to run its task; CheckpointError says what is wrong with it."""
    from pipeline.checkpoint_files import local_checkpoint  # here: a machinery of another kind needs no networks
    from pipeline.models.checkpoint import load_stack
    from pipeline.tasks.generate import Generate
    from pipeline.tasks.inpaint import Inpaint
    from pipeline.tasks.upscale import Upscale

    tasks = {"generate": Generate, "inpaint": Inpaint, "upscale": Upscale}
    torch.set_num_threads(config.threads)
    dtype = config.dtype or ("float16" if device == "cuda" else "float32")
    stack = load_stack(local_checkpoint(config.model), device=device, dtype=getattr(torch, dtype))
    return Machinery(
        task=tasks[config.task](stack, config.defaults),
        engine=LaneEngine(stack.denoise, lanes=config.lanes, device=stack.device, dtype=stack.dtype),
        model=stack.name,
        weights_sha256=stack.weights_sha256,
        device=f"cuda ({torch.cuda.get_device_name(stack.device)})" if device == "cuda" else device,
        dtype=dtype,
    )
