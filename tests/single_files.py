"""Single-file checkpoints, made from folders of diffusers by the published tables of names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

COMPONENTS: Final = ("unet", "vae", "text_encoder", "text_encoder_2")
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def write_single_file(
    folder: Path, path: Path, family: str, extra: dict[str, Tensor] | None = None, **meta: str
) -> Path:
    """Write the checkpoint in `folder` as one file of the family: sd1, sd2, sdxl, sdxl-refiner or x4-upscaler."""
    names = [name for name in COMPONENTS if (folder / name).exists()]
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
    tensors = single_file_tensors({name: _weights(folder / name) for name in names}, family, layers)
    tensors |= {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(1), **(extra or {})}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=meta or None)
    return path


def single_file_tensors(networks: Mapping[str, dict[str, Tensor]], family: str, layers: int) -> dict[str, Tensor]:
    """Return the tensors of a family's single file; `networks` are the components' tensors, `layers` those of a level
    of the U-Net."""
    tensors: dict[str, Tensor] = {}
    unet = {unet_name(name, layers): tensor for name, tensor in networks["unet"].items()}
    for name, tensor in unet.items():
        block = name.partition(".UPSAMPLER.")[0]
        attends = any(other.startswith(f"{block}.1.transformer_blocks") for other in unet)
        tensors["model.diffusion_model." + name.replace("UPSAMPLER", "2" if attends else "1")] = tensor
    autoencoder = networks["vae"]
    levels = 1 + max(int(name.split(".")[2]) for name in autoencoder if name.startswith("decoder.up_blocks"))
    for name, tensor in autoencoder.items():
        stored = autoencoder_name(name, levels)
        is_attention = ".attn_1." in stored and ".norm." not in stored and tensor.ndim == 2
        tensors["first_stage_model." + stored] = tensor[:, :, None, None].clone() if is_attention else tensor
    if family == "sd1":
        for name, tensor in networks["text_encoder"].items():
            tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None].float()
    elif family in ("sd2", "x4-upscaler"):
        tensors |= _open_clip(networks["text_encoder"], "cond_stage_model.model.", more_blocks=1)
    elif family == "sdxl":
        for name, tensor in networks["text_encoder"].items():
            stored = f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"
            tensors[stored] = tensor
        tensors |= _open_clip(networks["text_encoder_2"], "conditioner.embedders.1.model.")
    else:
        tensors |= _open_clip(networks["text_encoder_2"], "conditioner.embedders.0.model.")
    return tensors


def unet_name(name: str, layers: int) -> str:
    parts = name.split(".")
    for count in (2, 1):
        if ".".join(parts[:count]) in _TOP:
            return ".".join([_TOP[".".join(parts[:count])], *parts[count:]])
    if parts[0] == "mid_block":
        index = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[parts[1] + parts[2]]
        return ".".join([f"middle_block.{index}", *_inside(parts[1], parts[3:])])
    level, kind, index = int(parts[1]), parts[2], int(parts[3])
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{parts[-1]}"
    if kind == "upsamplers":
        return f"output_blocks.{level * (layers + 1) + layers}.UPSAMPLER.conv.{parts[-1]}"
    block = level * (layers + 1) + index + (1 if parts[0] == "down_blocks" else 0)
    half = "input_blocks" if parts[0] == "down_blocks" else "output_blocks"
    return ".".join([f"{half}.{block}.{0 if kind == 'resnets' else 1}", *_inside(kind, parts[4:])])


def _inside(kind: str, rest: list[str]) -> list[str]:
    return [_RESNET[rest[0]], *rest[1:]] if kind == "resnets" else rest


def autoencoder_name(name: str, levels: int) -> str:
    parts = name.split(".")
    if len(parts) < 3 or parts[1] in ("conv_in", "conv_out"):
        return name
    if parts[1] == "conv_norm_out":
        return f"{parts[0]}.norm_out.{parts[2]}"
    names = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
    tail = [names.get(part, part) for part in parts]
    if parts[1] == "mid_block":
        if parts[2] == "resnets":
            return ".".join([parts[0], "mid", f"block_{int(parts[3]) + 1}", *tail[4:]])
        tail = tail[4:] if parts[4] != "to_out" else ["proj_out", parts[-1]]
        return ".".join([parts[0], "mid", "attn_1", *tail])
    half = "down" if parts[1] == "down_blocks" else "up"
    level = int(parts[2]) if half == "down" else levels - 1 - int(parts[2])
    if parts[3] == "resnets":
        return ".".join([parts[0], half, str(level), "block", parts[4], *tail[5:]])
    return ".".join([parts[0], half, str(level), "downsample" if half == "down" else "upsample", *tail[5:]])


def _open_clip(weights: dict[str, Tensor], prefix: str, more_blocks: int = 0) -> dict[str, Tensor]:
    plain = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    layers = 1 + max(int(name.split(".")[2]) for name in plain if name.startswith("encoder.layers."))
    tensors = {
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    width = tensors["ln_final.weight"].shape[0]
    projection = plain.get("text_projection.weight")
    tensors["text_projection"] = torch.randn(width, width) if projection is None else projection.T.clone()
    for layer in range(layers + more_blocks):
        old, new = f"encoder.layers.{min(layer, layers - 1)}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            stacked = [plain[f"{old}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            tensors[f"{new}attn.in_proj_{kind}"] = torch.cat(stacked)
            tensors[f"{new}attn.out_proj.{kind}"] = plain[f"{old}self_attn.out_proj.{kind}"]
            for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc")):
                tensors[f"{new}{theirs}.{kind}"] = plain[f"{old}{ours}.{kind}"]
            tensors[f"{new}mlp.c_proj.{kind}"] = plain[f"{old}mlp.fc2.{kind}"]
    return {prefix + name: tensor.clone() for name, tensor in tensors.items()}


def _weights(folder: Path) -> dict[str, Tensor]:
    [path] = folder.glob("*.safetensors")
    tensors: dict[str, Any] = load_file(path)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
