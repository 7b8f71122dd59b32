"""A row's parameters in force: from the row, then the run, then the checkpoint, then diffusers' default."""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.config import RowDefaults
from pipeline.tasks.rows import Row, RowParameters

DEFAULTS: Final[Mapping[str, Any]] = {
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "guidance_rescale": 0.0,
    "eta": 0.0,
    "strength": 0.8,
}
"""What diffusers' pipelines take where neither row, run nor checkpoint says."""


class ParameterResolver:
    """Resolves the parameters of rows for one checkpoint and one run."""

    def __init__(self, run: RowDefaults, checkpoint: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """`checkpoint` is its generation_config.json; `defaults` are the task's, with the key "sampler"."""
        self._run, self._checkpoint, self._defaults = run, checkpoint, defaults

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
        return RowParameters(
            prompt=row.prompt or "",
            negative_prompt=_first(row.negative_prompt, self._run.negative_prompt),
            seed=int(row.seed),
            width=width,
            height=height,
            num_inference_steps=int(self.value(row, "num_inference_steps")),
            guidance_scale=float(self.value(row, "guidance_scale")),
            guidance_rescale=float(self.value(row, "guidance_rescale")),
            sampler=self.value(row, "sampler"),
            eta=float(self.value(row, "eta")),
            strength=strength,
        )


def _first(*values: Any) -> Any:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)
