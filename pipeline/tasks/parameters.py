"""A row's parameters in force: from the row, then the run, then the checkpoint, then diffusers' default."""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.adapters import adapter_weights
from pipeline.config import RowDefaults
from pipeline.diffusion.catalog import canonical_name
from pipeline.models.stack import Stack
from pipeline.tasks.rows import Row, RowParameters
from pipeline.tasks.sizes import check_size_options, with_sizes

DEFAULTS: Final[Mapping[str, Any]] = {
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "guidance_rescale": 0.0,
    "eta": 0.0,
    "strength": 0.8,
    "clip_skip": 0,
}
"""What diffusers' pipelines take where neither row, run nor checkpoint says."""

_EDIT_DEFAULTS: Final[Mapping[str, Any]] = {"num_inference_steps": 100, "image_guidance_scale": 1.5}
_XL_DEFAULTS: Final[Mapping[str, Any]] = {"guidance_scale": 5.0, "strength": 0.3}
_LCM_DEFAULTS: Final[Mapping[str, Any]] = {"num_inference_steps": 4, "guidance_scale": 8.5}


def defaults_of(stack: Stack) -> dict[str, Any]:
    """Return the defaults of diffusers' text to image and image to image for a checkpoint's family."""
    if stack.guidance_width is not None:
        return {**DEFAULTS, **_LCM_DEFAULTS}
    edits = _EDIT_DEFAULTS if stack.edits_images else {}
    return {**DEFAULTS, **(_XL_DEFAULTS if stack.size_numbers else {}), **edits}


class ParameterResolver:
    """Resolves the parameters of rows for one checkpoint and one run."""

    def __init__(self, run: RowDefaults, stack: Stack, defaults: Mapping[str, Any]) -> None:
        """`defaults` are the task's, with the key "sampler". CheckpointError if a run's option is not the stack's."""
        check_size_options(stack, run)
        self._run, self._stack, self._defaults = run, stack, defaults
        self._checkpoint = stack.generation_config

    def value(self, row: Row, name: str) -> Any:
        """Return a parameter from the row, the run, the checkpoint or the task; KeyError if none has it."""
        for value in (getattr(row, name), getattr(self._run, name), self._checkpoint.get(name)):
            if value is not None:
                return value
        return self._defaults[name]

    def option(self, name: str, default: Any) -> Any:
        """Return an option that rows do not have: from the run, then the checkpoint."""
        value = getattr(self._run, name)
        return self._checkpoint.get(name, default) if value is None else value

    def parameters(self, row: Row, size: tuple[int, int], *, strength: float | None = None) -> RowParameters:
        """Return the parameters that all tasks have; `size` (width, height) is for rows and runs that give none."""
        width, height = _first(row.width, self._run.width, size[0]), _first(row.height, self._run.height, size[1])
        parameters = RowParameters(
            prompt=row.prompt or "",
            negative_prompt=self._negative_prompt(row),
            seed=int(row.seed),
            width=width,
            height=height,
            num_inference_steps=int(self.value(row, "num_inference_steps")),
            guidance_scale=float(self.value(row, "guidance_scale")),
            guidance_rescale=float(self.value(row, "guidance_rescale")),
            sampler=canonical_name(self.value(row, "sampler")),
            eta=float(self.value(row, "eta")),
            strength=strength,
            loras=adapter_weights(self._run.use_loras if row.loras is None else row.loras, self._stack.adapters.names),
            prompt_syntax=self._run.prompt_syntax if self._stack.text is not None else None,
            clip_skip=int(self.value(row, "clip_skip")) if self._stack.text is not None else None,
        )
        return with_sizes(self._stack, self._run, parameters)

    def _negative_prompt(self, row: Row) -> str | None:
        """Return the negative prompt; where none is given, None if the checkpoint takes zeros for it, else ""."""
        given = self._run.negative_prompt if row.negative_prompt is None else row.negative_prompt
        zeros = self._stack.text is not None and self._stack.text.zeros_for_none
        return given if given is not None or zeros else ""


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)
