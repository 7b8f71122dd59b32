"""Read a CLIP folder's config.json and preprocessor_config.json, without its weights."""

from pathlib import Path
from typing import Any, Final

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.layout import TRANSFORMERS_STEM
from pipeline.models.checkpoint.weights import read_json, weight_files

_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION: Final = (0.26862954, 0.26130258, 0.27577711)
"""Color statistics of the first CLIPs' training images (Radford et al. 2021)."""
_SIDE: Final = 224


def check_clip(folder: Path) -> None:
    """Raise CheckpointError if a folder is not a CLIP, or has no safetensors."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if not {"text_config", "vision_config"} <= config.keys():
        raise CheckpointError(f"{folder}: is not a CLIP: its config.json needs text_config and vision_config")
    weight_files(folder, TRANSFORMERS_STEM, half=False)


def clip_side(folder: Path) -> int:
    """Return the side of a CLIP's input images in pixels."""
    found = _preparation(folder).get("crop_size")
    found = found.get("height") if isinstance(found, dict) else found
    return int(found or read_json(folder / "config.json")["vision_config"].get("image_size", _SIDE))


def clip_colors(folder: Path) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation by which color values in [0, 1] are normalized."""
    about = _preparation(folder)
    return list(about.get("image_mean", _MEAN)), list(about.get("image_std", _DEVIATION))


def _preparation(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.exists() else {}
