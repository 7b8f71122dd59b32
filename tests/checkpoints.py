"""Small random checkpoints that diffusers and transformers built and saved: SD 1.5 and SD 2.1, scaled down."""

import json
import logging
from pathlib import Path
from typing import Any, Final, Literal

import torch

from pipeline.training.tokenizer import END, START, save_tokenizer, word_tokenizer

Family = Literal["sd15", "sd21", "sd15-inpainting"]

WORDS: Final = (
    *("a", "the", "of", "and", "on", "left", "right", "red", "green", "blue", "large", "small"),
    *("circle", "square", "triangle", "photograph", "cats"),
)
WINDOW: Final = 77
TEXT_WIDTH: Final = 32
VOCABULARY: Final = 640
"""More than the tokenizer needs, as a text encoder may have."""

UNETS: Final[dict[Family, dict[str, Any]]] = {
    "sd15": {"attention_head_dim": 4, "sample_size": 8},
    "sd15-inpainting": {"attention_head_dim": 4, "sample_size": 8, "in_channels": 9},
    "sd21": {
        "attention_head_dim": [1, 2, 4, 4],
        "sample_size": 12,
        "use_linear_projection": True,
        "upcast_attention": True,
        "dual_cross_attention": False,
        "only_cross_attention": False,
        "num_class_embeds": None,
    },
}
AUTOENCODER: Final[dict[str, Any]] = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
}
_CLIP: Final = {"hidden_act": "quick_gelu", "bos_token_id": 0, "eos_token_id": 2, "num_hidden_layers": 2}
TEXT_ENCODERS: Final[dict[Family, dict[str, Any]]] = {
    "sd15": _CLIP,
    "sd15-inpainting": _CLIP,
    "sd21": {"hidden_act": "gelu", "bos_token_id": 0, "eos_token_id": 2, "num_hidden_layers": 3},
}
SCHEDULERS: Final[dict[Family, tuple[str, dict[str, Any]]]] = {
    "sd15": ("PNDMScheduler", {"skip_prk_steps": True}),
    "sd15-inpainting": ("DDIMScheduler", {"clip_sample": False}),
    "sd21": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
}


def tiny_checkpoint(folder: Path, family: Family = "sd15") -> Path:
    """Save a Stable Diffusion checkpoint of about a million random parameters; the same weights every time.

    Native size 64 x 64 pixels (sd15) and 96 x 96 (sd21), downsample factor 8, epsilon and v prediction."""
    from diffusers import schedulers
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from transformers import CLIPTextModel

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(20)
        unet = UNet2DConditionModel(
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            **UNETS[family],
        )
        autoencoder = AutoencoderKL(**AUTOENCODER, sample_size=UNETS[family]["sample_size"] * 8)
        text_encoder = CLIPTextModel(_text_config(family))
        make_lively(unet, autoencoder, text_encoder)
    class_name, options = SCHEDULERS[family]
    scheduler = getattr(schedulers, class_name)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        **options,
    )
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=word_tokenizer(WORDS, WINDOW),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    save_old_tokenizer(folder / "tokenizer", pad_token="!" if family == "sd21" else END)
    return folder


UPSCALER_SIDE: Final = 32
"""Pixels of the tile that the small upscalers were made for."""

_UPSCALER_LEVELS: Final[dict[str, Any]] = {
    "sample_size": UPSCALER_SIDE,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
}
_UPSCALER_AUTOENCODER: Final[dict[str, Any]] = {
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
}
_UPSCALER_BETAS: Final[dict[str, Any]] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear"}


def tiny_upscaler(folder: Path) -> Path:
    """Save an x4 upscaler in Stable Diffusion's form, of random weights: 7 input channels, a noise level, text."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale import StableDiffusionUpscalePipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(21)
        unet = UNet2DConditionModel(
            in_channels=7,
            num_class_embeds=1000,
            attention_head_dim=4,
            use_linear_projection=True,
            only_cross_attention=(True, True, False),
            cross_attention_dim=TEXT_WIDTH,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            **_UPSCALER_LEVELS,
        )
        autoencoder = AutoencoderKL(**_UPSCALER_AUTOENCODER, latent_channels=4, scaling_factor=0.08333)
        text_encoder = CLIPTextModel(_text_config("sd21"))
        make_lively(unet, autoencoder, text_encoder)
    pipeline = StableDiffusionUpscalePipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=word_tokenizer(WORDS, WINDOW),
        unet=unet,
        low_res_scheduler=DDPMScheduler(**_UPSCALER_BETAS),
        scheduler=DDIMScheduler(**_UPSCALER_BETAS, clip_sample=False, prediction_type="v_prediction"),
    )
    pipeline.save_pretrained(folder)
    save_old_tokenizer(folder / "tokenizer", pad_token="!")
    return folder


def tiny_paper_upscaler(folder: Path) -> Path:
    """Save an upscaler in the paper's form, of random weights: an unconditional U-Net and a VQ autoencoder."""
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import (
        LDMSuperResolutionPipeline,
    )
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    with torch.random.fork_rng():
        torch.manual_seed(22)
        unet = UNet2DModel(
            in_channels=6,
            out_channels=3,
            attention_head_dim=16,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            **_UPSCALER_LEVELS,
        )
        autoencoder = VQModel(**_UPSCALER_AUTOENCODER, latent_channels=3, num_vq_embeddings=64)
        autoencoder.quantize.embedding.weight.data.normal_()
        autoencoder.decoder.conv_out.weight.data.mul_(2)
    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0155, beta_schedule="scaled_linear", clip_sample=False)
    LDMSuperResolutionPipeline(vqvae=autoencoder, unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder


def _text_config(family: Family) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        pad_token_id=1,
        projection_dim=TEXT_WIDTH,
        **TEXT_ENCODERS[family],
    )


def make_lively(unet: torch.nn.Module, autoencoder: torch.nn.Module, *text_encoders: torch.nn.Module) -> None:
    """Random weights alone give gray pictures and texts that hardly matter; scale what decides both."""
    with torch.no_grad():
        autoencoder.get_parameter("decoder.conv_out.weight").mul_(2)
        for text_encoder in text_encoders:
            for name, weight in text_encoder.named_parameters():
                if "embedding" in name:
                    weight.mul_(20)
        for name, weight in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out" in name:
                weight.mul_(4)


def save_old_tokenizer(folder: Path, pad_token: str) -> None:
    """The files of published checkpoints (vocab.json and merges.txt, no tokenizer.json)."""
    for path in folder.iterdir():
        path.unlink()
    save_tokenizer(word_tokenizer(WORDS, WINDOW), folder)
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **tokens}))
