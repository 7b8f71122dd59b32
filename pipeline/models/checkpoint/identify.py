"""Say in one line what a path is that is given as a checkpoint but is none, and what takes it."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.layout import PICKLES, SAFETENSORS

UNET: Final = "model.diffusion_model."
"""The prefix of a U-Net's tensors in single-file checkpoints."""

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_SUPPORTED: Final = "supported are latent diffusion models with a U-Net, such as Stable Diffusion 1, 2 and XL"
_CONVERT: Final = "load it with diffusers (from_single_file) and save it with save_pretrained, which writes safetensors"

_OPTIONS: Final[tuple[tuple[str, str], ...]] = (
    (r"lora_controlnet", "a Control-LoRA, which is not supported"),
    (r"^lllite_unet", "a ControlNet-LLLite, which is not supported"),
    (
        r"\.lora_(down|up|A|B|mid)\.|\.hada_w1|\.lokr_w|lora_linear_layer|_lora\.(down|up)|\.(oft_blocks|a1\.weight|on_input)$",
        "a LoRA; give it as --lora NAME={path}",
    ),
    (
        r"^control_model\.|^controlnet_|(^|\.)input_hint_block\.|^control_(add_embedding|layers|all_x_embedder)|"
        r"^task_embedding$",
        "a ControlNet, which is not supported yet",
    ),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter, which is not supported yet"),
    (r"motion_modules\.", "an AnimateDiff motion module, which is not supported"),
    (r"^(emb_params|clip_[lg]|string_to_param)$", "a textual inversion; give it as --embedding NAME={path}"),
)
"""What a file is, by a tensor's name; `{path}` is the file."""

_UNSUPPORTED: Final[tuple[tuple[str, str], ...]] = (
    (r"(^|\.)joint_blocks\.|^transformer_blocks\.0\.attn\.add_q_proj", "Stable Diffusion 3"),
    (r"(^|\.)(double_stream_modulation|single_stream_modulation)", "FLUX.2"),
    (r"(^|\.)(double_blocks|single_transformer_blocks)\.", "FLUX"),
    (r"(^|\.)double_layers\.", "AuraFlow"),
    (r"(^|\.)layers\.0\.adaLN_modulation\.", "Z-Image"),
    (r"(^|\.)cap_embedder\.", "Lumina"),
    (r"(^|\.)(mlp\.inverted_conv|ff\.conv_inverted|attention_y_norm|caption_norm)\.", "Sana"),
    (r"(^|\.)(adaln_single\.|scale_shift_table$|blocks\.0\.cross_attn\.q_linear)", "PixArt or another transformer"),
    (r"(^|\.)(txt_in\.|patch_embedding\.|head\.modulation$)", "another diffusion transformer"),
    (r"(^|\.)(clip_txt_mapper\.|down_blocks\.1\.0\.channelwise)", "Stable Cascade"),
    (r"^edm_(mean|std)$", "Playground 2.5 (EDM)"),
    (r"^depth_model\.", "Stable Diffusion 2 depth"),
    (r"^noise_augmentor\.", "Stable unCLIP"),
    (r"\.time_(stack|mixer)\.", "a video model"),
)
"""Families that are not supported, by a tensor's name."""

_COMPONENTS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(down|up|mid|conv_in|layers)",
        "an autoencoder alone; give it as --vae {path}",
    ),
    (r"^(input_blocks|down_blocks)\.", "a U-Net alone, without autoencoder and text encoder; give a whole checkpoint"),
    (
        r"^(transformer\.)?(text_model|resblocks|encoder\.(block|layers))\.",
        "a text encoder alone; give a whole checkpoint",
    ),
)
"""Components of a checkpoint that are a file of their own, by a tensor's name."""


def missing_checkpoint(model: str, embedded: list[str]) -> CheckpointError:
    """Return the error for a path that does not exist."""
    if model.endswith((SAFETENSORS, *PICKLES)):
        return CheckpointError(f"{model}: no such file")
    if _HUB_ID.fullmatch(model):
        name = model.rpartition("/")[2]
        return CheckpointError(
            f"{model}: no such folder; if it is a model of the Hugging Face Hub, download it first: "
            f"hf download {model} --local-dir {name}"
        )
    return CheckpointError(
        f"{model}: no such checkpoint folder, and no embedded model of this name (embedded are {', '.join(embedded)})"
    )


