"""Names of a network's modules in single-file checkpoints; LoRAs for SDXL are written with the U-Net's, too."""

import re
from collections.abc import Iterable
from typing import Final

from pipeline.models.unet_config import UNetConfig

_TOP: Final = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_LEVEL: Final = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def single_file_names(config: UNetConfig, modules: Iterable[str]) -> dict[str, str]:
    """Return the modules of a U-Net by their names in single files; empty where levels differ in their layers."""
    layers = set(config.per_level("layers_per_block"))
    if len(layers) != 1:
        return {}
    (depth,) = layers
    known = set(modules)
    return {stored: name for name in known if (stored := _stored(name, depth, known))}


def _stored(name: str, depth: int, modules: set[str]) -> str | None:
    """Return a module's name in single files, None if it has none; `depth` is the layers of a level."""
    parts = name.split(".")
    for count in (3, 2, 1):
        if start := _TOP.get(".".join(parts[:count])):
            return ".".join([start, *_inner(parts, count)])
    match = _LEVEL.match(name)
    if match is None or len(parts) < 5:
        return None
    level, layer = int(match[2]), int(match[4])
    block = level * (depth + 1)
    if match[3] == "downsamplers":
        return f"input_blocks.{block + depth + 1}.0.op"
    if match[3] == "upsamplers":
        attends = f"up_blocks.{level}.attentions.0" in modules
        return f"output_blocks.{block + depth}.{2 if attends else 1}.conv"
    half = f"input_blocks.{block + layer + 1}" if match[1] == "down" else f"output_blocks.{block + layer}"
    return ".".join([half, "0" if match[3] == "resnets" else "1", *_inner(parts, 4)])


def _inner(parts: list[str], count: int) -> list[str]:
    """Return the parts of a name behind the first `count`, with a residual block's own names as in single files."""
    rest = parts[count:]
    return [_RESNET[rest[0]], *rest[1:]] if rest and "resnets" in parts[:count] and rest[0] in _RESNET else rest


_AUTOENCODER: Final[tuple[tuple[str, str], ...]] = (
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def autoencoder_name(name: str, levels: int) -> str:
    """Return the name in single files of an autoencoder's tensor; the decoder's levels are counted backwards."""
    for pattern, stored in _AUTOENCODER:
        name = re.sub(pattern, stored, name)
    return re.sub(r"\.up\.(\d+)\.", lambda match: f".up.{levels - 1 - int(match[1])}.", name)


_OPEN_CLIP: Final[tuple[tuple[str, str], ...]] = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.", r"transformer.resblocks.\1.attn.in_proj_"),
)


def open_clip_name(name: str) -> str:
    """Return OpenCLIP's name of a text encoder's tensor; queries, keys and values are thirds of one tensor there."""
    for pattern, stored in _OPEN_CLIP:
        name = re.sub(pattern, stored, name)
    return name
