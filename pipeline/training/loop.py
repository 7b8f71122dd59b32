"""One training loop for every recipe: Muon, warm-up and cool-down, averaged weights, going on after a stop."""

import copy
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from pipeline.training.muon import optimizers_of

log = logging.getLogger(__name__)

StepLoss = Callable[[int], tuple[Tensor, dict[str, float]]]
"""The loss of a step's own batch, and the figures to log; the same step must always get the same batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    warmup_steps: int = 200
    cooldown: float = 0.25
    """The last part of the steps, in which the learning rate falls linearly to zero."""
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    average_decay: float = 0.999
    """Of the exponential moving average of the weights, which is what a recipe saves."""
    log_every: int = 20
    save_every: int = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One of the processes that train a model together: each takes its part of every batch."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    def part(self, batch: Tensor) -> Tensor:
        """This worker's rows of a whole batch's tensor, on its device."""
        return batch[self.rank :: self.count].to(self.device)

    def average(self, values: list[Tensor]) -> None:
        """Make each of the tensors its mean over all workers, in place."""
        if self.count == 1:
            return
        flat = torch.cat([value.flatten() for value in values]).to(self.device)
        torch.distributed.all_reduce(flat)
        for value, mean in zip(values, (flat / self.count).split([value.numel() for value in values]), strict=True):
            value.copy_(mean.view_as(value))

    def wait(self) -> None:
        """Until all workers have come to this call."""
        self.average([torch.zeros(1)])


SINGLE_WORKER = Worker()


def draws_of(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step of a run with this seed: a run that goes on after a stop draws the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(config: LoopConfig, step: int) -> float:
    """Warm-up, constant, linear cool-down (Hägele et al. 2024, section 2)."""
    up = min((step + 1) / config.warmup_steps, 1.0)
    down = min((config.steps - step) / max(config.cooldown * config.steps, 1), 1.0)
    return config.learning_rate * min(up, down)


def train(
    model: nn.Module, step_loss: StepLoss, config: LoopConfig, folder: Path, worker: Worker = SINGLE_WORKER
) -> nn.Module:
    """Train `model` in place and return its averaged copy; `folder` keeps the state to go on from, and log.jsonl.

    Several workers must start with the same weights and see the same `folder`; the first of them writes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.to(worker.device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizers = optimizers_of(model, config.learning_rate, config.weight_decay)
    first = _restore(folder / "state.pt", model, average, optimizers)
    started, seen = time.monotonic(), dict[str, list[float]]()
    model.train()
    for step in range(first, config.steps):
        loss, figures = step_loss(step)
        model.zero_grad(set_to_none=True)
        loss.backward()
        worker.average([weight.grad for weight in model.parameters() if weight.grad is not None])
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            optimizer.step()
        _update_average(average, model, min(config.average_decay, (1 + step) / (10 + step)))
        for name, value in {"loss": loss.item(), **figures}.items():
            seen.setdefault(name, []).append(value)
        if (step + 1) % config.log_every == 0:
            means = {name: round(fmean(values), 6) for name, values in seen.items()}
            overall = torch.tensor(means["loss"])
            worker.average([overall])
            means["loss"] = round(overall.item(), 6)
            seconds = (time.monotonic() - started) / (step + 1 - first)
            if worker.rank == 0:
                _log(folder / "log.jsonl", {"step": step + 1, **means, "seconds_per_step": round(seconds, 3)})
            seen = {}
        if worker.rank == 0 and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            _save(folder / "state.pt", step + 1, model, average, optimizers)
    return average


def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        averages, values = list(average.state_dict().values()), list(model.state_dict().values())
        for kept, value in zip(averages, values, strict=True):
            if kept.is_floating_point():
                kept.lerp_(value, 1 - decay)


def _restore(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    log.info("going on from step %d of %s", state["step"], path)
    return state["step"]


def _save(path: Path, step: int, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    kept = [optimizer.state_dict() for optimizer in optimizers]
    state = {"step": step, "model": model.state_dict(), "average": average.state_dict(), "optimizers": kept}
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _log(path: Path, figures: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")
    log.info("%s", "  ".join(f"{name} {value:g}" for name, value in figures.items()))
