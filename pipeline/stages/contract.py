"""The contract of a stage: the columns that it needs, adds and removes, and one row out for each row in."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from pipeline.errors import StageError


@dataclass(frozen=True, slots=True)
class StageColumns:
    """The columns that a stage needs, those that it adds, and those that it removes; any other goes through."""

    needs: frozenset[str]
    adds: frozenset[str]
    removes: frozenset[str] = frozenset()


class Stage(Protocol):
    """A callable class for `map_batches`."""

    @property
    def columns(self) -> StageColumns: ...

    def stopping(self) -> bool:
        """Return whether the run stops, in which case rows that are not finished are dropped."""
        ...


def run_stage(stage: Stage, process: Callable[[pa.Table], pa.Table], table: pa.Table) -> pa.Table:
    """Return `process(table)`; StageError if its input or output breaks the stage's contract."""
    name, columns = type(stage).__name__, stage.columns
    if missing := columns.needs - set(table.column_names):
        raise StageError(f"{name} needs the columns {_listed(missing)}, which its input lacks")
    result = process(table)
    expected = (set(table.column_names) | columns.adds) - columns.removes
    if different := expected ^ set(result.column_names):
        raise StageError(f"{name} declares other columns than it returns: {_listed(different)}")
    if result.num_rows != table.num_rows and not stage.stopping():
        raise StageError(f"{name} got {table.num_rows} rows and returned {result.num_rows}")
    return result


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
