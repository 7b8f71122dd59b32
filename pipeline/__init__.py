"""Latent diffusion over tables, on Ray. The public API.

The names are imported when they are first used, so that `import pipeline.config` loads neither Ray nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pipeline.config import RowDefaults, RunConfig
    from pipeline.output.audit import check_output as check
    from pipeline.run.estimate import estimate
    from pipeline.run.job import run_job as run
    from pipeline.run.processor import build_processor

__all__ = ["RowDefaults", "RunConfig", "build_processor", "check", "estimate", "run"]

_LOCATIONS: Final = {
    "RowDefaults": ("pipeline.config", "RowDefaults"),
    "RunConfig": ("pipeline.config", "RunConfig"),
    "build_processor": ("pipeline.run.processor", "build_processor"),
    "check": ("pipeline.output.audit", "check_output"),
    "estimate": ("pipeline.run.estimate", "estimate"),
}


def __getattr__(name: str) -> Any:
    if name == "run":
        return import_module("pipeline.run")  # the package itself can be called
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    module, attribute = _LOCATIONS[name]
    return getattr(import_module(module), attribute)
