"""The configuration of a run: frozen, keyword-only dataclasses.

The metadata of each field gives its command-line option, and whether a resumed run may change it (`settings.py`).
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from pipeline.adapters import AdapterWeight, NamedPath
from pipeline.manifest.identity import Shard
from pipeline.settings import metadata, option, setting

Task = Literal["generate", "inpaint", "upscale", "classify"]
ImageFormat = Literal["png", "webp", "jpeg"]
Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["float32", "bfloat16", "float16"]
PromptSyntax = Literal["plain", "weighted"]
Store = Literal["parquet", "files"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]

MAX_SIZE: Final = 4096
"""Limit on the width and on the height of an image that is generated, in pixels."""
SCALES: Final = (2, 4, 8)
"""Upscaling factors."""
DEFAULT_MODELS: Final[dict[str, str]] = {
    "generate": "shapes",
    "inpaint": "shapes-inpainting",
    "upscale": "upscaler",
    "classify": "shapes-clip",
}
"""The embedded checkpoint of each task."""

_IMAGES: Final = ("generate", "inpaint", "upscale", "estimate")
_ALL: Final = (*_IMAGES, "classify")
_MODEL: Final = "the model's"


@dataclass(frozen=True, kw_only=True, slots=True)
class RowDefaults:
    """Values for rows whose columns do not give them; `None` is the model's default."""

    negative_prompt: str | None = option(
        None, "fixed", _IMAGES, "Content to avoid, for rows without a negative_prompt.", metavar="TEXT"
    )
    num_inference_steps: int | None = option(
        None, "fixed", _IMAGES, "Denoising steps.", metavar="N", bounds=(1, 1000), default_text=_MODEL
    )
    guidance_scale: float | None = option(
        None, "fixed", _IMAGES, "Guidance scale; 0 to 1 is off.", metavar="W", bounds=(0, None), default_text=_MODEL
    )
    guidance_rescale: float | None = option(
        None, "fixed", _IMAGES, "Rescale guidance against overexposure, 0 to 1.", metavar="PART", bounds=(0, 1)
    )
    image_guidance_scale: float | None = option(
        None,
        "fixed",
        ("generate", "estimate"),
        "For InstructPix2Pix: the guidance scale of the image that is edited; below 1, guidance is off.",
        metavar="W",
        bounds=(0, None),
        default_text="1.5",
    )
    guidance_interval: tuple[float, float] = option(
        (0.0, 1.0),
        "fixed",
        _IMAGES,
        "The part of the steps, from the first (0) to the last (1), in which guidance acts.",
        metavar="FROM TO",
        bounds=(0, 1),
        default_text="0 1",
    )
    sampler: str | None = option(
        None,
        "fixed",
        _IMAGES,
        "ddim, euler_a, dpmpp_2m_karras, ..., or another tool's name for it, such as 'DPM++ 2M Karras'.",
        metavar="NAME",
        default_text=_MODEL,
    )
    eta: float | None = option(
        None,
        "fixed",
        _IMAGES,
        "Amount of noise in DDIM: 0 is deterministic, 1 equals DDPM.",
        metavar="PART",
        bounds=(0, 1),
    )
    strength: float | None = option(
        None,
        "fixed",
        ("generate", "inpaint", "estimate"),
        "How far a row's image is changed; 1 replaces it.",
        metavar="PART",
        bounds=(0, 1),
        open=True,
    )
    width: int | None = option(
        None, "fixed", ("generate",), "Image width.", metavar="PIXELS", bounds=(8, MAX_SIZE), default_text=_MODEL
    )
    height: int | None = option(
        None, "fixed", ("generate",), "Image height.", metavar="PIXELS", bounds=(8, MAX_SIZE), default_text=_MODEL
    )
    prompt_syntax: PromptSyntax = option(
        "plain",
        "fixed",
        _IMAGES,
        "weighted: (word:1.3), (word), [word] and BREAK act as in A1111; plain: prompts are text only.",
    )
    clip_skip: int | None = option(
        None,
        "fixed",
        _IMAGES,
        "Layers of the text encoder to leave out at the end, for the prompt; 1 here is 2 in A1111.",
        metavar="N",
        bounds=(0, 64),
        default_text="0",
    )
    original_size: tuple[int, int] | None = option(
        None,
        "fixed",
        ("generate", "inpaint"),
        "For SDXL: the size of the image before it was resized, which the model is conditioned by.",
        metavar="WIDTH HEIGHT",
        bounds=(1, 65_536),
        default_text="the image's",
    )
    crop: tuple[int, int] | None = option(
        None,
        "fixed",
        ("generate", "inpaint"),
        "For SDXL: the pixels cut off at the left and at the top, which the model is conditioned by.",
        metavar="LEFT TOP",
        bounds=(0, 65_536),
        default_text="0 0",
    )
    target_size: tuple[int, int] | None = option(
        None,
        "fixed",
        ("generate", "inpaint"),
        "For SDXL: the size of the image after cropping, which the model is conditioned by.",
        metavar="WIDTH HEIGHT",
        bounds=(1, 65_536),
        default_text="the image's",
    )
    aesthetic_score: float | None = option(
        None,
        "fixed",
        ("generate", "inpaint"),
        "For SDXL's refiner: the aesthetic score that the image is to have.",
        metavar="SCORE",
        bounds=(0, 10),
        default_text="6",
    )
    negative_aesthetic_score: float | None = option(
        None,
        "fixed",
        ("generate", "inpaint"),
        "For SDXL's refiner: the aesthetic score of the negative prompt's side.",
        metavar="SCORE",
        bounds=(0, 10),
        default_text="2.5",
    )
    use_loras: tuple[AdapterWeight, ...] = option(
        (),
        "fixed",
        _IMAGES,
        "A LoRA for rows without loras, by its name in --lora, and its weight; repeatable.",
        flag="--use-lora",
        metavar="NAME:WEIGHT",
    )
    mask_invert: bool = option(False, "fixed", ("inpaint",), "Repaint where the mask is black instead of white.")
    mask_dilate: int = option(
        0, "fixed", ("inpaint",), "Dilate the mask by this many pixels.", metavar="PIXELS", bounds=(0, 512)
    )
    mask_feather: int = option(
        0,
        "fixed",
        ("inpaint",),
        "Width of the border around the masked area in which the new image fades into the old.",
        metavar="PIXELS",
        bounds=(0, 512),
    )
    noise_level: int | None = option(
        None,
        "fixed",
        ("upscale",),
        "Noise that is added to the source for the model, in training steps.",
        metavar="N",
        bounds=(0, 1000),
        default_text=_MODEL,
    )
    tile: int | None = option(
        None,
        "fixed",
        ("upscale",),
        "Side of the tiles that a source is processed in.",
        metavar="PIXELS",
        bounds=(8, 1024),
        default_text=_MODEL,
    )
    overlap: int | None = option(
        None,
        "fixed",
        ("upscale",),
        "Pixels of the source that neighboring tiles share.",
        metavar="PIXELS",
        bounds=(0, 512),
        default_text="a quarter of the tile",
    )
    scale: int = option(
        4, "fixed", ("upscale",), "Upscaling factor: 2 halves the result of 4, 8 doubles the source.", choices=SCALES
    )
    correct_colors: bool | None = option(
        None,
        "fixed",
        ("upscale",),
        "Match the colors and low frequencies of the source, and smooth areas where the networks add only noise.",
        default_text="the model's, else no",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The configuration of one run: rows, model, output and resources."""

    task: Task = field(metadata=metadata("fixed"))
    manifest: str = setting("", "free", record="redacted", location="path")
    """A Parquet file or a folder of them, as a local path or fsspec URL; not needed by `build_processor`."""
    output: str = setting("", "free", record="redacted", location="path")
    """A folder, as a local path or fsspec URL; not needed by `build_processor` and `estimate`."""
    defaults: RowDefaults = setting(RowDefaults(), "fixed")
    labels: tuple[str, ...] = option(
        (),
        "fixed",
        ("classify",),
        "A label that an image may get; repeatable, two or more.",
        flag="--label",
        metavar="TEXT",
        required=True,
    )
    template: str = option(
        "{}",
        "fixed",
        ("classify",),
        "The text whose {} is replaced by a label, such as 'a photo of a {}'.",
        metavar="TEXT",
    )
    store: Store = option(
        "parquet",
        "fixed",
        ("upscale",),
        "Keep images in the Parquet files, or as separate files under the sources' names in OUTPUT/files.",
    )
    model: str = option(
        "shapes",
        "free",  # its weights are compared instead: the same checkpoint may lie elsewhere
        (*DEFAULT_MODELS, "estimate"),
        "A checkpoint folder, a single .safetensors file, or the name of an embedded checkpoint.",
        record="redacted",
        location="checkpoint",
        metavar="PATH_OR_URL",
        defaults={**DEFAULT_MODELS, "estimate": None},
    )
    timestep_spacing: TimestepSpacing | None = option(
        None,
        "fixed",
        _IMAGES,
        "How a sampler's steps are spread over the training steps; few-step models need trailing.",
        default_text=_MODEL,
    )
    prediction_type: PredictionType | None = option(
        None,
        "fixed",
        _IMAGES,
        "What the U-Net was trained to predict; Stable Diffusion 2 in a single file may need v_prediction.",
        default_text=_MODEL,
    )
    zero_terminal_snr: bool | None = option(
        None,
        "fixed",
        _IMAGES,
        "Whether the noise schedule ends in pure noise; for models that were trained so, with v_prediction.",
        default_text=_MODEL,
    )
    tokenizer: str | None = option(
        None,
        "free",  # it is compared as part of the model's weights
        _IMAGES,
        "For a single-file model with another vocabulary than CLIP's: the folder of its tokenizer.",
        location="path",
        metavar="PATH",
        default_text="CLIP's",
    )
    vae: str | None = option(
        None,
        "free",  # its weights are compared with the model's
        _IMAGES,
        "An autoencoder to use instead of the model's: its folder, a safetensors file, or a checkpoint that has it.",
        record="redacted",
        location="checkpoint",
        metavar="PATH_OR_URL",
        default_text=_MODEL,
    )
    embeddings: tuple[NamedPath, ...] = option(
        (),
        "free",  # their hashes are compared instead
        ("generate", "inpaint", "upscale"),
        "A textual inversion; a prompt uses it by writing NAME. Repeatable.",
        record="redacted",
        location="path",
        flag="--embedding",
        metavar="NAME=PATH_OR_URL",
    )
    loras: tuple[NamedPath, ...] = option(
        (),
        "free",  # their hashes are compared instead
        _IMAGES,
        "A LoRA file, or a folder in PEFT's form, under the name by which rows use it; repeatable.",
        record="redacted",
        location="path",
        flag="--lora",
        metavar="NAME=PATH_OR_URL",
    )
    clip_score: str | None = option(
        None,
        "fixed",
        ("generate", "inpaint"),
        "Score each image against its prompt by this CLIP: shapes-clip, or a checkpoint folder.",
        record="redacted",
        location="checkpoint",
        metavar="MODEL",
    )
    seed: int = option(
        0, "fixed", _IMAGES, "The seed of a row without one is derived from this and its id.", metavar="N"
    )
    format: ImageFormat = option("png", "fixed", _IMAGES, "Image format.")
    quality: int = option(95, "fixed", _IMAGES, "Quality of webp and jpeg.", bounds=(1, 100))
    call_limit: float = option(
        300.0,
        "free",
        _IMAGES,
        "Time limit of one U-Net call; after it, its process is killed and its rows run in another.",
        record="none",
        metavar="SECONDS",
        bounds=(1, None),
    )
    lanes: int = option(
        8,
        "fixed",  # another batch shape gives other bits
        _ALL,
        "U-Net evaluations per call (a guided row takes two); for classify, images per call.",
        metavar="N",
        bounds=(1, 1024),
    )
    threads: int = option(1, "fixed", _ALL, "CPU threads per actor.", metavar="N", bounds=(1, 256))
    actors: int | None = option(
        None,
        "free",
        _ALL,
        "Actors that hold the model; with MIN:MAX, Ray adds actors up to MAX while rows wait.",
        metavar="N|MIN:MAX",
        default_text="one per GPU, else by CPUs and memory",
    )
    max_actors: int | None = setting(None, "free")
    """The most actors that Ray may start; `None`: no more than `actors`. Given by --actors."""
    gpus_per_actor: float = option(
        1.0, "free", _ALL, "GPUs per actor; 0.5 puts two actors on one GPU.", metavar="N", bounds=(0, None), open=True
    )
    memory_per_actor: float | None = option(
        None,
        "free",
        _ALL,
        "Memory that Ray reserves per actor.",
        metavar="GIB",
        bounds=(0, None),
        open=True,
        default_text="nothing",
    )
    device: Device = option("auto", "free", _ALL, "Device; auto is cuda if the cluster has GPUs.")
    dtype: Dtype | None = option(
        None, "free", _ALL, "Data type of the networks.", default_text="float16 on CUDA, float32 on CPUs"
    )
    allow_roots: tuple[str, ...] = option(
        (),
        "free",
        _ALL,
        "A folder, besides the manifest's own, from which images may be read; repeatable.",
        record="redacted",
        location="path",
        flag="--allow-root",
        metavar="PATH_OR_URL",
    )
    skip_invalid: bool = option(False, "free", _ALL, "Run the valid rows and commit the invalid ones as failed.")
    address: str | None = option(
        None,
        "free",
        _ALL,
        "Address of a Ray cluster.",
        record="none",
        metavar="ADDR",
        default_text="RAY_ADDRESS, else a local one",
    )
    retry_failed: bool = option(False, "free", _ALL, "Run failed rows again.", record="none")
    new_run: bool = option(False, "free", _ALL, "Delete the contents of OUTPUT and start over.", record="none")
    stall_timeout: float = option(
        600.0,
        "free",
        _ALL,
        "End the run after this time without progress; loading a model counts as progress.",
        record="none",
        metavar="SECONDS",
        bounds=(1, None),
    )
    grace: float = option(
        30.0,
        "free",
        _ALL,
        "Time to commit completed rows after Ctrl-C or SIGTERM.",
        record="none",
        metavar="SECONDS",
        bounds=(0, None),
    )
    limit: int | None = option(
        None, "free", _ALL, "Run only the first N rows of the manifest.", metavar="N", bounds=(1, None)
    )
    shard: Shard | None = option(
        None,
        "fixed",
        _ALL,
        "Run only the I-th of N parts of the manifest; each part needs its own OUTPUT.",
        metavar="I/N",
    )

    def dtype_on(self, device: str) -> Dtype:
        """Return the data type of the networks on "cuda" or "cpu"."""
        return self.dtype or ("float16" if device == "cuda" else "float32")
