"""Recognize the base that a LoRA was made for, to say why it does not fit a checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import nn

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.lora_file import LoraFile
from pipeline.models.checkpoint.lora_keys import UNET
from pipeline.models.unet import UNet

_WIDTHS: Final = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL's refiner", 4096: "SD 3 or FLUX"}
"""Families by the width of the text that their U-Nets take."""
_HINTS: Final = (
    (re.compile(r"xl", re.I), "SDXL"),
    (re.compile(r"sd_?v2|diffusion-v2", re.I), "SD 2.x"),
    (re.compile(r"sd_?v1|diffusion-v1", re.I), "SD 1.x"),
    (re.compile(r"flux", re.I), "FLUX"),
    (re.compile(r"sd3|diffusion-3", re.I), "SD 3"),
)
"""Families by the base that a file's header names."""
_HEADER: Final = ("ss_base_model_version", "modelspec.architecture")
_TRANSFORMER: Final = re.compile(
    r"(^|[._])(transformer\.|double_blocks|single_blocks|joint_blocks|diffusion_model\.layers)"
)
_XL_KEYS: Final = re.compile(r"^(lora_te2_|lora_te1_|text_encoder_2\.)|add_embedding|label_emb")
_CROSS: Final = re.compile(r"attn2.*to_[kv].*(down|lora_A|hada_w1_b)(\.|$)")


def check_base(path: Path, file: LoraFile, networks: Mapping[str, nn.Module]) -> None:
    """Raise CheckpointError if a LoRA is made for another base than the networks are."""
    made_for, base = _lora_base(file), _checkpoint_base(networks)
    if made_for is not None and made_for != base:
        raise CheckpointError(f"{path}: is a LoRA for {made_for}; the checkpoint is {base}")


def _lora_base(file: LoraFile) -> str | None:
    """Return the base that a file names in its header or shows by its tensors; None if it does not."""
    width = next((tensor.shape[1] for key, tensor in file.tensors.items() if _CROSS.search(key)), None)
    family = None if width is None else _WIDTHS.get(width)
    if any(map(_XL_KEYS.search, file.tensors)):
        family = "SDXL"
    if any(map(_TRANSFORMER.search, file.tensors)):
        return "a transformer (SD 3, FLUX and others)"
    named = next((file.metadata[key] for key in _HEADER if file.metadata.get(key)), None)
    if named is not None:
        family = next((name for pattern, name in _HINTS if pattern.search(named)), family or repr(named))
    return _described(family, {width} if width else set())


def _checkpoint_base(networks: Mapping[str, nn.Module]) -> str | None:
    unet = networks[UNET]
    assert isinstance(unet, UNet)
    widths = unet.config.text_widths
    family = next((_WIDTHS[width] for width in widths if width in _WIDTHS), None)
    if unet.config.addition_embed_type == "text_time" and family is None:
        family = "SDXL"
    return _described(family, widths)


def _described(family: str | None, widths: set[int]) -> str | None:
    text = f"text of width {' and '.join(map(str, sorted(widths)))}" if widths else None
    if family is None:
        return text and f"a U-Net with {text}"
    return family if text is None else f"{family} ({text})"
