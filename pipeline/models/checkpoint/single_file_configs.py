"""The configs of the components of a single-file checkpoint: from its tensors' shapes, and from published configs."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.clip_vocabulary import END
from pipeline.models.checkpoint.single_file import TEXT, UNET, Family, SingleFile

Shapes = Mapping[str, tuple[int, ...]]

_HEAD_WIDTH: Final = 64
"""Channels per head of the text encoders, and of the U-Nets of Stable Diffusion 2 and XL; others have 8 heads."""
_HEADS: Final[Mapping[Family, tuple[int, ...]]] = {
    "sd1": (8, 8, 8, 8),
    "x4-upscaler": (8, 8, 8, 8),
    "sd2": (5, 10, 20, 20),
    "sdxl": (5, 10, 20),
    "sdxl-refiner": (6, 12, 24, 24),
}
"""Heads by level of the published U-Nets."""
_GROUPS: Final = 32

SCALING: Final[Mapping[Family, float]] = {
    "sd1": 0.18215,
    "sd2": 0.18215,
    "sdxl": 0.13025,
    "sdxl-refiner": 0.13025,
    "x4-upscaler": 0.08333,
}
VERSION: Final = {"_diffusers_version": "0.30.0"}
"""The version of diffusers that has all the options written, for its pipelines that ask for it."""
_BETAS: Final = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


def unet_config(file: SingleFile) -> dict[str, Any]:
    """Return the config.json of the file's U-Net."""
    shapes, family = file.part(UNET), file.family
    levels = _levels(shapes)
    channels = [shapes[f"input_blocks.{level.first_block}.0.out_layers.3.weight"][0] for level in levels]
    middle = _transformers(shapes, "middle_block")
    layers = _per_level([level.down for level in levels], middle)
    reversed_layers = _per_level([level.up for level in levels[::-1]], middle)[::-1]
    native = {"sd1": 64, "sd2": 96 if file.prediction_type == "v_prediction" else 64}.get(family, 128)
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        **VERSION,
        "sample_size": native,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0].down),
        "down_block_types": ["CrossAttnDownBlock2D" if any(level.down) else "DownBlock2D" for level in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if any(level.up) else "UpBlock2D" for level in levels],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "transformer_layers_per_block": layers,
        "cross_attention_dim": next(shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")),
        "attention_head_dim": _heads(family, channels),
        "use_linear_projection": any(
            name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items()
        ),
        "upcast_attention": family == "sd2",
    }
    if family == "x4-upscaler":
        config["only_cross_attention"] = [True] * (len(levels) - 1) + [False]
    if reversed_layers[::-1] != layers:
        config["reverse_transformer_layers_per_block"] = reversed_layers
    return config | _added_embeddings(file, shapes)


def _added_embeddings(file: SingleFile, shapes: Shapes) -> dict[str, Any]:
    """Return the options of what is added to the embedding of timesteps: noise levels, or SDXL's text and sizes."""
    if "label_emb.weight" in shapes:
        return {"num_class_embeds": shapes["label_emb.weight"][0]}
    if "label_emb.0.0.weight" not in shapes:
        return {}
    width, numbers = shapes["label_emb.0.0.weight"][1], 5 if file.family == "sdxl-refiner" else 6
    pooled = file.shapes[TEXT[file.family][-1] + "text_projection"][1]
    return {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": width,
        "addition_time_embed_dim": (width - pooled) // numbers,
    }


class _Level(NamedTuple):
    """A level of a U-Net: the number of its first input block, and the transformer layers of each of its blocks.

    `up` belongs to the up block of the same number, whose resolution is that of the opposite level."""

    first_block: int
    down: list[int]
    up: list[int]


def _levels(shapes: Shapes) -> list[_Level]:
    depth = next(block for block in itertools.count() if f"input_blocks.{block + 1}.0.in_layers.0.weight" not in shapes)
    count = 1 + sum(name.endswith(".0.op.weight") for name in shapes)
    return [
        _Level(
            start + 1,
            [_transformers(shapes, f"input_blocks.{start + 1 + layer}") for layer in range(depth)],
            [_transformers(shapes, f"output_blocks.{start + layer}") for layer in range(depth + 1)],
        )
        for start in range(0, count * (depth + 1), depth + 1)
    ]


