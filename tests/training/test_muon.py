"""The Muon optimizer."""

import torch
from torch import nn

from pipeline.training.muon import Muon, build_optimizers, orthogonalize


def test_orthogonalized_matrices_have_singular_values_near_one_and_keep_their_singular_vectors() -> None:
    torch.manual_seed(0)
    for shape in ((48, 20), (20, 48), (32, 32)):
        matrix = torch.randn(shape) @ torch.diag(torch.linspace(0.1, 3, shape[1]))
        update = orthogonalize(matrix)
        values = torch.linalg.svdvals(update)
        assert values.max() < 1.3
        assert values.median() > 0.6
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        diagonal = left.T @ update @ right.T
        assert (diagonal - torch.diag(diagonal.diagonal())).abs().max() < 1e-3


def test_every_weight_has_one_optimizer_and_only_inner_matrices_and_filters_are_orthogonalized() -> None:
    model = nn.Sequential(
        nn.Embedding(40, 32), nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 2), nn.LayerNorm(32)
    )
    muon, adamw = build_optimizers(model, 1e-3, 0.0)
    inner = [weight for group in muon.param_groups for weight in group["params"]]
    others = [weight for group in adamw.param_groups for weight in group["params"]]
    assert {id(weight) for weight in (*inner, *others)} == {id(weight) for weight in model.parameters()}
    assert len(inner) + len(others) == len(list(model.parameters()))
    assert [tuple(weight.shape) for weight in inner] == [(32, 3, 3, 3), (32, 32, 3, 3)]


def test_muon_learns_a_linear_map_whose_inputs_differ_widely_in_scale() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(256, 16) * torch.logspace(-1, 0, 16)
    targets = inputs @ torch.randn(16, 16)
    layer = nn.Linear(16, 16, bias=False)
    optimizer = Muon([layer.weight], 0.3, 0.0)

    def loss() -> torch.Tensor:
        return (layer(inputs) - targets).square().mean()

    first = loss().item()
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 150)
        layer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < first / 50
