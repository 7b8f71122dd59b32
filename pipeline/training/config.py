"""The configuration of a training run, and what its options change in a recipe."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline import storage
from pipeline.errors import RunError
from pipeline.training.data.styles import STYLES, StyledScenes
from pipeline.training.data.table import Table
from pipeline.training.recipes.catalog import FIELDS_OF_OPTIONS, RECIPES
from pipeline.training.save import write_json

OPTIONS_FILE: Final = "training.json"
"""The options of each recipe that was run in an output, by which a later run must agree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The configuration of a training run; None is the recipe's own value."""

    recipe: str
    output: Path
    """A folder that every worker can access."""
    data: str | None = None
    """A Parquet file or folder with the columns `image` and `prompt`, instead of the recipe's own images."""
    model: str | None = None
    """The checkpoint that the recipe starts from."""
    style: str | None = None
    """One of STYLES for the recipe's own images."""
    rank: int | None = None
    alpha: float | None = None
    workers: int = 1
    device: str = "cpu"
    threads: int = 2
    steps: int | None = None

    def recipe_options(self) -> dict[str, Any]:
        """Return the given options that only some recipes take."""
        return {name: value for name in FIELDS_OF_OPTIONS if (value := getattr(self, name)) is not None}


def check_options(config: TrainConfig) -> None:
    """Raise RunError for an option that the recipe does not take, or one that contradicts another."""
    options = config.recipe_options()
    for name in options:
        if name not in RECIPES[config.recipe].options:
            takers = [recipe for recipe, each in RECIPES.items() if name in each.options]
            raise RunError(f"{config.recipe} does not take --{name}; the recipes that do are {', '.join(takers)}")
    if config.style not in (None, *STYLES):
        raise RunError(f"--style {config.style!r} is unknown; known are {', '.join(STYLES)}")
    if {"data", "style"} <= options.keys():
        raise RunError("--data and --style are both given; a LoRA learns either a table's images or a style")


def record_options(config: TrainConfig) -> None:
    """Write the options to the output; RunError if the recipe was run in it with others, which a resume would mix."""
    path = config.output / OPTIONS_FILE
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    options = config.recipe_options()
    if config.data is not None:
        options["data"] = storage.redact_url(config.data)
    before = recorded.setdefault(config.recipe, options)
    if before != options:
        raise RunError(
            f"{config.output}: {config.recipe} was trained in it with {_shown(before)}, not with {_shown(options)}; "
            "give these options, or another OUTPUT"
        )
    write_json(path, recorded)


def _shown(options: dict[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in options.items()) or "the recipe's own options"


def configured_recipe(config: TrainConfig) -> Any:
    """Return the recipe's configuration with the options of a training run."""
    recipe = RECIPES[config.recipe].config
    values = config.recipe_options()
    if config.style is not None:
        values["style"] = StyledScenes(config.style)
    if config.data is not None:
        values["data"] = Table(config.output / "data")
    changes = {FIELDS_OF_OPTIONS[option]: value for option, value in values.items()}
    if config.steps is not None:
        changes["loop"] = replace(recipe.loop, steps=config.steps)
    return replace(recipe, **changes)
