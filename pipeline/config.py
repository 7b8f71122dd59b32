"""What a run is: frozen, keyword-only dataclasses, filled by the command line and by nothing else."""

from dataclasses import dataclass, field
from typing import Final, Literal

from pipeline.manifest.identity import Shard

Task = Literal["generate", "inpaint", "upscale", "classify"]
ImageFormat = Literal["png", "webp", "jpeg"]
Dtype = Literal["float32", "bfloat16", "float16"]
Store = Literal["parquet", "files"]

SCALES: Final = (2, 4, 8)
"""How many times as wide and high a picture can be made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowDefaults:
    """The run's options for rows that do not say; `None` leaves it to the model."""

    negative_prompt: str = ""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The part of the steps, from the first (0) to the last (1), in which guidance acts."""
    sampler: str | None = None
    eta: float | None = None
    strength: float | None = None
    noise_level: int | None = None
    """Of the noise on the picture that an upscaler is shown, in training steps."""
    tile: int | None = None
    """Pixels of a source picture's side that an upscaler is shown at once; `None`: what it was trained on."""
    overlap: int | None = None
    """Pixels that neighboring tiles share; `None`: a quarter of the tile."""
    scale: int = 4
    """How many times as wide and high an upscaled picture is."""
    correct_colors: bool | None = None
    """An upscaled picture's low frequencies are drawn to its source's."""
    mask_invert: bool = False
    """Masks are black where the picture is repainted."""
    mask_dilate: int = 0
    """Pixels around the mask that are repainted too."""
    mask_feather: int = 0
    """Pixels around those over which the new picture fades into the old."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run: what to read, what to make of it, where to put it, and on what."""

    task: Task
    manifest: str
    """A Parquet file or a folder of them; local path or fsspec URL."""
    output: str
    model: str = "shapes"
    """An embedded checkpoint's name, or the path or URL of a checkpoint folder."""
    defaults: RowDefaults = field(default_factory=RowDefaults)
    seed: int = 0
    """With a row's id it gives the seed of every row that has none."""
    lanes: int = 8
    """U-Net evaluations a call: fixed for the run, since another batch shape gives other bits."""
    threads: int = 1
    """CPU threads an actor: fixed for the run, for the same reason."""
    actors: int | None = None
    """How many actors hold the model; `None`: one a GPU, or as many as the CPUs and the memory allow."""
    max_actors: int | None = None
    """Up to which Ray adds more as rows wait, where it finds or starts nodes for them; `None`: none are added."""
    gpus_per_actor: float = 1.0
    """Of each actor where the device is "cuda": a part where several small models fit onto one GPU."""
    memory_per_actor: float | None = None
    """GiB of a node's memory that Ray reserves for each; `None`: none, but on CPUs no more actors than fit."""
    call_limit: float = 300.0
    """Seconds that one call of the U-Net may take; then its process is ended, and its rows are made by another."""
    device: str = "auto"
    """"cuda", "cpu", or "auto": CUDA where the cluster has GPUs."""
    dtype: Dtype | None = None
    """`None`: float16 on CUDA, float32 on CPUs: see `dtype_on`."""
    format: ImageFormat = "png"
    quality: int = 95
    """Of webp and jpeg."""
    store: Store = "parquet"
    """Where an upscaled picture's bytes are: in the output's Parquet, or in a file of the output that it names."""
    clip_score: str | None = None
    """The CLIP by which a new picture is compared with its prompt, named as a model is; `None`: it is not."""
    labels: tuple[str, ...] = ()
    """What a picture may be called, to classify."""
    template: str = "{}"
    """The text that a label stands in."""
    allow_roots: tuple[str, ...] = ()
    """Folders beside the manifest's own from which pictures may be read."""
    skip_invalid: bool = False
    """Run the rest when rows are invalid, and commit the invalid ones as failed."""
    address: str | None = None
    """A Ray cluster; `None`: the one that RAY_ADDRESS names, else a local one."""
    limit: int | None = None
    """Only the manifest's first rows."""
    shard: Shard | None = None
    """Only the rows that fall to this one of several jobs, each with an output of its own."""
    retry_failed: bool = False
    """Make the rows again that failed before."""
    new_run: bool = False
    """Throw away what the output holds, and begin."""
    stall_timeout: float = 600.0
    """Seconds without progress (a row, a step of one) after which a run ends; loading the model is no standstill."""
    grace: float = 30.0
    """Seconds after Ctrl-C or SIGTERM in which what is made is committed."""

    def dtype_on(self, device: str) -> Dtype:
        """What the networks compute in on "cuda" or "cpu"."""
        return self.dtype or ("float16" if device == "cuda" else "float32")
