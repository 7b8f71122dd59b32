"""Single-file checkpoints: which family a .safetensors file is, and the parts of which it consists.

Names of tensors tell the family; what the file does not say (latent scale, scheduler, heads, native size) comes from
the family's published configs.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.identify import UNET, check_tensor_names
from pipeline.models.checkpoint.weights import open_safetensors

Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "x4-upscaler"]

AUTOENCODERS: Final = ("first_stage_model.", "vae.")
TEXT: Final[Mapping[Family, tuple[str, ...]]] = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "x4-upscaler": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "sdxl-refiner": ("conditioner.embedders.0.model.",),
}
"""The prefixes of the text encoders' tensors. Names with `.model.` are OpenCLIP's, others those of transformers."""

_IGNORED: Final = re.compile(
    r"^(model_ema\.|alphas_|betas$|sqrt_|log_one_minus|posterior_|lvlb_weights|logvar$|denoiser\.|cond_stage_key"
    r"|first_stage_model\.(loss|discriminator|model_ema)\.|v_pred$|ztsnr$|low_scale_model\.|scale_factor$)"
    r"|position_ids$|logit_scale$|\.attn_mask$"
)
"""Tensors that are not weights of the networks: averaged copies, schedules, markers, buffers."""

_SCALES: Final = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", "scaled_fp8")
_PREDICTION: Final = "modelspec.prediction_type"
_PREDICTIONS: Final[Mapping[Family, str]] = {"x4-upscaler": "v_prediction"}
"""What a family predicts where its files say nothing; the others predict epsilon."""
_STATED: Final = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
"""The prediction types by the values of modelspec.prediction_type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleFileOptions:
    """What a single file does not say."""

    tokenizer: Path | None = None
    """A tokenizer's folder, or a folder with `tokenizer` and `tokenizer_2`; None for CLIP's."""
    prediction_type: str | None = None
    """None for what the file says, else epsilon."""
    zero_terminal_snr: bool | None = None
    """None for what the file says, else no."""
    needs_vae: bool = True
    """Whether a file without an autoencoder is refused; without one, only the config of its family's is written."""


NO_OPTIONS: Final = SingleFileOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleFile:
    """A single-file checkpoint: its family, and the shapes of its tensors."""

    path: Path
    family: Family
    shapes: Mapping[str, tuple[int, ...]]
    """By the name in the file; what is not a weight is left out."""
    prediction_type: str
    """What the network predicts: epsilon, v_prediction or sample."""
    zero_terminal_snr: bool
    """Whether the last timestep is pure noise."""
    is_guess: bool = False
    """Whether neither file nor options say the prediction type; Stable Diffusion 2 has models of both."""

    def part(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors with a prefix, by their names without it."""
        return {name[len(prefix) :]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    @property
    def autoencoder_prefix(self) -> str | None:
        """The prefix of the autoencoder's tensors; None if the file has none."""
        return next((each for each in AUTOENCODERS if any(name.startswith(each) for name in self.shapes)), None)


def read_single_file(path: Path, options: SingleFileOptions = NO_OPTIONS) -> SingleFile:
    """Read the header of a file; CheckpointError says in one line what it is if it is not a supported checkpoint."""
    shapes, metadata = read_header(path)
    check_tensor_names(str(path), shapes)
    if scaled := [name for name in shapes if name.endswith(_SCALES)]:
        raise CheckpointError(f"{path}: has scaled float8 weights ({scaled[0]}), which are not supported; take float16")
    family, stated = _family(path, shapes), _stated_prediction(path, shapes, metadata)
    is_guess = family == "sd2" and not (options.prediction_type or stated)
    return SingleFile(
        path=path,
        family=family,
        shapes={name: shape for name, shape in shapes.items() if not _IGNORED.search(name)},
        prediction_type=options.prediction_type or stated or _PREDICTIONS.get(family, "epsilon"),
        zero_terminal_snr="ztsnr" in shapes if options.zero_terminal_snr is None else options.zero_terminal_snr,
        is_guess=is_guess and shapes[f"{UNET}input_blocks.0.0.weight"][1] == 4,
    )


def _stated_prediction(path: Path, shapes: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """Return the prediction type that a file's markers or metadata state, or None."""
    if "edm_vpred.sigma_max" in shapes:
        raise CheckpointError(f"{path}: edm_vpred.sigma_max marks a noise schedule (EDM) that is not supported")
    marker = next((name for name in ("v_pred", "ztsnr") if name in shapes), None)
    stated = metadata.get(_PREDICTION)
    if stated is None:
        return None if marker is None else "v_prediction"
    if stated not in _STATED:
        raise CheckpointError(f"{path}: {_PREDICTION} is {stated!r}; supported is {' or '.join(_STATED)}")
    if marker is not None and _STATED[stated] != "v_prediction":
        raise CheckpointError(f"{path}: {_PREDICTION} is {stated}, but its tensor {marker} marks a v_prediction")
    return _STATED[stated]


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes of a file's tensors and its metadata; CheckpointError if it cannot be read."""
    with open_safetensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return shapes, dict(file.metadata() or {})


def _family(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    """Return the family of a file; CheckpointError if it has no text encoder, or a U-Net of another structure."""
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    if len(first) != 4:
        raise CheckpointError(f"{path}: its network is not a supported U-Net (no {UNET}input_blocks.0.0.weight)")
    for family in ("sdxl", "sdxl-refiner", "sd2", "sd1"):
        if all(any(name.startswith(prefix) for name in shapes) for prefix in TEXT[family]):
            return "x4-upscaler" if family == "sd2" and first[1] == 7 else family
    widths = {1024: "Stable Diffusion 2", 768: "Stable Diffusion 1", 2048: "SDXL", 1280: "SDXL's refiner"}
    width = next((shape[-1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")), 0)
    has_autoencoder = any(name.startswith(AUTOENCODERS) for name in shapes)
    lacks = "no text encoder" if has_autoencoder else "neither a text encoder nor an autoencoder"
    raise CheckpointError(
        f"{path}: has the U-Net of {widths.get(width, 'an unknown family')} but {lacks}; give a file that has all"
    )
