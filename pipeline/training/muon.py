"""Muon, for the matrices of a network's inner layers; AdamW for what is none."""

from collections import defaultdict

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
            alike = defaultdict[tuple[int, ...], list[nn.Parameter]](list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.flatten(1).shape].append(weight)
            for shape, weights in alike.items():
                updates = orthogonalized(torch.stack([self._ahead(weight, group["momentum"]) for weight in weights]))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.reshape(weight.shape), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])

    def _ahead(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's momentum, as a matrix."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        average = state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum).flatten(1)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest matrices with orthonormal rows or columns, (..., m, n): five Newton-Schulz steps.

    Singular values end between about 0.7 and 1.2; the quintic's coefficients are those of Jordan et al. 2024. Its
    steps are taken on the small Gram matrices, and the product of them all meets the large ones once.
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


def optimizers_of(model: nn.Module, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices and filters; AdamW for biases, norms, embeddings and what is few channels thin."""
    inner, others = [], []
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            matrix = weight.ndim >= 2 and min(weight.flatten(1).shape) >= _LEAST_SIDE
            (inner if matrix and not isinstance(module, nn.Embedding) else others).append(weight)
    adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    return [Muon(inner, learning_rate, weight_decay), adamw] if inner else [adamw]
