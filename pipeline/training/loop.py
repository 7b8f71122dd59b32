"""The training loop that every recipe shares: Muon, a learning rate schedule, averaged weights and resume."""

import copy
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from pipeline.training.muon import build_optimizers
from pipeline.training.save import replacing

log = logging.getLogger(__name__)

StepLoss = Callable[[int], tuple[Tensor, dict[str, float]]]
"""Maps a step to the loss of its batch and the metrics to log. A step must always use the same batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """The length of a training run, its learning rate schedule and its optimizer settings."""

    steps: int
    learning_rate: float
    warmup_steps: int = 200
    cooldown: float = 0.25
    """The fraction of the steps, at the end, over which the learning rate falls linearly to zero."""
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    average_decay: float = 0.999
    """The decay of the exponential moving average of the weights. A recipe saves the average."""
    log_every: int = 20
    save_every: int = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One process of a data-parallel training run. Each worker computes its own rows of every batch."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    def local_rows(self, batch: Tensor) -> Tensor:
        """Return this worker's rows of a whole batch, moved to its device."""
        return batch[self.rank :: self.count].to(self.device)

    def weight(self, batch: int) -> float:
        """Return the weight of this worker's mean loss, so that the average over the workers is the mean of the batch.

        The weights have the mean 1. They differ if `batch` is not divisible by the number of workers."""
        return len(range(self.rank, batch, self.count)) * self.count / batch

    def average(self, values: list[Tensor]) -> None:
        """Replace each tensor by its mean over all workers, in place."""
        if self.count == 1:
            return
        flat = torch.cat([value.flatten() for value in values]).to(self.device)
        torch.distributed.all_reduce(flat)
        for value, mean in zip(values, (flat / self.count).split([value.numel() for value in values]), strict=True):
            value.copy_(mean.view_as(value))

    def barrier(self) -> None:
        """Wait until every worker has reached this call."""
        self.average([torch.zeros(1)])


SINGLE_WORKER = Worker()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random generator of one step. It depends only on the seed and the step, so a resume repeats it."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(config: LoopConfig, step: int) -> float:
    """Return the learning rate of a step: warm-up, constant, linear cool-down (Hägele et al. 2024, section 2)."""
    up = min((step + 1) / config.warmup_steps, 1.0)
    down = min((config.steps - step) / max(config.cooldown * config.steps, 1), 1.0)
    return config.learning_rate * min(up, down)


def train(
    model: nn.Module,
    step_loss: StepLoss,
    config: LoopConfig,
    folder: Path,
    worker: Worker = SINGLE_WORKER,
    *,
    batch: int,
    average: nn.Module | None = None,
) -> nn.Module:
    """Train `model` in place and return the averaged copy of it.

    `batch` is the number of rows per step over all workers; ValueError if it is less than the number of workers.
    `average` is a copy of the model that becomes the average, for a loss that uses it; by default, a new copy.
    `folder` holds `state.pt`, from which a stopped run resumes, and `log.jsonl`. Several workers must start with the
    same weights and share the folder; the worker of rank 0 writes to it.
    """
    if worker.count > batch:
        raise ValueError(f"{worker.count} workers are too many for batches of {batch} rows; give at most {batch}")
    folder.mkdir(parents=True, exist_ok=True)
    model.to(worker.device)
    state = _TrainState(model, copy.deepcopy(model) if average is None else average.to(worker.device), config)
    first = state.restore(folder / "state.pt")
    metrics = _MetricsLog(folder / "log.jsonl", worker, first)
    model.train()
    for step in range(first, config.steps):
        loss, values = step_loss(step)
        loss = loss * worker.weight(batch)
        state.update(loss, step, worker)
        metrics.add({"loss": loss.item(), **values})
        done = step + 1
        if done % config.log_every == 0:
            metrics.write(done)
        if worker.rank == 0 and (done % config.save_every == 0 or done == config.steps):
            state.save(folder / "state.pt", done)
    return state.average


class _TrainState:
    """The contents of `state.pt`: the model, the moving average of its weights, and its optimizers."""

    def __init__(self, model: nn.Module, average: nn.Module, config: LoopConfig) -> None:
        self.model = model
        self.config = config
        self.average = average.requires_grad_(False).eval()
        self.optimizers = build_optimizers(model, config.learning_rate, config.weight_decay)

    def update(self, loss: Tensor, step: int, worker: Worker) -> None:
        """Take one optimizer step, with gradients averaged over the workers, and update the average."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        worker.average([weight.grad for weight in self.model.parameters() if weight.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, step)
            optimizer.step()
        self._update_average(min(self.config.average_decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        averages, values = self.average.state_dict().values(), self.model.state_dict().values()
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)

    def restore(self, path: Path) -> int:
        """Load the state from `path`, if it exists, and return the step to continue with."""
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        log.info("resuming at step %d from %s", state["step"], path)
        return state["step"]

    def save(self, path: Path, step: int) -> None:
        """Write the state after `step` steps. The file is replaced atomically."""
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)


class _MetricsLog:
    """Collects the metrics of single steps and appends their means to a JSON Lines file."""

    def __init__(self, path: Path, worker: Worker, first: int) -> None:
        self.path = path
        self.worker = worker
        self.first = first
        self.started = time.monotonic()
        self.values: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def write(self, step: int) -> None:
        """Write the means since the last call. The loss is averaged over all workers."""
        means = {name: round(fmean(values), 6) for name, values in self.values.items()}
        self.values = {}
        loss = torch.tensor(means["loss"])
        self.worker.average([loss])
        if self.worker.rank:
            return
        seconds = (time.monotonic() - self.started) / (step - self.first)
        line = {"step": step, **means, "loss": round(loss.item(), 6), "seconds_per_step": round(seconds, 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", "  ".join(f"{name} {value:g}" for name, value in line.items()))
