"""Names of the KL autoencoder's tensors in single files, and in diffusers' folders."""

import re
from collections.abc import Iterable
from typing import Final

PREFIXES: Final = ("first_stage_model.", "vae.")
"""Prefixes of the autoencoder's tensors in files that hold other networks too; a file of it alone has none."""

_LEVEL: Final = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(block\.(\d+)|downsample|upsample)\.(.*)")
_MIDDLE: Final = re.compile(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(.*)")
_MODULES: Final = {
    "block_1": "resnets.0",
    "block_2": "resnets.1",
    "attn_1": "attentions.0",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
}
_LAYERS: Final = {"nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out"}
_ATTENTION: Final = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def find_prefix(names: Iterable[str]) -> str:
    """Return the prefix of the autoencoder's tensors among the names of a file."""
    names = list(names)
    return next((each for each in PREFIXES if any(name.startswith(each) for name in names)), "")


def autoencoder_tensor_name(stored: str, levels: int) -> str:
    """Return diffusers' name of a tensor that a single file has under `stored`, without prefix.

    The decoder's levels are counted from the pixels there, from the latents in diffusers; `levels` is their number.
    Names that are diffusers' already stay as they are."""
    if match := _LEVEL.fullmatch(stored):
        side, level, module, block, rest = match.groups()
        index = int(level) if side == "encoder.down" else levels - 1 - int(level)
        name = f"resnets.{block}" if block is not None else _MODULES[module]
        return f"{side}_blocks.{index}.{name}.{_renamed(rest, _LAYERS)}"
    if match := _MIDDLE.fullmatch(stored):
        side, module, rest = match.groups()
        layers = _ATTENTION if module == "attn_1" else _LAYERS
        return f"{side}.mid_block.{_MODULES[module]}.{_renamed(rest, layers)}"
    side, dot, rest = stored.partition(".")
    return f"{side}{dot}{_renamed(rest, _LAYERS)}"


def _renamed(name: str, layers: dict[str, str]) -> str:
    layer, dot, rest = name.partition(".")
    return f"{layers.get(layer, layer)}{dot}{rest}"
