"""The options that the running commands share, and the config that they make."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import click

from pipeline.config import RowDefaults, RunConfig, Task
from pipeline.manifest.identity import Shard

Function = TypeVar("Function", bound=Callable[..., Any])


class Actors(NamedTuple):
    """How many actors a run starts with and, where it may grow, has at most; as a string what `--actors` takes."""

    least: int
    most: int | None

    def __str__(self) -> str:
        return str(self.least) if self.most is None else f"{self.least}:{self.most}"


class ShardOf(click.ParamType):
    """`I/N`."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        index, _, count = str(value).partition("/")
        if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
            return Shard(int(index), int(count))
        self.fail(f"{value!r} is no shard; give I/N, such as 1/4, with I from 1 to N", param, ctx)


class ActorRange(click.ParamType):
    """`N`, or `MIN:MAX`."""

    name = "actors"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Actors:
        least, colon, most = str(value).partition(":")
        if least.isdecimal() and (most.isdecimal() or not colon):
            found = Actors(int(least), int(most) if colon else None)
            if found.least >= 1 and (found.most is None or found.most >= found.least):
                return found
        self.fail(f"{value!r} is no number of actors; give N, 1 or more, or MIN:MAX with MIN not above MAX", param, ctx)


ROW_OPTIONS: Final = (
    click.option("--negative-prompt", default="", help="What to keep away from, where a row does not say."),
    click.option("--num-inference-steps", type=click.IntRange(1, 1000), metavar="N", help="Denoising steps."),
    click.option("--guidance-scale", type=click.FloatRange(0), metavar="W", help="1 is off. [default: the model's]"),
    click.option(
        "--guidance-rescale", type=click.FloatRange(0, 1), metavar="PART", help="Against overexposure, 0 to 1."
    ),
    click.option(
        "--guidance-interval",
        type=click.FloatRange(0, 1),
        nargs=2,
        default=(0.0, 1.0),
        metavar="FROM TO",
        help="The part of the steps in which guidance acts. [default: 0 1]",
    ),
    click.option("--sampler", metavar="NAME", help="ddim, euler, dpmpp_2m, ... [default: the model's]"),
    click.option("--eta", type=click.FloatRange(0, 1), metavar="PART", help="Noise of DDIM: 0 is none, 1 is DDPM's."),
)
"""What a row may say itself: these hold for the rows that do not."""

STRENGTH_OPTIONS: Final = (
    click.option(
        "--strength",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="PART",
        help="How much of a row's image is made anew.",
    ),
)

SIZE_OPTIONS: Final = (
    click.option("--width", type=click.IntRange(8, 4096), metavar="PIXELS", help="[default: the model's]"),
    click.option("--height", type=click.IntRange(8, 4096), metavar="PIXELS", help="[default: the model's]"),
)


DEFAULT_MODELS: Final[dict[Task, str]] = {
    "generate": "shapes",
    "inpaint": "shapes-inpainting",
    "upscale": "upscaler",
    "classify": "shapes-clip",
}
"""The embedded checkpoint of each task."""


def model_options(task: Task) -> tuple[Callable[[Any], Any], ...]:
    """--model, with the embedded checkpoint of a task."""
    return (
        click.option(
            "--model",
            default=DEFAULT_MODELS[task],
            show_default=True,
            metavar="PATH_OR_URL",
            help="A checkpoint folder, or an embedded checkpoint's name.",
        ),
    )


PICTURE_OPTIONS: Final = (
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        metavar="N",
        help="With a row's id, the seed of each row that has none.",
    ),
    click.option("--format", type=click.Choice(["png", "webp", "jpeg"]), default="png", show_default=True),
    click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of webp and jpeg."),
    click.option(
        "--call-limit",
        type=click.FloatRange(1),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="A call of the U-Net that takes longer hangs: its process is ended, its rows are made elsewhere.",
    ),
)
"""Of the runs that make pictures."""

SCORE_OPTIONS: Final = (
    click.option(
        "--clip-score",
        metavar="MODEL",
        help="Also say how well each picture fits its prompt, by a CLIP: shapes-clip, or a folder's path or URL.",
    ),
)

