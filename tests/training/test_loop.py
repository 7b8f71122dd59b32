"""The training loop: resume, metrics, learning rate."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.loop import LoopConfig, StepLoss, learning_rate, train

CONFIG = LoopConfig(steps=12, learning_rate=0.05, warmup_steps=2, cooldown=0.5, log_every=4, save_every=4)


def linear() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(4, 1)


def loss_of(model: nn.Module, stop_at: int | None = None) -> StepLoss:
    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (model(inputs)[:, 0] - inputs.sum(1)).square().mean(), {}

    return step_loss


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    model = linear()
    whole = train(model, loss_of(model), CONFIG, tmp_path / "whole")
    model = linear()
    with pytest.raises(KeyboardInterrupt):
        train(model, loss_of(model, stop_at=9), CONFIG, tmp_path / "resumed")
    model = linear()
    resumed = train(model, loss_of(model), CONFIG, tmp_path / "resumed")
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))


def test_the_logged_loss_falls(tmp_path: Path) -> None:
    model = linear()
    train(model, loss_of(model), LoopConfig(steps=80, learning_rate=0.05, warmup_steps=2, log_every=40), tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    first, last = (float(line.split('"loss": ')[1].split(",")[0]) for line in lines)
    assert last < 0.1 * first


def test_the_learning_rate_warms_up_stays_constant_and_cools_down() -> None:
    rates = [learning_rate(CONFIG, step) for step in range(CONFIG.steps)]
    assert rates[0] == pytest.approx(0.025)
    assert rates[2:6] == [0.05] * 4
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert 0 < rates[-1] <= 0.05 / 6
