"""The files of a checkpoint folder that this package reads: model_index.json, and a folder per component.

Everything else in a folder (safety checkers, feature extractors, training states, other variants of weights) is neither
loaded, hashed nor required.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

DIFFUSERS_STEM: Final = "diffusion_pytorch_model"
TRANSFORMERS_STEM: Final = "model"

STEMS: Final[Mapping[str, str]] = {
    "unet": DIFFUSERS_STEM,
    "vae": DIFFUSERS_STEM,
    "vqvae": DIFFUSERS_STEM,
    "text_encoder": TRANSFORMERS_STEM,
    "text_encoder_2": TRANSFORMERS_STEM,
    "bert": TRANSFORMERS_STEM,
}
"""The components that have weights, and the stem of the names of their weight files."""

AUTOENCODERS: Final = ("vae", "vqvae")
"""The names of the autoencoder: that of diffusers, and that of the paper's models."""
SCHEDULERS: Final = ("scheduler", "low_res_scheduler")
COMPONENTS: Final = frozenset({*STEMS, *SCHEDULERS, "tokenizer", "tokenizer_2"})

SINGLE_FILE: Final = "single_file.safetensors"
"""The name, in a folder of references, of the link to the single-file checkpoint that has the weights."""

SAFETENSORS: Final = ".safetensors"
PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VARIANT: Final = "fp16"
_SMALL: Final = (".json", ".txt")


def listed_components(index: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the components that model_index.json lists; a component that is [null, null] is left out."""
    return frozenset(name for name in COMPONENTS & index.keys() if index[name] not in (None, [None, None]))


def weight_names(stem: str, *, half: bool) -> tuple[str, ...]:
    """Return the possible names of a component's weight file or of the index of its shards, in order of preference.

    Other variants, such as `.non_ema`, contain other weights and are ignored."""
    full = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    variant = (
        f"{stem}.{VARIANT}.safetensors",
        f"{stem}.safetensors.index.{VARIANT}.json",
        f"{stem}.{VARIANT}.safetensors.index.json",
    )
    return (*variant, *full) if half else (*full, *variant)


def is_config(name: str, index: Mapping[str, Any] | None) -> bool:
    """Return whether a file, given by its path in a checkpoint folder, is a config or tokenizer file that is read.

    `index` is the content of model_index.json, or None for a folder of one component, such as a CLIP."""
    path = PurePosixPath(name)
    if path.suffix not in _SMALL or path.name.endswith(".index.json") or ".safetensors.index." in path.name:
        return False
    if len(path.parts) == 1:
        return index is None or name in ("model_index.json", "generation_config.json")
    return index is not None and len(path.parts) == 2 and path.parts[0] in listed_components(index)


def names_in_use(names: Collection[str], read: Callable[[str], Any], *, half: bool) -> frozenset[str]:
    """Return those of a checkpoint folder's files that are read; `read` returns the content of a JSON file.

    Paths are relative to the folder. Weights that are missing are not in the result."""
    index = read("model_index.json") if "model_index.json" in names else None
    used = {name for name in names if is_config(name, index)}
    listed = frozenset[str]() if index is None else listed_components(index) & STEMS.keys()
    stems = {"": TRANSFORMERS_STEM} if index is None else {f"{name}/": STEMS[name] for name in listed}
    for folder, stem in stems.items():
        weights = next((folder + name for name in weight_names(stem, half=half) if folder + name in names), None)
        if weights is not None:
            used.add(weights)
            shards = read(weights).get("weight_map", {}).values() if weights.endswith(".json") else ()
            used |= {f"{folder}{shard}" for shard in shards} & set(names)
    return frozenset(used)