RUN_OPTIONS: Final = (
    click.option(
        "--lanes",
        type=click.IntRange(1, 1024),
        default=8,
        show_default=True,
        metavar="N",
        help="U-Net evaluations a call, of which a guided row takes two; pictures a call, to classify.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        metavar="N",
        help="CPU threads an actor.",
    ),
    click.option(
        "--actors",
        type=ActorRange(),
        metavar="N|MIN:MAX",
        help="Actors that hold the model; more, up to MAX, as rows wait. [default: by GPUs, or CPUs and memory]",
    ),
    click.option(
        "--gpus-per-actor",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        metavar="N",
        help="0.5 puts two actors onto a GPU.",
    ),
    click.option(
        "--memory-per-actor",
        type=click.FloatRange(0, min_open=True),
        metavar="GIB",
        help="Of a node, for Ray to reserve. [default: nothing]",
    ),
    click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="[default: float16 on CUDA, float32 on CPUs]",
    ),
    click.option(
        "--allow-root",
        "allow_roots",
        multiple=True,
        metavar="PATH_OR_URL",
        help="A folder beside the manifest's own from which pictures may be read; may be repeated.",
    ),
    click.option("--skip-invalid", is_flag=True, help="Run the valid rows, and commit the others as failed."),
    click.option("--address", metavar="ADDR", help="A Ray cluster. [default: RAY_ADDRESS, else a local one]"),
    click.option("--retry-failed", is_flag=True, help="Make the rows again that failed before."),
    click.option("--new-run", is_flag=True, help="Throw away what OUTPUT holds, and begin."),
    click.option(
        "--stall-timeout",
        type=click.FloatRange(1),
        default=600.0,
        show_default=True,
        metavar="SECONDS",
        help="End a run in which nothing moves for so long.",
    ),
    click.option(
        "--grace",
        type=click.FloatRange(0),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="After Ctrl-C or SIGTERM, the time to commit what is made.",
    ),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the manifest's first N rows."),
    click.option(
        "--shard",
        type=ShardOf(),
        metavar="I/N",
        help="Only the rows of the I-th of N jobs that share the manifest; each has an OUTPUT of its own.",
    ),
)


def with_options(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[Function], Function]:
    """A decorator that gives a command the options of these groups, in their order."""

    def decorate(function: Function) -> Function:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate


def config_of(task: Task, manifest: str, output: str, options: Mapping[str, Any]) -> RunConfig:
    """The run that a command line asks for; click.UsageError says what does not go together."""
    names = ("negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "guidance_rescale")
    names += ("guidance_interval", "sampler", "eta", "strength", "mask_invert", "mask_dilate", "mask_feather")
    names += ("noise_level", "tile", "overlap", "scale", "correct_colors")
    defaults = RowDefaults(**{name: options[name] for name in names if name in options})
    _check(task, defaults, options, manifest, output)
    run = ("model", "lanes", "threads", "device", "dtype", "allow_roots", "skip_invalid", "gpus_per_actor")
    run += ("memory_per_actor", "stall_timeout", "grace", "shard", "retry_failed", "new_run")
    own = ("seed", "format", "quality", "call_limit", "store", "clip_score", "labels", "template")
    actors, max_actors = options["actors"] or (None, None)
    return RunConfig(
        actors=actors,
        max_actors=max_actors,
        task=task,
        manifest=manifest,
        output=output,
        defaults=defaults,
        address=options["address"],
        limit=options["limit"],
        **{name: options[name] for name in run},
        **{name: options[name] for name in own if name in options},
    )


def _check(task: Task, defaults: RowDefaults, options: Mapping[str, Any], manifest: str, output: str) -> None:
    start, end = defaults.guidance_interval
    if start >= end:
        raise click.UsageError(f"--guidance-interval {start} {end}: the first must be smaller")
    if defaults.guidance_scale is not None and not math.isfinite(defaults.guidance_scale):
        raise click.UsageError("--guidance-scale must be a finite number")
    if task != "classify" and options["lanes"] < 2 and defaults.guidance_scale not in (0.0, 1.0):
        raise click.UsageError("--lanes 1 has no room for guidance; give --lanes 2 or more, or --guidance-scale 1")
    if output.rstrip("/") == manifest.rstrip("/"):
        raise click.UsageError("OUTPUT is the manifest itself; give another folder")
    if output.endswith(".parquet"):
        raise click.UsageError(f"OUTPUT is a folder; {output} looks like a file")
