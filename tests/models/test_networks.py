"""The networks against diffusers, on small random checkpoints that diffusers saved."""

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as ReferenceAutoencoder
from diffusers.models.autoencoders.vq_model import VQModel as ReferenceVQ
from diffusers.models.unets.unet_2d import UNet2DModel as ReferenceUnconditional
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as ReferenceUNet
from torch import Tensor

from pipeline.models.checkpoint.components import load_autoencoder, load_unet, load_vq

TOLERANCE = 1e-4
"""The maximum error, relative to the largest output."""

UNETS = {
    "sd15": {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 8},
    "sd21": {
        "block_out_channels": (32, 64, 128, 128),
        "attention_head_dim": (2, 4, 8, 8),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "inpainting": {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 8, "in_channels": 9},
    "x4-upscaler": {
        "block_out_channels": (32, 64, 64, 128),
        "attention_head_dim": 8,
        "in_channels": 7,
        "use_linear_projection": True,
        "only_cross_attention": (True, True, True, False),
        "num_class_embeds": 1000,
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    },
}


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_unet_equals_diffusers(tmp_path: Path, family: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    reference = ReferenceUNet(sample_size=16, cross_attention_dim=48, **UNETS[family])
    reference.save_pretrained(tmp_path / "unet")
    unet = load_unet(tmp_path / "unet")
    latents = torch.randn(2, unet.config.in_channels, *size)
    timesteps, states = torch.tensor([3.0, 777.0]), torch.randn(2, 77, 48)
    labels = torch.tensor([20, 300]) if unet.config.num_class_embeds else None
    with torch.no_grad():
        expected = reference(latents, timesteps, states, class_labels=labels).sample
        assert relative_error(unet(latents, timesteps, states, class_labels=labels), expected) <= TOLERANCE


@pytest.fixture
def reference_autoencoder() -> ReferenceAutoencoder:
    torch.manual_seed(0)
    return ReferenceAutoencoder(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    ).eval()


def test_autoencoder_equals_diffusers(tmp_path: Path, reference_autoencoder: ReferenceAutoencoder) -> None:
    reference_autoencoder.save_pretrained(tmp_path / "vae")
    autoencoder = load_autoencoder(tmp_path / "vae")
    pixels, latents = torch.rand(2, 3, 64, 96) * 2 - 1, torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        expected = reference_autoencoder.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        posterior = autoencoder.posterior(pixels)
        assert relative_error(posterior.mean, expected.mean) <= TOLERANCE
        assert relative_error(posterior.logvar, expected.logvar) <= TOLERANCE
        decoded = reference_autoencoder.decode(latents / 0.18215).sample  # pyright: ignore[reportAttributeAccessIssue]
        assert relative_error(autoencoder.decode(latents), decoded) <= TOLERANCE


def test_autoencoder_samples_equal_those_of_diffusers(
    tmp_path: Path, reference_autoencoder: ReferenceAutoencoder
) -> None:
    reference_autoencoder.save_pretrained(tmp_path / "vae")
    autoencoder = load_autoencoder(tmp_path / "vae")
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        distribution = reference_autoencoder.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        expected = 0.18215 * distribution.sample(torch.Generator().manual_seed(7))
        assert relative_error(autoencoder.encode(pixels, noise), expected) <= TOLERANCE


def test_old_names_of_attention_tensors_load(tmp_path: Path, reference_autoencoder: ReferenceAutoencoder) -> None:
    from safetensors.torch import load_file, save_file

    reference_autoencoder.save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new_name, old_name in old_names.items():
            name = name.replace(f".{new_name}.", f".{old_name}.")
        tensors[name] = tensor[..., None, None] if "attentions" in name and tensor.ndim == 2 else tensor
    save_file(tensors, path)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = reference_autoencoder.encode(pixels).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        assert relative_error(load_autoencoder(tmp_path / "vae").posterior(pixels).mean, expected) <= TOLERANCE


@pytest.mark.slow
def test_sd15_at_full_size_equals_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = ReferenceUNet(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval()
    reference.save_pretrained(tmp_path / "unet", max_shard_size="1GB")
    unet = load_unet(tmp_path / "unet")
    latents, timesteps, states = torch.randn(1, 4, 64, 64), torch.tensor([500.0]), torch.randn(1, 77, 768)
    with torch.no_grad():
        expected = reference(latents, timesteps, states).sample
        assert relative_error(unet(latents, timesteps, states), expected) <= TOLERANCE


@pytest.mark.parametrize("size", [(16, 16), (32, 24)])
@pytest.mark.parametrize("head_width", [16, None])
def test_unconditional_unet_equals_diffusers(tmp_path: Path, size: tuple[int, int], head_width: int | None) -> None:
    torch.manual_seed(0)
    reference = ReferenceUnconditional(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        block_out_channels=(32, 64, 64, 96),
        attention_head_dim=head_width,  # pyright: ignore[reportArgumentType]
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
    )
    reference.save_pretrained(tmp_path / "unet")
    unet = load_unet(tmp_path / "unet")
    latents, timesteps = torch.randn(2, 6, *size), torch.tensor([3.0, 777.0])
    with torch.no_grad():
        ours = unet(latents, timesteps, torch.zeros(2, 0, 0))
        assert relative_error(ours, reference(latents, timesteps).sample) <= TOLERANCE


@pytest.mark.parametrize("embed_dim", [None, 5])
def test_vector_quantized_autoencoder_equals_diffusers(tmp_path: Path, embed_dim: int | None) -> None:
    torch.manual_seed(0)
    reference = ReferenceVQ(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        num_vq_embeddings=64,
        vq_embed_dim=embed_dim,
    ).eval()
    reference.quantize.embedding.weight.data.normal_()
    reference.save_pretrained(tmp_path / "vqvae")
    autoencoder = load_vq(tmp_path / "vqvae")
    pixels, latents = torch.rand(2, 3, 32, 48) * 2 - 1, torch.randn(2, embed_dim or 3, 8, 12)
    with torch.no_grad():
        assert relative_error(autoencoder.encode(pixels), reference.encode(pixels).latents) <= TOLERANCE  # pyright: ignore[reportAttributeAccessIssue]
        decoded = autoencoder.decode(latents)
        assert relative_error(decoded, reference.decode(latents).sample) <= TOLERANCE  # pyright: ignore[reportAttributeAccessIssue]
        unquantized = autoencoder.decoder(autoencoder.post_quant_conv(latents))
        assert relative_error(decoded, unquantized) > 0.1  # the codebook matters
