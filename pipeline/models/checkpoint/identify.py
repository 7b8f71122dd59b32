"""Say in one line what a path is that is given as a checkpoint but is none, and what takes it."""

import json
import re
from pathlib import Path
from typing import Any, Final

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.layout import PICKLES

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_SUPPORTED: Final = "supported are latent diffusion models with a U-Net, such as Stable Diffusion 1, 2 and XL"
_CONVERT: Final = "load it with diffusers (from_single_file) and save it with save_pretrained, which writes safetensors"


def missing_checkpoint(model: str, embedded: list[str]) -> CheckpointError:
    """Return the error for a path that does not exist."""
    if _HUB_ID.fullmatch(model):
        name = model.rpartition("/")[2]
        return CheckpointError(
            f"{model}: no such folder; if it is a model of the Hugging Face Hub, download it first: "
            f"hf download {model} --local-dir {name}"
        )
    return CheckpointError(
        f"{model}: no such checkpoint folder, and no embedded model of this name (embedded are {', '.join(embedded)})"
    )


def check_file_kind(path: Path) -> None:
    """Raise CheckpointError if a file is not safetensors."""
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path}: is a pickle, which can run code when it is read; {_CONVERT}")
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: is a file; a checkpoint is a folder with a model_index.json, or a .safetensors file"
        )


def check_folder_kind(folder: Path) -> None:
    """Raise CheckpointError if a folder is a component, an adapter, or of an unsupported family; others pass."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder}: is a LoRA in PEFT's form; give --lora NAME={folder}")
    index = _read(folder / "model_index.json")
    if index is None:
        _check_component(folder, _read(folder / "config.json"))
        return
    name = index.get("_class_name")
    if "transformer" in index:
        raise CheckpointError(f"{folder}: is a {name}, a diffusion transformer, which is not supported; {_SUPPORTED}")
    if "unet" not in index and "prior" in index:
        raise CheckpointError(f"{folder}: is a {name}, which is not supported; {_SUPPORTED}")
    if isinstance(index.get("controlnet"), list) and index["controlnet"][1] is not None:
        raise CheckpointError(f"{folder}: is a {name}; ControlNets are not supported yet")


def _check_component(folder: Path, config: dict[str, Any] | None) -> None:
    if config is None:
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        if files:
            raise CheckpointError(f"{folder}: holds no model_index.json; to load a single file, give {files[0]}")
        return
    name = str(config.get("_class_name") or next(iter(config.get("architectures") or []), "model"))
    takes = {
        "AutoencoderKL": f"give --vae {folder}",
        "AutoencoderTiny": f"give --vae {folder}",
        "AsymmetricAutoencoderKL": f"give --vae {folder}",
        "ControlNetModel": "ControlNets are not supported yet",
    }
    if "Transformer" in name and "_class_name" in config:
        raise CheckpointError(f"{folder}: is a {name}, a diffusion transformer, which is not supported; {_SUPPORTED}")
    if "_class_name" in config:
        remedy = takes.get(name, "give the checkpoint's folder, which holds model_index.json")
        raise CheckpointError(f"{folder}: is one component, {name}; {remedy}")


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None if the file is missing or is none, which its reader says."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