def _heads(family: Family, channels: Sequence[int]) -> int | list[int]:
    """Return the heads of each level: the published ones, or in smaller U-Nets one per 64 channels."""
    published = _HEADS[family]
    if len(set(published)) == 1:
        return published[0]
    by_width = all(width % _HEAD_WIDTH == 0 for width in channels) or len(channels) != len(published)
    if by_width or any(width % heads for width, heads in zip(channels, published, strict=True)):
        return [max(1, width // _HEAD_WIDTH) for width in channels]
    return list(published)


def _transformers(shapes: Shapes, block: str) -> int:
    """Return the number of transformer blocks in a block of the file."""
    return next(
        count for count in itertools.count() if f"{block}.1.transformer_blocks.{count}.norm1.weight" not in shapes
    )


def _per_level(levels: list[list[int]], middle: int) -> list[int | list[int]]:
    """Return the transformer layers of each level: one number if all of its attentions have the same.

    The last level's number is the middle's too, so a last level without attentions gets that."""
    found = [layers[0] if len(set(layers)) == 1 else layers for layers in levels]
    return [*(layers or 1 for layers in found[:-1]), found[-1] or max(1, middle)]


def autoencoder_config(file: SingleFile) -> dict[str, Any]:
    """Return the config.json of the file's autoencoder, or of the published one if it has none."""
    prefix = file.autoencoder_prefix
    shape = _published_autoencoder(file.family) if prefix is None else autoencoder_shape(file.part(prefix))
    return {
        **shape,
        **VERSION,
        "sample_size": {"sd1": 512, "sd2": 768, "x4-upscaler": 256}.get(file.family, 1024),
        "scaling_factor": SCALING[file.family],
        "force_upcast": True,
    }


def _published_autoencoder(family: Family) -> dict[str, Any]:
    channels = [128, 256, 512] if family == "x4-upscaler" else [128, 256, 512, 512]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": _GROUPS,
    }


def autoencoder_shape(shapes: Shapes) -> dict[str, Any]:
    """Return those options of an autoencoder that its tensors' shapes say."""
    levels = next(level for level in itertools.count() if f"encoder.down.{level}.block.0.norm1.weight" not in shapes)
    depth = next(layer for layer in itertools.count() if f"encoder.down.0.block.{layer}.norm1.weight" not in shapes)
    channels = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": depth,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": _GROUPS,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": any(name.startswith("encoder.mid.attn_1.") for name in shapes),
    }


def text_config(shapes: Shapes, *, open_clip: bool, layers: int, projects: bool) -> dict[str, Any]:
    """Return the config.json of a text encoder; `shapes` have transformers' names without `text_model.`."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    config = {
        "architectures": ["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    return config | ({"projection_dim": shapes["text_projection.weight"][0]} if projects else {})


def scheduler_config(file: SingleFile) -> dict[str, Any]:
    """Return the scheduler_config.json of the family, with what the file says of its predictions."""
    zero_snr = {"rescale_betas_zero_snr": True} if file.zero_terminal_snr else {}
    common = {**_BETAS, "prediction_type": file.prediction_type, **zero_snr}
    if file.family in ("sdxl", "sdxl-refiner"):
        return {"_class_name": "EulerDiscreteScheduler", **common, "timestep_spacing": "leading"}
    ddim = {"_class_name": "DDIMScheduler", **common, "clip_sample": False, "set_alpha_to_one": False}
    if file.family == "x4-upscaler":
        return {**ddim, "beta_start": 1e-4, "beta_end": 0.02}
    if pipeline_class(file) == "StableDiffusionInstructPix2PixPipeline":
        return {"_class_name": "EulerAncestralDiscreteScheduler", **common}
    if zero_snr or (file.family == "sd2" and file.prediction_type == "v_prediction"):
        return ddim
    return {"_class_name": "PNDMScheduler", **common, "skip_prk_steps": True, "set_alpha_to_one": False}


def low_res_scheduler_config() -> dict[str, Any]:
    """Return the config of the noise that the x4 upscaler adds to its source."""
    return {
        "_class_name": "DDPMScheduler",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": True,
    }


_PIPELINES: Final[Mapping[Family, Mapping[int, str]]] = {
    "sd1": {
        4: "StableDiffusionPipeline",
        8: "StableDiffusionInstructPix2PixPipeline",
        9: "StableDiffusionInpaintPipeline",
    },
    "sd2": {4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline"},
    "sdxl": {
        4: "StableDiffusionXLPipeline",
        8: "StableDiffusionXLInstructPix2PixPipeline",
        9: "StableDiffusionXLInpaintPipeline",
    },
    "sdxl-refiner": {4: "StableDiffusionXLImg2ImgPipeline"},
    "x4-upscaler": {7: "StableDiffusionUpscalePipeline"},
}
"""The class in model_index.json by the input channels of the U-Net."""


def pipeline_class(file: SingleFile) -> str:
    """Return the class of diffusers for the file's form; CheckpointError if its family has no such form."""
    known, channels = _PIPELINES[file.family], file.shapes[f"{UNET}input_blocks.0.0.weight"][1]
    if channels not in known:
        supported = " or ".join(map(str, known))
        raise CheckpointError(f"{file.path}: its U-Net takes {channels} channels; for {file.family}, it is {supported}")
    return known[channels]


def text_encoder_padding(file: SingleFile) -> tuple[str | None, ...]:
    """Return the padding of each text encoder: CLIP's end token (Stable Diffusion 1's), or None for token 0."""
    paddings: Mapping[Family, tuple[str | None, ...]] = {"sd1": (END,), "sdxl": (END, None)}
    return paddings.get(file.family, (None,))
