"""The Ray side of a run. The package can be called: `pipeline.run(config)` processes a run and returns its summary."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.run.summary import RunSummary


class _RunPackage(ModuleType):
    """The type of this package: `run` is both the name of the package and a function of the public API."""

    def __call__(self, config: "RunConfig") -> "RunSummary":
        """Process the rows that a run's output lacks. RunError says in one line why it could not start or finish.

        After a KeyboardInterrupt, committed rows remain, and the same config continues the run."""
        from pipeline.run.job import run_job

        return run_job(config)


sys.modules[__name__].__class__ = _RunPackage
