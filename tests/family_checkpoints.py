"""The configs of published families: as published, and scaled down with every key that shapes the network."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch

from pipeline.training.tokenizer import END, word_tokenizer
from tests.checkpoints import AUTOENCODER, VOCABULARY, WINDOW, WORDS, make_lively, save_old_tokenizer

UNetFamily = Literal[
    "sd15",
    "sd21",
    "sd15-inpainting",
    "instruct-pix2pix",
    "sd2-depth",
    "x4-upscaler",
    "sdxl",
    "sdxl-inpainting",
    "sdxl-refiner",
    "ssd-1b",
    "small-sd",
    "tiny-sd",
    "lcm",
    "lcm-sdxl",
]

_SD15: Final[dict[str, Any]] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_SD21: Final[dict[str, Any]] = {
    **_SD15,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
_SDXL: Final[dict[str, Any]] = {
    **_SD15,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}

PUBLISHED_UNETS: Final[Mapping[UNetFamily, dict[str, Any]]] = {
    "sd15": _SD15,
    "sd21": _SD21,
    "sd15-inpainting": {**_SD15, "in_channels": 9},
    "instruct-pix2pix": {**_SD15, "in_channels": 8},
    "sd2-depth": {**_SD21, "in_channels": 5, "sample_size": 64, "upcast_attention": False},
    "x4-upscaler": {
        **_SD15,
        "block_out_channels": [256, 512, 512, 1024],
        "cross_attention_dim": 1024,
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
        "dual_cross_attention": False,
        "in_channels": 7,
        "num_class_embeds": 1000,
        "only_cross_attention": [True, True, True, False],
        "sample_size": 128,
        "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
        "use_linear_projection": True,
    },
    "sdxl": _SDXL,
    "sdxl-inpainting": {**_SDXL, "in_channels": 9},
    "sdxl-refiner": {
        **_SDXL,
        "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536],
        "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "projection_class_embeddings_input_dim": 2560,
        "transformer_layers_per_block": 4,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "ssd-1b": {
        **_SDXL,
        "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    },
    "small-sd": {**_SD15, "layers_per_block": 1, "mid_block_type": None},
    "tiny-sd": {
        **_SD15,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3,
        "layers_per_block": 1,
        "mid_block_type": None,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    },
    "lcm": {**_SD15, "time_cond_proj_dim": 256},
    "lcm-sdxl": {**_SDXL, "time_cond_proj_dim": 256},
}
"""The U-Nets' config.json."""

SIZE_WIDTH: Final = 8
"""Width of the sinusoids of one of SDXL's size numbers in the small U-Nets; published ones have 256."""
_SMALL_LAYERS: Final[dict[UNetFamily, dict[str, Any]]] = {
    "sdxl": {"transformer_layers_per_block": [1, 2, 3]},
    "sdxl-inpainting": {"transformer_layers_per_block": [1, 2, 3]},
    "lcm-sdxl": {"transformer_layers_per_block": [1, 2, 3]},
    "sdxl-refiner": {"transformer_layers_per_block": 2},
    "ssd-1b": {
        "reverse_transformer_layers_per_block": [[2, 1, 3], [2, 1, 1], 1],
        "transformer_layers_per_block": [1, [2, 2], [1, 2]],
    },
}


def small_unet_config(family: UNetFamily, *, text_width: int, pooled_width: int = 0) -> dict[str, Any]:
    """Return a family's config.json with few channels, for text states and pooled texts of these widths."""
    published = PUBLISHED_UNETS[family]
    levels = len(published["block_out_channels"])
    heads = published["attention_head_dim"]
    changes: dict[str, Any] = {
        "attention_head_dim": [2, 4, 4, 4][:levels] if isinstance(heads, list) else 4,
        "block_out_channels": [32, 64, 64, 64][:levels],
        "cross_attention_dim": text_width,
        "sample_size": 8,
        **_SMALL_LAYERS.get(family, {}),
    }
    if published.get("addition_embed_type"):
        numbers = 5 if family == "sdxl-refiner" else 6
        changes["addition_time_embed_dim"] = SIZE_WIDTH
        changes["projection_class_embeddings_input_dim"] = pooled_width + numbers * SIZE_WIDTH
    if published.get("time_cond_proj_dim"):
        changes["time_cond_proj_dim"] = 16
    return {**published, **changes}


Family = Literal[
    "sdxl",
    "sdxl-turbo",
    "sdxl-inpainting",
    "sdxl-refiner",
    "ssd-1b",
    "small-sd",
    "tiny-sd",
    "lcm",
    "lcm-sdxl",
    "instruct-pix2pix",
]

