"""A model that returns at once, for tests and benchmarks of everything around it."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.diffusion.engine import Denoiser, LaneEngine
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.request import Conditioning, DenoisingRequest
from pipeline.diffusion.samplers import sampler_table
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.inference.checkpoint_info import CheckpointInfo
from pipeline.inference.loaded_model import LoadedModel
from pipeline.tasks.rows import PreparedRow, Row, RowParameters

SIDE = 64
FACTS = CheckpointInfo(native_pixels=SIDE * SIDE)


class CheapTask:
    """One evaluation a row; the picture is one color, that of the row's seed."""

    def __init__(self) -> None:
        self.table = sampler_table(NoiseScheduleConfig(), "ddim", 1)

    def prepare(self, row: Row) -> PreparedRow:
        parameters = RowParameters(
            prompt=row.prompt or "",
            negative_prompt="",
            seed=row.seed,
            width=SIDE,
            height=SIDE,
            num_inference_steps=1,
            guidance_scale=1.0,
            guidance_rescale=0.0,
            sampler="ddim",
            eta=0.0,
        )
        return PreparedRow(parameters=parameters)

    def request(self, key: Any, row: PreparedRow) -> DenoisingRequest:
        if row.parameters.prompt == "refuse":
            raise ValueError("this prompt is refused")
        return DenoisingRequest(
            key=key,
            table=self.table,
            latents=torch.full((1, 1, 1), float(row.parameters.seed % 251)),
            generator=torch.Generator(),
            conditions=(Conditioning(inputs={}),),
            guidance=Guidance(scale=1.0),
        )

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Callable[[], None]) -> NDArray[np.uint8]:
        return np.full((SIDE, SIDE, 3), int(latents.sum().abs()) % 256, np.uint8)


def zeros(latents: Tensor, *_: object) -> Tensor:
    return torch.zeros_like(latents)


def loaded_model_of(config: RunConfig, network: Denoiser = zeros) -> LoadedModel:
    """A cheap task on any network."""
    return LoadedModel(
        task=CheapTask(),
        engine=LaneEngine(network, lanes=config.lanes, device="cpu", dtype=torch.float32),
        model="cheap",
        weights_sha256="0" * 64,
        device="cpu",
        dtype="float32",
    )


def load_cheap(config: RunConfig, device: str) -> LoadedModel:
    return loaded_model_of(config)


class DeadlyTask(CheapTask):
    """A row with the prompt "poison" kills its process."""

    def request(self, key: Any, row: PreparedRow) -> DenoisingRequest:
        if row.parameters.prompt == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().request(key, row)


def load_deadly(config: RunConfig, device: str) -> LoadedModel:
    return replace(load_cheap(config, device), task=DeadlyTask())


class FaultyTask(CheapTask):
    """Raises in one of its methods for a row with the prompt "poison"."""

    def __init__(self, method: str, fault: Exception) -> None:
        super().__init__()
        self._method, self._fault = method, fault

    def _raise(self, method: str, prompt: str | None) -> None:
        if method == self._method and prompt == "poison":
            raise self._fault

    def prepare(self, row: Row) -> PreparedRow:
        self._raise("prepare", row.prompt)
        return super().prepare(row)

    def request(self, key: Any, row: PreparedRow) -> DenoisingRequest:
        self._raise("request", row.parameters.prompt)
        return super().request(key, row)

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Callable[[], None]) -> NDArray[np.uint8]:
        self._raise("decode", row.parameters.prompt)
        return super().decode(latents, row, heartbeat)


def load_faulty(config: RunConfig, device: str) -> LoadedModel:
    """A model that has too little memory for a row with the prompt "poison"."""
    return replace(load_cheap(config, device), task=FaultyTask("decode", MemoryError("cannot allocate 3 TiB")))


def load_stuck(config: RunConfig, device: str) -> LoadedModel:
    """A model whose network never comes back."""

    def stuck(*arguments: Any) -> Tensor:
        time.sleep(1e6)
        raise AssertionError

    return loaded_model_of(config, stuck)


def load_hanging(config: RunConfig, device: str) -> LoadedModel:
    """A model whose network does not come back from its first call in the run's first process."""
    first = Path(f"{config.output}.hung")

    def hanging(*arguments: Any) -> Tensor:
        if not first.exists():
            first.touch()
            time.sleep(1e6)
        return zeros(*arguments)

    return loaded_model_of(config, hanging)


def load_broken(config: RunConfig, device: str) -> LoadedModel:
    """A model whose network runs out of memory."""

    def out_of_memory(*arguments: Any) -> Tensor:
        raise RuntimeError("out of memory (pretended)")

    return loaded_model_of(config, out_of_memory)
