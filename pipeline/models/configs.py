"""Typed configs of diffusers' `config.json` files: an option that is not understood is refused, not ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from pipeline.config import Task
from pipeline.errors import CheckpointError

EMBEDDED: Final = Path(__file__).parent.parent / "checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A network's config: the fields are the supported options, CONSTANTS the options with only one supported value."""

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> Self:
        """Return the config; CheckpointError for an unsupported value. `source` is the file's name, for errors."""
        names = {field.name for field in fields(cls)}
        for key, allowed in cls.CONSTANTS.items():
            if key in config and config[key] not in allowed:
                raise CheckpointError(f"{source}: {key} is {config[key]!r}; only {allowed[0]!r} is supported")
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in names}
        return cls(**values)


Form = Literal["text to image", "inpainting", "upscaling", "an unknown use"]

FORMS: Final[Mapping[Task, tuple[Form, ...]]] = {
    "generate": ("text to image",),
    "inpaint": ("inpainting", "text to image"),
    "upscale": ("upscaling",),
}
"""The forms of checkpoint that a task can use."""


def checked_form(name: str, task: Task, in_channels: int, latent_channels: int) -> Form:
    """Return what a checkpoint is made for, by its U-Net's input channels (Rombach et al. 2022, section 4).

    They are the latents alone; also a mask and the masked image's latents; or also an RGB image. CheckpointError if
    the task cannot use it."""
    forms: dict[int, Form] = {
        latent_channels: "text to image",
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
    """Return whether a name is that of a checkpoint that comes with the package."""
    return "/" not in model and (EMBEDDED / model).is_dir()


def checkpoint_folder(model: str) -> Path:
    """Return the local folder of a checkpoint, given an embedded one's name or a path."""
    folder = EMBEDDED / model if is_embedded(model) else Path(model)
    if folder.is_file():
        raise CheckpointError(f"{model}: is a file; a checkpoint is a folder with a model_index.json")
    if not folder.is_dir():
        names = ", ".join(sorted(path.name for path in EMBEDDED.iterdir() if path.is_dir()))
        raise CheckpointError(
            f"{model}: no such checkpoint folder, and no embedded model of this name (embedded are {names})"
        )
    return folder
