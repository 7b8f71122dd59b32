"""Single-file checkpoints: which family a .safetensors file is, and the parts of which it consists.

Names of tensors tell the family; what the file does not say (latent scale, scheduler, heads, native size) comes from
the family's published configs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from safetensors import SafetensorError, safe_open

from pipeline.errors import CheckpointError

Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "x4-upscaler"]

UNET: Final = "model.diffusion_model."
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
    r"|first_stage_model\.(loss|discriminator)\.|v_pred$|ztsnr$|low_scale_model\.|scale_factor$)"
    r"|position_ids$|logit_scale$"
)
"""Tensors that are not weights of the networks: averaged copies, schedules, markers, buffers."""

OTHERS: Final[tuple[tuple[str, str], ...]] = (
    (r"(^|\.)joint_blocks\.", "Stable Diffusion 3"),
    (r"(^|\.)(double_blocks|single_transformer_blocks)\.", "FLUX"),
    (r"(^|\.)layers\.0\.adaLN_modulation\.", "Z-Image"),
    (r"(^|\.)(adaln_single|scale_shift_table)", "a transformer such as PixArt or Sana"),
    (r"^edm_mean$", "Playground 2.5 (EDM)"),
)
"""Tensor names of families that are not supported."""


@dataclass(frozen=True, slots=True)
class SingleFile:
    """A single-file checkpoint: its family, and the shapes of its tensors."""

    path: Path
    family: Family
    shapes: Mapping[str, tuple[int, ...]]
    """By the name in the file; what is not a weight is left out."""
    metadata: Mapping[str, str]
    markers: frozenset[str]
    """Names of tensors that say how the model predicts: v_pred, ztsnr."""

    def part(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors with a prefix, by their names without it."""
        return {name[len(prefix) :]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    @property
    def autoencoder_prefix(self) -> str | None:
        """The prefix of the autoencoder's tensors; None if the file has none."""
        return next((each for each in AUTOENCODERS if any(name.startswith(each) for name in self.shapes)), None)

    @property
    def predicts_v(self) -> bool:
        """Whether the file says that its network predicts v, or the family does where the file is silent."""
        stated = self.metadata.get("modelspec.prediction_type")
        if stated is not None:
            return stated in ("v", "v_prediction")
        return bool(self.markers) or self.family == "x4-upscaler"


def read_single_file(path: Path) -> SingleFile:
    """Read the header of a file; CheckpointError says in one line what it is if it is not a supported checkpoint."""
    shapes, metadata = read_header(path)
    for pattern, name in OTHERS:
        if any(re.search(pattern, each) for each in shapes):
            raise CheckpointError(
                f"{path}: is {name}, which is not supported; supported are Stable Diffusion 1, 2 and XL"
            )
    if not any(name.startswith(UNET) for name in shapes):
        raise CheckpointError(f"{path}: is not a checkpoint: {describe(shapes)}")
    if scaled := [name for name in shapes if name.endswith((".scale_weight", ".weight_scale"))]:
        raise CheckpointError(f"{path}: has scaled float8 weights ({scaled[0]}), which are not supported; take float16")
    weights = {name: shape for name, shape in shapes.items() if not _IGNORED.search(name)}
    markers = frozenset({"v_pred", "ztsnr", "edm_vpred.sigma_max"} & shapes.keys())
    if "edm_vpred.sigma_max" in markers:
        raise CheckpointError(f"{path}: edm_vpred.sigma_max is a noise schedule that is not supported")
    return SingleFile(path, _family(path, shapes), weights, metadata, markers)


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes of a file's tensors and its metadata; CheckpointError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a readable safetensors file: {error}") from None


def describe(names: Mapping[str, object]) -> str:
    """Return what a file without a U-Net is, and the option that takes it."""
    kinds: tuple[tuple[str, str], ...] = (
        (rf"^{re.escape(UNET)}", "a checkpoint; give --model PATH"),
        (r"lora_controlnet|lllite_unet", "a Control-LoRA or ControlNet-LLLite, which is not supported"),
        (
            r"\.lora_(down|up|A|B)\.|\.hada_w1|\.lokr_w|lora_linear_layer|_lora\.(down|up)",
            "a LoRA; give --lora NAME=PATH",
        ),
        (r"^control_model\.|^controlnet_|input_hint_block", "a ControlNet, which is not supported yet"),
        (r"^(image_proj|ip_adapter)\.", "an IP-Adapter, which is not supported"),
        (r"^(emb_params|clip_l|clip_g|string_to_param)$", "a textual inversion; give --embedding NAME=PATH"),
        (
            r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(down|up|conv_in|layers)",
            "an autoencoder; give --vae PATH",
        ),
        (r"^(input_blocks|down_blocks)\.", "a U-Net alone, without autoencoder and text encoder"),
        (r"^(text_model|transformer\.text_model)\.", "a text encoder alone"),
    )
    for pattern, kind in kinds:
        if any(re.search(pattern, name) for name in names):
            return f"it is {kind}"
    if len(names) == 1:
        return "it has a single tensor; a textual inversion is given by --embedding NAME=PATH"
    return f"it has no {UNET}* tensors (it has {', '.join(sorted(names)[:2])}, ...)"


def _family(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    def width(block: str) -> int | None:
        shape = shapes.get(f"{UNET}{block}.transformer_blocks.0.attn2.to_k.weight")
        return None if shape is None else shape[-1]

    inputs = shapes[f"{UNET}input_blocks.0.0.weight"][1]
    if any(name.startswith("conditioner.embedders.1.model.") for name in shapes):
        return "sdxl"
    if any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        return "sdxl-refiner"
    if inputs == 7 and f"{UNET}label_emb.weight" in shapes:
        return "x4-upscaler"
    if any(name.startswith("cond_stage_model.model.") for name in shapes):
        return "sd2"
    if any(name.startswith("cond_stage_model.transformer.") for name in shapes):
        return "sd1"
    guess = {1024: "Stable Diffusion 2", 768: "Stable Diffusion 1", 2048: "SDXL"}.get(
        width("input_blocks.2.1") or width("input_blocks.1.1") or width("input_blocks.4.1") or 0, "an unknown family"
    )
    raise CheckpointError(
        f"{path}: has the U-Net of {guess} but no text encoder; add it, or give a checkpoint that has one"
    )
