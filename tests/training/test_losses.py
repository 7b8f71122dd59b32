"""Losses: gradients against finite differences, and the identities that the papers give."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pipeline.training.data.scenes import vocabulary
from pipeline.training.discriminator import PatchDiscriminator
from pipeline.training.losses import (
    adaptive_weight,
    commitment_loss,
    contrastive_loss,
    discriminator_loss,
    perceptual_distance,
)
from pipeline.training.recipes.clip import SHAPES_CLIP, new_clip
from pipeline.training.tokenizer import word_tokenizer


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        pytest.param(
            lambda image, text: contrastive_loss(image, text, torch.tensor(3.0, dtype=torch.float64)),
            (random_tensor(5, 4), random_tensor(5, 4, seed=1)),
            id="contrastive",
        ),
        pytest.param(
            lambda one, other: perceptual_distance([one, 2 * one], [other, other]).mean(),
            (random_tensor(2, 3, 4), random_tensor(2, 3, 4, seed=1)),
            id="perceptual",
        ),
        pytest.param(
            discriminator_loss, (random_tensor(2, 1, 3, 3), random_tensor(2, 1, 3, 3, seed=1)), id="discriminator"
        ),
    ],
)
def test_gradient_agrees_with_finite_differences(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    assert gradcheck(loss, inputs)


def test_commitment_loss_weights_the_gradients_of_codes_and_latents() -> None:
    latents, codes = random_tensor(2, 4), random_tensor(2, 4, seed=1)
    commitment_loss(latents, codes, beta=0.25).backward()
    gradient = 2 * (codes - latents).detach() / latents.numel()
    assert codes.grad is not None
    assert latents.grad is not None
    torch.testing.assert_close(codes.grad, gradient)
    torch.testing.assert_close(latents.grad, -0.25 * gradient)


def test_contrastive_loss_equals_that_of_transformers() -> None:
    torch.manual_seed(0)
    clip = new_clip(SHAPES_CLIP, word_tokenizer(vocabulary(), SHAPES_CLIP.window))
    ids = torch.randint(0, 100, (4, SHAPES_CLIP.window))
    output = clip(input_ids=ids, pixel_values=torch.randn(4, 3, 64, 64), return_loss=True)
    loss = contrastive_loss(output.image_embeds, output.text_embeds, clip.logit_scale.exp())
    torch.testing.assert_close(loss, output.loss)


def test_adaptive_weight_gives_both_gradients_the_same_norm() -> None:
    layer = torch.nn.Parameter(random_tensor(6).detach())
    reconstruction, adversarial = (3 * layer).square().sum(), layer.sin().sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    (reconstruction_grad,) = torch.autograd.grad(reconstruction, layer)
    (adversarial_grad,) = torch.autograd.grad(weight * adversarial, layer)
    torch.testing.assert_close(adversarial_grad.norm(), reconstruction_grad.norm(), rtol=1e-3, atol=0)


def test_frozen_logits_are_the_same_and_give_the_discriminator_no_gradient() -> None:
    torch.manual_seed(0)
    discriminator, pixels = PatchDiscriminator(), torch.randn(2, 3, 32, 32, requires_grad=True)
    logits = discriminator.frozen_logits(pixels)
    torch.testing.assert_close(logits, discriminator(pixels))
    logits.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in discriminator.parameters())
