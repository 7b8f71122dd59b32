"""The contract of a stage: its columns, one row out for each row in, and a row's failure instead of a run's."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from pipeline.errors import StageError, attempt
from pipeline.manifest.arrow_values import rows_to_json
from pipeline.schema import ROW
from pipeline.stages.rows import ERRORS, error_columns, row_ids, updated_error_columns


@dataclass(frozen=True, slots=True)
class StageColumns:
    """The columns that a stage needs, those that it adds with their types, and those that it removes.

    Any other column goes through."""

    needs: frozenset[str]
    adds: Mapping[str, pa.DataType]
    removes: frozenset[str] = frozenset()

    def names(self, table: pa.Table) -> list[str]:
        """Return the columns of the stage's output for an input, in their order."""
        passed = [name for name in table.column_names if name not in self.removes and name not in self.adds]
        return [*passed, *(name for name in self.adds if name not in self.removes)]


class Stage(Protocol):
    """A callable class for `map_batches`."""

    @property
    def columns(self) -> StageColumns: ...

    def stopping(self) -> bool:
        """Return whether the run stops, in which case rows that are not finished are dropped."""
        ...


def run_stage(stage: Stage, process: Callable[[pa.Table], pa.Table], table: pa.Table) -> pa.Table:
    """Return `process(table)`; StageError if its input or output breaks the stage's contract.

    A table that cannot be processed is halved until the failing rows are isolated. They are returned as failed rows:
    with the exception's type and message, and null in the columns that the stage adds."""
    name, columns = type(stage).__name__, stage.columns
    if missing := columns.needs - set(table.column_names):
        raise StageError(f"{name} needs the columns {_listed(missing)}, which its input lacks")
    result = _process_or_halve(stage, process, table)
    if result.num_rows != table.num_rows and not stage.stopping():
        raise StageError(f"{name} got {table.num_rows} rows and returned {result.num_rows}")
    return result


def _process_or_halve(stage: Stage, process: Callable[[pa.Table], pa.Table], table: pa.Table) -> pa.Table:
    columns = stage.columns
    result = attempt(lambda: process(table))
    if isinstance(result, pa.Table):
        return _checked(result, columns, columns.names(table), type(stage).__name__)
    if table.num_rows == 0:
        raise StageError(f"{type(stage).__name__} cannot process an empty table") from result
    if table.num_rows == 1:
        return _failed_row(table, columns, result)
    half = table.num_rows // 2
    return pa.concat_tables([_process_or_halve(stage, process, part) for part in (table[:half], table[half:])])


def _checked(result: pa.Table, columns: StageColumns, names: list[str], stage: str) -> pa.Table:
    """Return a stage's output with its columns in order."""
    if different := set(names) ^ set(result.column_names):
        raise StageError(f"{stage} declares other columns than it returns: {_listed(different)}")
    for name in names:
        if name in columns.adds and result.schema.field(name).type != columns.adds[name]:
            raise StageError(f"{stage} returns {name} as {result.schema.field(name).type}, not {columns.adds[name]}")
    return result.select(names)


def _failed_row(row: pa.Table, columns: StageColumns, error: Exception) -> pa.Table:
    """Return a table of one row as an output row that failed; an earlier error stays."""
    values: dict[str, Any] = {name: pa.nulls(1, kind) for name, kind in columns.adds.items()}
    if "id" in values:  # the first stage
        values |= {"id": row_ids(row), ROW: rows_to_json(row)}
    values |= {name: row[name] for name in row.column_names if name not in columns.adds}
    if set(ERRORS) <= set(row.column_names):
        values |= updated_error_columns(row, [error if row["error_type"][0].as_py() is None else None])
    else:
        values |= error_columns([error])
    return pa.table(values).select(columns.names(row))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
