"""Typed configs of diffusers' `config.json` files: an option that changes the image is honored or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, get_args, get_origin

from pipeline.config import Task
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.identify import check_file_kind, check_folder_kind, missing_checkpoint

EMBEDDED: Final = Path(__file__).parent.parent / "checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A network's config. Every option of the diffusers class is in one of three groups.

    The fields are the supported options. CONSTANTS are the options with only some supported values. WITHOUT_EFFECT are
    options that the supported networks do not read, or read only in training. Other keys are ignored, as in diffusers.
    """

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    PER_LEVEL: ClassVar[tuple[str, ...]] = ()
    """Options that are given once, or once per level of `block_out_channels`."""
    BLOCKS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Options that name the class of each level, with the supported classes."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> Self:
        """Return the config; CheckpointError for an unsupported value. `source` is the file's name, for errors."""
        for key, allowed in cls.CONSTANTS.items():
            if key in config and config[key] not in allowed:
                supported = " or ".join(map(repr, allowed))
                raise CheckpointError(f"{source}: {key} is {config[key]!r}; only {supported} is supported")
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in config:
                value = config[field.name]
                values[field.name] = _as_tuple(value)
                if not _fits(values[field.name], field.type):
                    kind = field.type.__name__ if isinstance(field.type, type) else field.type
                    raise CheckpointError(f"{source}: {field.name} is {value!r}; must be {kind}")
        return cls(**values)

    def problem(self) -> str | None:
        """Return the first contradiction among the options, or None."""
        return None


def _as_tuple(value: Any) -> Any:
    """Return a value from JSON with tuples for lists, at any depth."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def check_levels(config: Config, source: str) -> None:
    """Raise CheckpointError for a level of an unknown class, a wrong number of levels, or contradictory options."""
    for key in (*config.PER_LEVEL, *config.BLOCKS):
        value, levels = getattr(config, key), len(getattr(config, "block_out_channels"))  # noqa: B009 - if it has BLOCKS
        if isinstance(value, tuple) and len(value) != levels:
            raise CheckpointError(f"{source}: {key} has {len(value)} entries, block_out_channels {levels}")
    for key, known in config.BLOCKS.items():
        for name in getattr(config, key):
            if name not in known:
                raise CheckpointError(f"{source}: {key} has the unknown class {name}; known: {', '.join(known)}")
    if problem := config.problem():
        raise CheckpointError(f"{source}: {problem}")


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value from JSON has a field's type; lists are tuples, and integers are valid floats."""
    parts = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if parts:
        return any(_fits(value, part) for part in parts)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


Form = Literal["text to image", "editing images", "inpainting", "upscaling", "depth to image", "an unknown use"]

FORMS: Final[Mapping[Task, tuple[Form, ...]]] = {
    "generate": ("text to image", "editing images"),
    "inpaint": ("inpainting", "text to image"),
    "upscale": ("upscaling",),
}
"""The forms of checkpoints that a task can use."""


def checked_form(name: str, task: Task, in_channels: int, latent_channels: int) -> Form:
    """Return the form of a checkpoint, which follows from its U-Net's input channels (Rombach et al. 2022, section 4).

    They are the latents; the latents and an image's latents (Brooks et al. 2023); the latents, a mask and the masked
    image's latents; or the latents and an RGB image. CheckpointError if the task cannot use the form."""
    forms: dict[int, Form] = {
        latent_channels: "text to image",
        latent_channels + 1: "depth to image",
        2 * latent_channels: "editing images",
        2 * latent_channels + 1: "inpainting",
        latent_channels + 3: "upscaling",
    }
    form = forms.get(in_channels, "an unknown use")
    if form not in FORMS[task]:
        raise CheckpointError(
            f"{name}: is made for {form} (its U-Net takes {in_channels} channels); "
            f"{task} needs a checkpoint made for {' or '.join(FORMS[task])}"
        )
    return form


def is_embedded(model: str) -> bool:
    """Return whether `model` is the name of an embedded checkpoint, which comes with the package."""
    return "/" not in model and (EMBEDDED / model).is_dir()


def checkpoint_folder(model: str) -> Path:
    """Return the local folder of a checkpoint, given its path or the name of an embedded one.

    CheckpointError says what the path is if it is no checkpoint folder."""
    folder = EMBEDDED / model if is_embedded(model) else Path(model)
    if folder.is_file():
        check_file_kind(model)
        raise CheckpointError(f"{model}: is a single file; convert it first: latentmill convert {model} FOLDER")
    if not folder.is_dir():
        raise missing_checkpoint(model, sorted(path.name for path in EMBEDDED.iterdir() if path.is_dir()))
    check_folder_kind(folder)
    return folder
