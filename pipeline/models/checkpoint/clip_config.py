"""What a CLIP's folder says of it, without its weights: config.json and preprocessor_config.json."""

from pathlib import Path
from typing import Any, Final

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.weights import read_json, weight_files

_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION: Final = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that the first CLIPs were trained on (Radford et al. 2021)."""
_SIDE: Final = 224


def check_clip(folder: Path) -> None:
    """CheckpointError where a folder is no CLIP, or has no safetensors."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if not {"text_config", "vision_config"} <= config.keys():
        raise CheckpointError(f"{folder}: is no CLIP: its config.json needs text_config and vision_config")
    weight_files(folder, half=False)


def clip_side(folder: Path) -> int:
    """Pixels of the square that a CLIP sees."""
    found = _preparation(folder).get("crop_size")
    found = found.get("height") if isinstance(found, dict) else found
    return int(found or read_json(folder / "config.json")["vision_config"].get("image_size", _SIDE))


def clip_colors(folder: Path) -> tuple[list[float], list[float]]:
    """The mean and the deviation of color values in [0, 1] that it takes for 0 and 1."""
    about = _preparation(folder)
    return list(about.get("image_mean", _MEAN)), list(about.get("image_std", _DEVIATION))


def _preparation(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.exists() else {}
