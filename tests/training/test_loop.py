"""The training loop: resume, metrics, learning rate, the shares of workers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.loop import LoopConfig, StepLoss, Worker, learning_rate, train
from pipeline.training.save import replacing

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
    whole = train(model, loss_of(model), CONFIG, tmp_path / "whole", batch=16)
    model = linear()
    with pytest.raises(KeyboardInterrupt):
        train(model, loss_of(model, stop_at=9), CONFIG, tmp_path / "resumed", batch=16)
    model = linear()
    resumed = train(model, loss_of(model), CONFIG, tmp_path / "resumed", batch=16)
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))


def test_the_logged_loss_falls(tmp_path: Path) -> None:
    model = linear()
    config = LoopConfig(steps=80, learning_rate=0.05, warmup_steps=2, log_every=40)
    train(model, loss_of(model), config, tmp_path, batch=16)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    first, last = (float(line.split('"loss": ')[1].split(",")[0]) for line in lines)
    assert last < 0.1 * first


def test_the_learning_rate_warms_up_stays_constant_and_cools_down() -> None:
    rates = [learning_rate(CONFIG, step) for step in range(CONFIG.steps)]
    assert rates[0] == pytest.approx(0.025)
    assert rates[2:6] == [0.05] * 4
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert 0 < rates[-1] <= 0.05 / 6


@pytest.mark.parametrize("count", [1, 3, 4, 16])
def test_workers_of_any_number_average_to_the_mean_of_the_whole_batch(count: int) -> None:
    batch = torch.arange(16.0, dtype=torch.float64).square()
    workers = [Worker(rank=rank, count=count) for rank in range(count)]
    means = [worker.weight(16) * worker.local_rows(batch).mean().item() for worker in workers]
    assert sum(means) / count == pytest.approx(batch.mean().item(), rel=1e-12)


def test_more_workers_than_rows_are_refused(tmp_path: Path) -> None:
    model = linear()
    with pytest.raises(ValueError, match="17 workers are too many for batches of 16 rows; give at most 16"):
        train(model, loss_of(model), CONFIG, tmp_path, Worker(count=17), batch=16)


def test_a_file_that_is_half_written_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "latents.pt").write_bytes(b"old")

    def stop_half_way() -> None:
        with replacing(tmp_path / "latents.pt") as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert (tmp_path / "latents.pt").read_bytes() == b"old"
    with replacing(tmp_path / "latents.pt") as path:
        path.write_bytes(b"new")
    assert (tmp_path / "latents.pt").read_bytes() == b"new"
