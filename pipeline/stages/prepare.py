"""CPU stage: checks rows, fetches and decodes their images."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import InvalidRow, ProcessDied, attempt
from pipeline.inference.journal import MAX_DEATHS, Journal, RowJournal
from pipeline.manifest.arrow_values import column_values, plain_table, plain_type, rows_to_json, scalar_value
from pipeline.manifest.rules import Rules, is_missing, row_problems
from pipeline.schema import DECODED, FILES, PARAMETERS, ROW, SOURCE_METADATA, SOURCES
from pipeline.stages.contract import StageColumns, run_stage
from pipeline.stages.fetch import DECODED_TYPE, SOURCE_METADATA_TYPE, DecodedColumn, SourceReader
from pipeline.stages.rows import ERRORS, Report, error_columns, row_ids

_HASHES: Final = {"image": "source_sha256", "mask": "mask_sha256"}


@dataclass(frozen=True, kw_only=True)
class PrepareRows:
    """CPU stage: checks each row, fetches and decodes its images.

    A row that breaks a rule, or whose image cannot be read, goes on with its error. For upscaling and inpainting,
    images keep their channels and SOURCE_METADATA is added. When the run stops, no row is returned."""

    config: RunConfig
    rules: Rules
    manifest: pa.Schema
    duplicates: frozenset[str] = frozenset()
    journal: RowJournal = field(default_factory=Journal)
    report: Report | None = None
    square: int | None = None
    """Pixels of the side of the center square to which images are cropped; None: they are not cropped."""

    @property
    def columns(self) -> StageColumns:
        adds = {"id": pa.string(), **self._carried, ROW: pa.string(), **ERRORS}
        for name in self._sources:
            adds |= {DECODED[name]: DECODED_TYPE, _HASHES[name]: pa.string()}
        if self._with_metadata:
            adds[SOURCE_METADATA] = SOURCE_METADATA_TYPE
        return StageColumns(needs=frozenset({"id"}), adds=adds, removes=frozenset(SOURCES))

    def stopping(self) -> bool:
        return self.journal.stopping()

    def __call__(self, table: pa.Table) -> pa.Table:
        return run_stage(self, self._process, table)

    @property
    def _sources(self) -> tuple[str, ...]:
        if self.config.task in ("upscale", "classify"):
            return ("image",)
        return tuple(name for name in SOURCES if name in self.manifest.names)

    @property
    def _with_metadata(self) -> bool:
        return self.config.task in ("upscale", "inpaint") and "image" in self._sources

    @property
    def _carried(self) -> dict[str, pa.DataType]:
        """The manifest's columns that go through this stage, and their types."""
        return {field.name: plain_type(field.type) for field in self.manifest if field.name not in ("id", *SOURCES)}

    def _process(self, table: pa.Table) -> pa.Table:
        table = plain_table(table.slice(0, 0) if self.stopping() else table)
        columns: dict[str, Any] = {"id": pa.array(row_ids(table), pa.string())}
        for name, kind in self._carried.items():
            column = table[name] if name in table.column_names else pa.nulls(table.num_rows, kind)
            columns[name] = column if column.type == kind else column.cast(kind)
        rows = _Rows(table)
        errors = [self._problem(rows[index]) for index in range(table.num_rows)]
        if self._sources:
            columns |= self._decoded_columns(rows, errors)
        columns[ROW] = pa.array(rows_to_json(table), pa.string())
        return pa.table(columns | error_columns(errors))

    def _problem(self, row: Mapping[str, Any]) -> Exception | None:
        problems = attempt(lambda: row_problems(row, self.rules, self.duplicates))
        if isinstance(problems, Exception):
            return problems
        return InvalidRow("; ".join(problems)) if problems else None

    def _decoded_columns(self, rows: "_Rows", errors: list[Exception | None]) -> dict[str, pa.Array]:
        """Return the columns of decoded images and of the sha256 of their files; set the errors of rows that fail."""
        roots = storage.AllowedRoots(self.config.manifest, self.config.allow_roots)
        own_files = storage.join(self.config.output, FILES) if self.config.output else None
        reader = SourceReader(roots, own_files)
        decoded = [DecodedColumn(name, reader, self._with_metadata, self.square) for name in self._sources]
        caller, keys = uuid.uuid4().hex, [f"pictures of {row_id}" for row_id in rows.values["id"]]
        deaths = self.journal.begin(caller, keys)
        for index, key in enumerate(keys):
            if errors[index] is None and deaths.get(key, 0) >= MAX_DEATHS:
                errors[index] = ProcessDied(deaths[key])
            self.journal.update(caller, done=keys[max(index - 1, 0) : index], started=[key], wait=key in deaths)
            started, row = time.perf_counter(), rows[index]
            for column in decoded:
                reads = errors[index] is None and not is_missing(row.get(column.name))
                errors[index] = column.append(row[column.name] if reads else None) or errors[index]
            if self.report is not None:
                seconds = time.perf_counter() - started
                self.report({"prepared": 1, "fetch_seconds": seconds, **storage.take_fault_counts()})
        self.journal.update(caller, done=keys[-1:], started=(), wait=False)
        columns: dict[str, pa.Array] = {}
        for column in decoded:
            columns[DECODED[column.name]] = pa.array(column.pixels, DECODED_TYPE)
            columns[_HASHES[column.name]] = pa.array(column.hashes, pa.string())
        if self._with_metadata:
            columns[SOURCE_METADATA] = pa.array(decoded[0].metadata, SOURCE_METADATA_TYPE)
        return columns


class _Rows:
    """Rows with the values that rules and sources need; images are converted for one row at a time."""

    def __init__(self, table: pa.Table) -> None:
        self._sources = {name: table[name] for name in SOURCES if name in table.column_names}
        names = [name for name in ("id", *PARAMETERS) if name in table.column_names]
        self.values = {name: column_values(table[name]) for name in names}

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: values[index] for name, values in self.values.items()}
        return row | {name: scalar_value(column[index]) for name, column in self._sources.items()}
