"""Muon, for the matrices of a network's inner layers; AdamW for what is none."""

import torch
from torch import Tensor, nn

_LEAST_SIDE = 16


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal (Jordan et al. 2024), as large as AdamW's (Liu et al. 2025, eq. 4).

    A filter (out, in, h, w) counts as a matrix (out, in * h * w). torch.optim.Muon takes no filters, and works in
    bfloat16, which CPUs emulate.
    """

    def __init__(
        self, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                average = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"]).flatten(1)
                update = orthogonalised(ahead) * (0.2 * max(ahead.shape) ** 0.5)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.reshape(weight.shape), alpha=-group["lr"])


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest matrix with orthonormal rows or columns (m, n): five Newton-Schulz steps.

    Singular values end between about 0.7 and 1.2; the quintic's coefficients are those of Jordan et al. 2024.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def optimizers_of(model: nn.Module, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices and filters; AdamW for biases, norms, embeddings and what is few channels thin."""
    inner, others = [], []
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            matrix = weight.ndim >= 2 and min(weight.flatten(1).shape) >= _LEAST_SIDE
            (inner if matrix and not isinstance(module, nn.Embedding) else others).append(weight)
    adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    return [Muon(inner, learning_rate, weight_decay), adamw] if inner else [adamw]
