"""The Muon optimizer for matrices and filters, with AdamW for all other weights."""

from collections import defaultdict

import torch
from torch import Tensor, nn

_MIN_SIDE = 16
"""AdamW optimizes matrices with a shorter side than this."""


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates (Jordan et al. 2024), scaled to AdamW's size (Liu et al. 2025, eq. 4).

    A filter (out, in, h, w) is treated as a matrix (out, in * h * w). torch.optim.Muon accepts no filters and computes
    in bfloat16, which CPUs emulate.
    """

    def __init__(
        self, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape = defaultdict[tuple[int, ...], list[nn.Parameter]](list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.flatten(1).shape].append(weight)
            for shape, weights in by_shape.items():
                momenta = [self._nesterov_momentum(weight, group["momentum"]) for weight in weights]
                for weight, update in zip(weights, orthogonalize(torch.stack(momenta)), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.reshape(weight.shape), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])

    def _nesterov_momentum(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Update the momentum of a weight and return Nesterov's look-ahead as a matrix."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        average = state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum).flatten(1)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate the closest matrices (..., m, n) with orthonormal rows or columns by Newton-Schulz iteration.

    The singular values of the result lie approximately between 0.7 and 1.2; the coefficients of the quintic are those
    of Jordan et al. 2024. The iteration runs on the smaller Gram matrices; its product is then applied to the input.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram, product = wide @ wide.mT, None
    for _ in range(steps):
        factor = 2.0315 * gram @ gram - 4.7750 * gram
        factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    assert product is not None
    wide = product @ wide
    return wide.mT if tall else wide


def build_optimizers(model: nn.Module, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and filters of a model, and AdamW for its other weights.

    AdamW gets biases, norms, embeddings and matrices with fewer than 16 rows or columns.
    """
    inner, others = [], []
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            matrix = weight.ndim >= 2 and min(weight.flatten(1).shape) >= _MIN_SIDE
            (inner if matrix and not isinstance(module, nn.Embedding) else others).append(weight)
    adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    return [Muon(inner, learning_rate, weight_decay), adamw] if inner else [adamw]
