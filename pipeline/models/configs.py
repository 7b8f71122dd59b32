"""Reading the field's `config.json` into typed configs: what is not understood is refused, not ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from pipeline.config import Task
from pipeline.errors import CheckpointError

EMBEDDED: Final = Path(__file__).parent.parent / "checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A network's config: its fields are the keys that are used, CONSTANTS the keys that have but one meaning here."""

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> Self:
        """The config in `source` (a file's name, for errors); keys that no network here knows pass when empty."""
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
"""The checkpoints that a task can use."""


def checked_form(name: str, task: Task, in_channels: int, latent_channels: int) -> Form:
    """What a checkpoint is made for, by what its U-Net is shown beside the latents (Rombach et al. 2022, section 4).

    The latents alone; a mask and the masked picture's latents too; or an RGB picture. CheckpointError if the task has
    no use for it."""
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
    """Whether a model's name is that of a checkpoint that comes with the code."""
    return "/" not in model and (EMBEDDED / model).is_dir()


def checkpoint_folder(model: str) -> Path:
    """The local folder of a checkpoint: an embedded one's name, or a path."""
    folder = EMBEDDED / model if is_embedded(model) else Path(model)
    if folder.is_file():
        raise CheckpointError(f"{model}: is a file; a checkpoint is a folder with a model_index.json")
    if not folder.is_dir():
        names = ", ".join(sorted(path.name for path in EMBEDDED.iterdir() if path.is_dir()))
        raise CheckpointError(f"{model}: no such checkpoint folder, nor an embedded model (there is: {names})")
    return folder
