"""The numbers that SDXL and its refiner are conditioned by beside the text (Podell et al. 2023, section 2.2)."""

from dataclasses import replace
from typing import Final

from pipeline.config import RowDefaults
from pipeline.errors import CheckpointError
from pipeline.models.stack import REFINER_NUMBERS, SIZE_NUMBERS, Stack
from pipeline.tasks.rows import RowParameters

AESTHETIC_SCORES: Final = (6.0, 2.5)
"""The scores of prompt and negative prompt where a run gives none, as in diffusers."""

_SIZES: Final = ("original_size", "crop", "target_size")
_SCORES: Final = ("aesthetic_score", "negative_aesthetic_score")


def check_size_options(stack: Stack, run: RowDefaults) -> None:
    """Raise CheckpointError if a run gives a number that the checkpoint does not take."""
    taken = {0: (), REFINER_NUMBERS: (*_SIZES[:2], *_SCORES), SIZE_NUMBERS: _SIZES}[stack.size_numbers]
    for name in (*_SIZES, *_SCORES):
        if getattr(run, name) is not None and name not in taken:
            which = "an SDXL refiner" if name in _SCORES else "SDXL"
            flag = "--" + name.replace("_", "-")
            raise CheckpointError(
                f"{stack.name}: {flag} is for checkpoints that take it, such as {which}'s; leave it out"
            )


def with_sizes(stack: Stack, run: RowDefaults, parameters: RowParameters) -> RowParameters:
    """Return a row's parameters with the numbers in force; unchanged if the checkpoint takes none."""
    if not stack.size_numbers:
        return parameters
    size = parameters.width, parameters.height
    parameters = replace(parameters, original_size=run.original_size or size, crop=run.crop or (0, 0))
    if stack.size_numbers == SIZE_NUMBERS:
        return replace(parameters, target_size=run.target_size or size)
    scores = [getattr(run, name) for name in _SCORES]
    score, negative = (
        default if given is None else given for given, default in zip(scores, AESTHETIC_SCORES, strict=True)
    )
    return replace(parameters, aesthetic_score=score, negative_aesthetic_score=negative)


def size_numbers(parameters: RowParameters, *, negative: bool) -> tuple[float, ...]:
    """Return the numbers of one side in the model's order: heights before widths, tops before lefts."""
    assert parameters.original_size is not None and parameters.crop is not None
    numbers = (*parameters.original_size[::-1], *parameters.crop[::-1])
    if parameters.target_size is not None:
        return (*numbers, *parameters.target_size[::-1])
    score = parameters.negative_aesthetic_score if negative else parameters.aesthetic_score
    assert score is not None
    return (*numbers, score)
