"""Every loss: its gradient against finite differences, and the identities that its paper gives."""

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
    denoising_target,
    discriminator_loss,
    min_snr_weights,
    noised,
    perceptual_distance,
)
from pipeline.training.recipes.clip import SHAPES_CLIP, new_clip
from pipeline.training.tokenizer import word_tokenizer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        pytest.param(
            lambda image, text: contrastive_loss(image, text, torch.tensor(3.0, dtype=torch.float64)),
            (drawn(5, 4), drawn(5, 4, seed=1)),
            id="contrastive",
        ),
        pytest.param(
            lambda ours, theirs: perceptual_distance([ours, 2 * ours], [theirs, theirs]).mean(),
            (drawn(2, 3, 4), drawn(2, 3, 4, seed=1)),
            id="perceptual",
        ),
        pytest.param(discriminator_loss, (drawn(2, 1, 3, 3), drawn(2, 1, 3, 3, seed=1)), id="discriminator"),
    ],
)
def test_gradient_agrees_with_finite_differences(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    assert gradcheck(loss, inputs)


def test_commitment_pulls_each_side_by_its_own_weight() -> None:
    latents, codes = drawn(2, 4), drawn(2, 4, seed=1)
    commitment_loss(latents, codes, beta=0.25).backward()
    apart = 2 * (codes - latents).detach() / latents.numel()
    assert codes.grad is not None
    assert latents.grad is not None
    torch.testing.assert_close(codes.grad, apart)
    torch.testing.assert_close(latents.grad, -0.25 * apart)


def test_velocity_and_noisy_latents_give_back_latents_and_noise() -> None:
    latents, noise = drawn(3, 4, 2, 2), drawn(3, 4, 2, 2, seed=1)
    alphas = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    noisy, velocity = noised(latents, noise, alphas), denoising_target(latents, noise, alphas, "v_prediction")
    signal, deviation = alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
    torch.testing.assert_close(signal * noisy - deviation * velocity, latents)
    torch.testing.assert_close(deviation * noisy + signal * velocity, noise)


def test_min_snr_weighs_the_same_error_in_latents_alike_for_every_prediction() -> None:
    """An error of the latents is an error of noise times 1 / snr, of velocity times 1 / (snr + 1)."""
    alphas = torch.tensor([0.05, 0.5, 0.9, 0.99], dtype=torch.float64)
    snr = alphas / (1 - alphas)
    sample = min_snr_weights(alphas, 5.0, "sample")
    torch.testing.assert_close(sample, snr.clamp_max(5.0))
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, "epsilon") * snr, sample)
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, "v_prediction") * (snr + 1), sample)


def test_contrastive_loss_is_that_of_the_reference() -> None:
    torch.manual_seed(0)
    clip = new_clip(SHAPES_CLIP, word_tokenizer(vocabulary(), SHAPES_CLIP.window))
    ids = torch.randint(0, 100, (4, SHAPES_CLIP.window))
    seen = clip(input_ids=ids, pixel_values=torch.randn(4, 3, 64, 64), return_loss=True)
    ours = contrastive_loss(seen.image_embeds, seen.text_embeds, clip.logit_scale.exp())
    torch.testing.assert_close(ours, seen.loss)


def test_adaptive_weight_makes_both_gradients_equally_long() -> None:
    layer = torch.nn.Parameter(drawn(6).detach())
    reconstruction, adversarial = (3 * layer).square().sum(), layer.sin().sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    (pull,) = torch.autograd.grad(reconstruction, layer)
    (push,) = torch.autograd.grad(weight * adversarial, layer)
    torch.testing.assert_close(push.norm(), pull.norm(), rtol=1e-3, atol=0)


def test_a_held_discriminator_says_the_same_and_learns_nothing() -> None:
    torch.manual_seed(0)
    discriminator, pixels = PatchDiscriminator(), torch.randn(2, 3, 32, 32, requires_grad=True)
    told = discriminator.held(pixels)
    torch.testing.assert_close(told, discriminator(pixels))
    told.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in discriminator.parameters())