def check_file_kind(path: str) -> None:
    """Raise CheckpointError if a file is not safetensors."""
    if path.endswith(PICKLES):
        raise CheckpointError(f"{path}: is a pickle, which can run code when it is read; {_CONVERT}")
    if not path.endswith(SAFETENSORS):
        raise CheckpointError(
            f"{path}: is a file; a checkpoint is a folder with a model_index.json, or a .safetensors file"
        )


def check_tensor_names(path: str, names: Collection[str]) -> None:
    """Raise CheckpointError if a file with these tensors is not a checkpoint, or one of an unsupported family."""
    kind = _kind(_OPTIONS, names)
    if kind is not None and not any(name.startswith(UNET) for name in names):
        raise CheckpointError(f"{path}: is {kind.format(path=path)}")
    if family := _kind(_UNSUPPORTED, names):
        raise CheckpointError(f"{path}: is {family}, which is not supported; {_SUPPORTED}")
    if not any(name.startswith(UNET) for name in names):
        raise CheckpointError(f"{path}: is {describe(path, names)}")


def describe(path: str, names: Collection[str]) -> str:
    """Return what a file with these tensors is, and the option that takes it."""
    if any(name.startswith(UNET) for name in names):
        return f"a checkpoint; give it as --model {path}"
    if kind := _kind((*_OPTIONS, *_COMPONENTS), names):
        return kind.format(path=path)
    if len(names) == 1:
        return f"a file of one tensor; if it is a textual inversion, give it as --embedding NAME={path}"
    return f"not a checkpoint: it has no {UNET}* tensors (it has {', '.join(sorted(names)[:2]) or 'none'}, ...)"


def _kind(kinds: Collection[tuple[str, str]], names: Collection[str]) -> str | None:
    return next((kind for pattern, kind in kinds if any(re.search(pattern, name) for name in names)), None)


def check_folder_kind(folder: Path) -> None:
    """Raise CheckpointError if a folder is a component, an adapter, or of an unsupported family; others pass."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder}: is a LoRA in PEFT's form; give it as --lora NAME={folder}")
    index = _read(folder / "model_index.json")
    if index is None:
        _check_component(folder, _read(folder / "config.json"))
        return
    name = index.get("_class_name")
    if "transformer" in index:
        raise CheckpointError(f"{folder}: is a {name}, a diffusion transformer, which is not supported; {_SUPPORTED}")
    if "unet" not in index and {"prior", "decoder", "prior_prior"} & index.keys():
        raise CheckpointError(f"{folder}: is a {name}, which is not supported; {_SUPPORTED}")
    if isinstance(index.get("controlnet"), list) and index["controlnet"][1] is not None:
        raise CheckpointError(f"{folder}: is a {name}; ControlNets are not supported yet")


def _check_component(folder: Path, config: dict[str, Any] | None) -> None:
    if config is None:
        _check_files(folder)
        return
    name = str(config.get("_class_name") or next(iter(config.get("architectures") or []), "model"))
    takes = {
        "AutoencoderKL": f"give it as --vae {folder}",
        "AutoencoderTiny": f"give it as --vae {folder}",
        "AsymmetricAutoencoderKL": f"give it as --vae {folder}",
        "ControlNetModel": "ControlNets are not supported yet",
    }
    if "Transformer" in name and "_class_name" in config:
        raise CheckpointError(f"{folder}: is a {name}, a diffusion transformer, which is not supported; {_SUPPORTED}")
    if "_class_name" in config or config.get("model_type") == "clip_text_model" or name.startswith("CLIPText"):
        remedy = takes.get(name, "give the checkpoint's folder, which holds model_index.json")
        raise CheckpointError(f"{folder}: is one component of a checkpoint, {name}; {remedy}")


def _check_files(folder: Path) -> None:
    """Raise CheckpointError if a folder without configs has files that are checkpoints or adapters themselves."""
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if files:
        try:
            with safe_open(files[0], framework="numpy") as file:
                kind = describe(str(files[0]), list(file.keys()))
        except (SafetensorError, OSError):
            kind = "not a readable safetensors file"
        raise CheckpointError(f"{folder}: holds no model_index.json; {files[0].name} in it is {kind}")
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        check_file_kind(str(pickles[0]))


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None if the file is missing or is none, which its reader says."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
