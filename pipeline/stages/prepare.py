"""CPU stage: checks rows, fetches and decodes their images."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import InvalidRow, ProcessDied
from pipeline.inference.journal import MAX_DEATHS, Journal, RowJournal
from pipeline.manifest.identity import row_to_json
from pipeline.manifest.rules import Rules, is_missing, row_problems
from pipeline.schema import DECODED, FILES, PARAMETERS, ROW, SOURCE_METADATA, SOURCES
from pipeline.stages.contract import StageColumns, run_stage
from pipeline.stages.fetch import DECODED_TYPE, SOURCE_METADATA_TYPE, DecodedColumn, SourceReader
from pipeline.stages.rows import ERRORS, Report, carried_columns, error_columns, row_ids

_HASHES: Final = {"image": "source_sha256", "mask": "mask_sha256"}


@dataclass(frozen=True, kw_only=True)
class PrepareRows:
    """CPU stage: checks each row, fetches and decodes its images.

    A row that breaks a rule, or whose image cannot be read, goes on with its error. For upscaling, images keep their
    channels and SOURCE_METADATA is added. When the run stops, no row is returned."""

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
        adds = {ROW, *ERRORS, *carried_columns(self.manifest, self.config.task).names}
        for name in self._sources:
            adds |= {DECODED[name], _HASHES[name]}
        if self._with_metadata:
            adds.add(SOURCE_METADATA)
        return StageColumns(needs=frozenset({"id"}), adds=frozenset(adds), removes=frozenset(SOURCES))

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
        return self.config.task == "upscale"

    def _process(self, table: pa.Table) -> pa.Table:
        if self.stopping():
            table = table.slice(0, 0)
        rows = table.to_pylist()
        errors = [self._problem(row) for row in rows]
        columns: dict[str, Any] = {"id": pa.array(row_ids(table), pa.string())}
        columns |= {name: table[name] for name in PARAMETERS if name in table.column_names}
        for carried in carried_columns(self.manifest, self.config.task):
            present = carried.name in table.column_names
            column = table[carried.name].cast(carried.type) if present else pa.nulls(len(rows), carried.type)
            columns[carried.name] = column
        if self._sources:
            columns |= self._decoded_columns(rows, errors)
        columns[ROW] = pa.array([row_to_json(row) for row in rows], pa.string())
        return pa.table(columns | error_columns(errors))

    def _problem(self, row: Mapping[str, Any]) -> Exception | None:
        problems = row_problems(row, self.rules, self.duplicates)
        return InvalidRow("; ".join(problems)) if problems else None

    def _decoded_columns(
        self, rows: Sequence[Mapping[str, Any]], errors: list[Exception | None]
    ) -> dict[str, pa.Array]:
        """Return the columns of decoded images and of the sha256 of their files; set the errors of rows that fail."""
        roots = storage.AllowedRoots(self.config.manifest, self.config.allow_roots)
        own_files = storage.join(self.config.output, FILES) if self.config.output else None
        reader = SourceReader(roots, own_files)
        decoded = [DecodedColumn(name, reader, self._with_metadata, self.square) for name in self._sources]
        caller, keys = uuid.uuid4().hex, [f"pictures of {row['id']}" for row in rows]
        deaths = self.journal.begin(caller, keys)
        for index, (row, key) in enumerate(zip(rows, keys, strict=True)):
            if errors[index] is None and deaths.get(key, 0) >= MAX_DEATHS:
                errors[index] = ProcessDied(deaths[key])
            self.journal.started(caller, [key])
            started = time.perf_counter()
            for column in decoded:
                reads = errors[index] is None and not is_missing(row.get(column.name))
                errors[index] = column.append(row[column.name] if reads else None) or errors[index]
            self.journal.done(caller, [key])
            if self.report is not None:
                seconds = time.perf_counter() - started
                self.report({"prepared": 1, "fetch_seconds": seconds, **storage.take_fault_counts()})
        columns: dict[str, pa.Array] = {}
        for column in decoded:
            columns[DECODED[column.name]] = pa.array(column.pixels, DECODED_TYPE)
            columns[_HASHES[column.name]] = pa.array(column.hashes, pa.string())
        if self._with_metadata:
            columns[SOURCE_METADATA] = pa.array(decoded[0].metadata, SOURCE_METADATA_TYPE)
        return columns
