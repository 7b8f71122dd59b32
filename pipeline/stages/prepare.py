"""CPU stage: checks rows, fetches and decodes their pictures."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import ProcessDied
from pipeline.inference.journal import MAX_DEATHS, Journal, RowJournal
from pipeline.manifest.rules import Rules, is_missing, row_problems
from pipeline.schema import FILES, PARAMETERS, SOURCES

if TYPE_CHECKING:
    pass
from pipeline.errors import InvalidRow
from pipeline.manifest.identity import row_to_json
from pipeline.stages.fetch import SOURCE_TYPE, DecodedSources
from pipeline.stages.rows import ROW, TAGS, TAGS_TYPE, Report, carried_columns, error_columns, nulls, row_ids


@dataclass(frozen=True, kw_only=True)
class PrepareRows:
    """CPU stage: checks each row, fetches and decodes its pictures.

    Gives the columns `id`, the manifest's PARAMETERS as they are, what is carried, ROW, ERRORS, and for each of SOURCES
    that the manifest has: `__image` (SOURCE_TYPE) and `source_sha256`; `__mask` and `mask_sha256`. To upscale, a
    picture keeps its channels, and TAGS are there."""

    config: RunConfig
    rules: Rules
    manifest: pa.Schema
    duplicates: frozenset[str] = frozenset()
    journal: RowJournal = field(default_factory=Journal)
    report: Report | None = None
    square: int | None = None
    """Pixels of the middle square to which pictures are cut; None: they stay whole."""

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.journal.stopping():
            table = table.slice(0, 0)
        rows = table.to_pylist()
        errors = [self._problem(row) for row in rows]
        columns: dict[str, Any] = {"id": pa.array(row_ids(table), pa.string())}
        columns |= {name: table[name] for name in PARAMETERS if name in table.column_names}
        for carried in carried_columns(self.manifest, self.config.task):
            present = carried.name in table.column_names
            columns[carried.name] = table[carried.name].cast(carried.type) if present else nulls(carried.type, rows)
        names = [name for name in SOURCES if name in self.manifest.names]
        names = ["image"] if self.config.task in ("upscale", "classify") else names
        if names:
            columns |= self._sources(names, rows, errors)
        columns[ROW] = pa.array([row_to_json(row) for row in rows], pa.string())
        return pa.table(columns | error_columns(errors))

    def _problem(self, row: Mapping[str, Any]) -> Exception | None:
        problems = row_problems(row, self.rules, self.duplicates)
        return InvalidRow("; ".join(problems)) if problems else None

    def _sources(
        self, names: Sequence[str], rows: Sequence[Mapping[str, Any]], errors: list[Exception | None]
    ) -> dict[str, pa.Array]:
        """The columns of decoded pictures and of the sha256 of their files; what fails is put among `errors`."""
        roots = storage.AllowedRoots(self.config.manifest, self.config.allow_roots)
        kept_out = storage.join(self.config.output, FILES)
        caller, keys = uuid.uuid4().hex, [f"pictures of {row['id']}" for row in rows]
        deaths = self.journal.begin(caller, keys)
        keeps = self.config.task == "upscale"
        sources = {name: DecodedSources(keeps=keeps, square=self.square) for name in names}
        for index, (row, key) in enumerate(zip(rows, keys, strict=True)):
            if errors[index] is None and deaths.get(key, 0) >= MAX_DEATHS:
                errors[index] = ProcessDied(deaths[key])
            self.journal.started(caller, [key])
            started = time.perf_counter()
            for name in names:
                read = errors[index] is None and not is_missing(row.get(name))
                source = row[name] if read else None
                errors[index] = sources[name].add(name, source, roots, kept_out) or errors[index]
            self.journal.done(caller, [key])
            if self.report is not None:
                spent = time.perf_counter() - started
                self.report({"prepared": 1, "fetch_seconds": spent, **storage.take_fault_counts()})
        hashed = {"image": "source_sha256", "mask": "mask_sha256"}
        columns = {f"__{name}": pa.array(sources[name].pixels, SOURCE_TYPE) for name in names}
        if keeps:
            columns[TAGS] = pa.array(sources["image"].tags, TAGS_TYPE)
        return columns | {hashed[name]: pa.array(sources[name].hashes, pa.string()) for name in names}