_TEXT_WIDTHS: Final = (32, 48)
_POOLED_WIDTH: Final = 24
_CLIP: Final[dict[str, Any]] = {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": WINDOW,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "vocab_size": VOCABULARY,
}
_EULER: Final[dict[str, Any]] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
_BETAS: Final[dict[str, Any]] = {key: _EULER[key] for key in ("beta_end", "beta_schedule", "beta_start")}
_LCM: Final = (
    "LCMScheduler",
    {**_BETAS, "clip_sample": False, "original_inference_steps": 50, "set_alpha_to_one": True},
)
_SCHEDULERS: Final[dict[Family, tuple[str, dict[str, Any]]]] = {
    "sdxl-turbo": ("EulerAncestralDiscreteScheduler", {**_BETAS, "timestep_spacing": "trailing"}),
    "small-sd": ("PNDMScheduler", {**_BETAS, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    "tiny-sd": ("DDIMScheduler", {**_BETAS, "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}),
    "lcm": _LCM,
    "lcm-sdxl": _LCM,
    "instruct-pix2pix": ("EulerAncestralDiscreteScheduler", {**_BETAS, "steps_offset": 1}),
}
"""The scheduler's class and options, where they are not those of SDXL."""
_PIPELINES: Final[dict[Family, str]] = {
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-turbo": "StableDiffusionXLPipeline",
    "sdxl-inpainting": "StableDiffusionXLInpaintPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "ssd-1b": "StableDiffusionXLPipeline",
    "small-sd": "StableDiffusionPipeline",
    "tiny-sd": "StableDiffusionPipeline",
    "lcm": "LatentConsistencyModelPipeline",
    "lcm-sdxl": "StableDiffusionXLPipeline",
    "instruct-pix2pix": "StableDiffusionInstructPix2PixPipeline",
}


def small_checkpoint(folder: Path, family: Family, **options: Any) -> Path:
    """Save a family's checkpoint of about a million random parameters in its form; the same weights every time.

    Native size 64 x 64 pixels, downsample factor 8. `options` are added to those of diffusers' pipeline, which are
    plain values of model_index.json, such as force_zeros_for_empty_prompt."""
    import diffusers

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    is_xl, is_refiner = "addition_embed_type" in PUBLISHED_UNETS[_unet_family(family)], family == "sdxl-refiner"
    components = _networks(family)
    class_name, schedule = _SCHEDULERS.get(family, ("EulerDiscreteScheduler", _EULER))
    components["scheduler"] = getattr(diffusers, class_name)(**schedule)
    components["tokenizer"] = None if is_refiner else word_tokenizer(WORDS, WINDOW)
    if is_xl:
        components["tokenizer_2"] = word_tokenizer(WORDS, WINDOW)
        components["add_watermarker"] = False
    else:
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if is_refiner:
        components |= {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    getattr(diffusers, _PIPELINES[family])(**components, **options).save_pretrained(folder)
    if not is_refiner:
        save_old_tokenizer(folder / "tokenizer", pad_token=END)
    if is_xl:
        save_old_tokenizer(folder / "tokenizer_2", pad_token="!")
    return folder


def _unet_family(family: Family) -> UNetFamily:
    return "sdxl" if family == "sdxl-turbo" else family


def _networks(family: Family) -> dict[str, Any]:
    """Return a family's networks by the names of their components; None for a component that it lacks."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    is_xl, is_refiner = "addition_embed_type" in PUBLISHED_UNETS[_unet_family(family)], family == "sdxl-refiner"
    widths = _TEXT_WIDTHS[1:] if is_refiner else _TEXT_WIDTHS if is_xl else _TEXT_WIDTHS[:1]
    first = CLIPTextConfig(**_CLIP, hidden_size=widths[0], intermediate_size=64, projection_dim=_POOLED_WIDTH)
    second = CLIPTextConfig(
        **{**_CLIP, "hidden_act": "gelu"},
        hidden_size=widths[-1],
        intermediate_size=64,
        projection_dim=_POOLED_WIDTH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(30)
        config = small_unet_config(_unet_family(family), text_width=sum(widths), pooled_width=_POOLED_WIDTH)
        unet = UNet2DConditionModel(**config)
        vae = AutoencoderKL(**AUTOENCODER, scaling_factor=0.13025 if is_xl else 0.18215, sample_size=64)
        encoders: dict[str, Any] = {"text_encoder": None if is_refiner else CLIPTextModel(first)}
        if is_xl:
            encoders["text_encoder_2"] = CLIPTextModelWithProjection(second)
        make_lively(unet, vae, *filter(None, encoders.values()))
    return {"unet": unet, "vae": vae, **encoders}
