"""The model of an actor: a task, and the lane engine that it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from pipeline.config import RunConfig
from pipeline.diffusion.engine import LaneEngine
from pipeline.diffusion.options import OVERRIDES
from pipeline.errors import CheckpointError
from pipeline.inference.task import Task

if TYPE_CHECKING:  # tests load models without networks
    from pipeline.models.stack import Stack


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A task with its engine, and the names under which the provenance records them."""

    task: Task
    engine: LaneEngine
    model: str
    weights_sha256: str
    device: str
    dtype: str
    vae_sha256: str | None = None
    """The sha256 of the autoencoder that replaces the checkpoint's; None if it has its own."""
    embedding_sha256: Mapping[str, str] = field(default_factory=dict)
    """The sha256 of the run's textual inversions by name."""
    lora_sha256: Mapping[str, str] = field(default_factory=dict)
    """The sha256 of the run's LoRAs by name."""


def device_name(device: str) -> str:
    """Return the provenance's name of "cuda" or "cpu": with the GPU's model."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device == "cuda" else device


def build_task(config: RunConfig, stack: "Stack") -> Task:
    """Return the run's task on a stack; CheckpointError if the stack cannot be used for it."""
    from pipeline.tasks.generate import Generate
    from pipeline.tasks.inpaint import Inpaint
    from pipeline.tasks.requests import check_default_sampler, read_schedule
    from pipeline.tasks.upscale import Upscale

    stack = override_schedule(config, stack)
    schedule = read_schedule(stack.name, stack.schedule_config)
    sampler = config.defaults.sampler or stack.generation_config.get("sampler") or schedule.sampler
    check_default_sampler(stack.name, schedule, sampler)
    tasks = {"generate": Generate, "inpaint": Inpaint, "upscale": Upscale}
    return tasks[config.task](stack, config.defaults)


def override_schedule(config: RunConfig, stack: "Stack") -> "Stack":
    """Return the stack with the run's options in its scheduler config, and their flags for the messages."""
    given = {
        "timestep_spacing": (config.timestep_spacing, "--timestep-spacing"),
        "prediction_type": (config.prediction_type, "--prediction-type"),
        "rescale_betas_zero_snr": (config.zero_terminal_snr, "--zero-terminal-snr"),
    }
    values = {name: value for name, (value, _) in given.items() if value is not None}
    flags = {name: given[name][1] for name, value in values.items() if value is not False}  # any sampler can go without
    return replace(stack, schedule_config={**stack.schedule_config, **values, OVERRIDES: flags}) if values else stack


def add_embeddings(config: RunConfig, stack: "Stack") -> None:
    """Add the run's textual inversions to the stack's text encoders; CheckpointError if one does not fit."""
    from pipeline.inference.node_cache import local_file
    from pipeline.models.checkpoint.textual_inversion import add_textual_inversion

    if config.embeddings and stack.text is None:
        raise CheckpointError(f"{stack.name}: has no text encoder; leave out --embedding")
    for name, path in config.embeddings:
        try:
            add_textual_inversion(stack.text.encoders if stack.text else (), name, local_file(path))
        except CheckpointError as error:
            raise CheckpointError(f"--embedding {name}: {error}") from None


def add_loras(config: RunConfig, stack: "Stack") -> "Stack":
    """Return the stack with the run's LoRAs; CheckpointError if one does not fit. On "meta", only headers are read."""
    from pipeline.inference.node_cache import local_lora
    from pipeline.models.checkpoint.lora import Lora, read_lora
    from pipeline.models.lora import Adapters

    loras: dict[str, Lora] = {}
    for name, path in config.loras:
        try:
            loras[name] = read_lora(local_lora(path), stack.networks, headers_only=stack.device.type == "meta")
        except CheckpointError as error:
            raise CheckpointError(f"--lora {name}: {error}") from None
    return replace(stack, adapters=Adapters(stack.networks, loras)) if loras else stack


def load_model(config: RunConfig, device: str) -> LoadedModel:
    """Load the run's checkpoint for its task; CheckpointError if it cannot be loaded or is made for another task."""
    from pipeline.inference.node_cache import local_checkpoint, local_file, local_vae, single_file_options
    from pipeline.models.checkpoint.folder import load_stack
    from pipeline.models.checkpoint.weights import file_digest

    torch.set_num_threads(config.threads)
    dtype = config.dtype_on(device)
    stack = load_stack(
        local_checkpoint(config.model, half=dtype == "float16", options=single_file_options(config)),
        device=device,
        dtype=getattr(torch, dtype),
        vae=None if config.vae is None else local_vae(config.vae),
    )
    add_embeddings(config, stack)
    stack = add_loras(config, stack)
    return LoadedModel(
        task=build_task(config, stack),
        engine=LaneEngine(stack.denoise, lanes=config.lanes, device=stack.device, dtype=stack.dtype),
        model=stack.name,
        weights_sha256=stack.weights_sha256,
        vae_sha256=stack.vae_sha256,
        device=device_name(device),
        dtype=dtype,
        embedding_sha256={name: file_digest(local_file(path)) for name, path in config.embeddings},
        lora_sha256=stack.adapters.sha256,
    )
