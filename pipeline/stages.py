"""The callable classes of the graph, tables in and tables out: one row in, one row out. No Ray here.

A bad row goes on as a row whose `error_type` and `error_message` are set (null in good rows); what is wrong with
an actor (out of memory, a checkpoint that is gone) is raised. Columns between two stages are schema.WORKING.
"""

import hashlib
import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import images, storage
from pipeline.checkpoint_files import UNKNOWN, Weights, check_weights
from pipeline.config import RunConfig, Task
from pipeline.journal import MAX_DEATHS, Journal, ProcessDied, RowJournal, Stopped
from pipeline.manifest import seed_of
from pipeline.manifest_rules import Rules, is_missing, problems_of
from pipeline.pictures import FILES, file_name, stored_name
from pipeline.provenance import Origin, now, provenance_columns, software_versions
from pipeline.schema import CLASSIFIED, IMAGE_TYPE, OUTPUT, PARAMETERS, PROVENANCE, SOURCES, WORKING

if TYPE_CHECKING:
    from pipeline.machinery import Machinery, Outcome

LoadMachinery = Callable[[RunConfig, str], "Machinery"]
"""Loads a run's model onto "cuda" or "cpu"."""
Report = Callable[[Mapping[str, float]], None]
"""Where amounts are added up by name: rows, ok, failed, evaluations, and seconds (`rates.SECONDS`)."""

PIXELS: Final = "__pixels"
"""Raw uint8 (height, width, 3) of the row's picture, between the network and the encoder."""
ROW: Final = "__row"
"""The manifest's row as JSON, for the row that fails."""
SOURCE_TYPE: Final = pa.struct([("pixels", pa.large_binary()), ("width", pa.int32()), ("height", pa.int32())])
TAGS: Final = "__tags"
"""What the row's source said beside its pixels, for the encoder; there where a picture is to stay what it is."""
TAGS_TYPE: Final = pa.struct(
    [("icc_profile", pa.binary()), ("exif", pa.binary()), ("dpi", pa.list_(pa.float64())), ("place", pa.string())]
)
"""`place`: where the source's file stands below its root; null where it is no file."""
ERRORS: Final[dict[str, pa.DataType]] = {"error_type": pa.string(), "error_message": pa.string()}


def carried_columns(manifest: pa.Schema, task: Task = "generate") -> pa.Schema:
    """The manifest's columns that go into the output unchanged."""
    named = {"id", *SOURCES} if task == "classify" else {"id", *PARAMETERS, *SOURCES}
    return pa.schema([field for field in manifest if field.name not in named])


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
            columns[carried.name] = table[carried.name].cast(carried.type) if present else _nulls(carried.type, rows)
        names = [name for name in SOURCES if name in self.manifest.names]
        names = ["image"] if self.config.task in ("upscale", "classify") else names
        if names:
            columns |= self._sources(names, rows, errors)
        columns[ROW] = pa.array([row_as_json(row) for row in rows], pa.string())
        return pa.table(columns | _error_columns(errors))

    def _problem(self, row: Mapping[str, Any]) -> Exception | None:
        problems = problems_of(row, self.rules, self.duplicates)
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
        sources = {name: _Sources(keeps=keeps, square=self.square) for name in names}
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
                self.report({"prepared": 1, "fetch_seconds": spent, **storage.taken_faults()})
        hashed = {"image": "source_sha256", "mask": "mask_sha256"}
        columns = {f"__{name}": pa.array(sources[name].pixels, SOURCE_TYPE) for name in names}
        if keeps:
            columns[TAGS] = pa.array(sources["image"].tags, TAGS_TYPE)
        return columns | {hashed[name]: pa.array(sources[name].hashes, pa.string()) for name in names}


@dataclass
class _Sources:
    """One column's decoded pictures, what their files say beside them, and the sha256 of these."""

    keeps: bool = False
    """Channels and tags are kept."""
    square: int | None = None
    pixels: list[dict[str, Any] | None] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)
    tags: list[dict[str, Any] | None] = field(default_factory=list)

    def add(self, name: str, source: Any, roots: storage.AllowedRoots, kept_out: str) -> Exception | None:
        """Decode a row's picture, none for None, and none of the folder `kept_out`; what is wrong with it."""
        decoded = digest = error = tags = None
        if source is not None:
            try:
                data, place = source_file(source, roots, kept_out)
                if self.keeps:
                    values, found = images.decode_kept(data)
                    tags = {**asdict(found), "place": place}
                else:
                    values = images.decode(data) if name == "image" else images.decode_mask(data)
                values = values if self.square is None else images.middle_square(values, self.square)
                decoded = {"pixels": values.tobytes(), "width": values.shape[1], "height": values.shape[0]}
                digest = sha256_of(data)
            except storage.StorageUnavailableError:
                raise
            except (images.ImageError, storage.StorageError) as found:
                error = type(found)(f"{name}: {found}")
        self.pixels.append(decoded)
        self.hashes.append(digest)
        self.tags.append(tags)
        return error


class InvalidRow(ValueError):
    """A row that the manifest's rules refuse."""


class Denoise:
    """Actor stage: prompts and seeds to pixels, on a model of its own. Safe to call from several threads at once.

    Adds PIXELS, PARAMETERS in force, `width`, `height` and the provenance; takes away what PrepareRows fetched."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        device: str,
        report: Report,
        load: LoadMachinery | None = None,
        journal: RowJournal | None = None,
        weights: Weights = UNKNOWN,
    ) -> None:
        """`weights`: the driver's; CheckpointError if this node's are others."""
        with beats(report):
            from pipeline.machinery import (  # here: the CPU stages' processes need no torch
                LaneThread,
                load_machinery,
                load_score,
            )

            machinery = (load or load_machinery)(config, device)
            self._score = None
            if config.clip_score is not None:
                self._score = load_score(config.clip_score, config.threads, device, weights.clip)
        check_weights(config.model, machinery.weights_sha256, weights.model)
        self._config, self._report = config, report
        self._origin = Origin(
            task=config.task,
            model=machinery.model,
            weights_sha256=machinery.weights_sha256,
            software=software_versions(),
            device=machinery.device,
            dtype=machinery.dtype,
            lanes=config.lanes,
            threads=config.threads,
            run_id=run_id,
        )
        self._lanes = LaneThread(
            machinery.task,
            machinery.engine,
            threads=config.threads,
            report=report,
            journal=journal,
            call_limit=config.call_limit,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        names = ["id", *(name for name in (*PARAMETERS, "__image", "__mask") if name in table.column_names)]
        good = [index for index, error in enumerate(table["error_type"].to_pylist()) if error is None]
        rows = [self._row(row) for row in table.select(names).take(pa.array(good, pa.int64())).to_pylist()]
        outcomes: list[Outcome | None] = [None] * table.num_rows
        for index, outcome in zip(good, self._lanes.run(rows), strict=True):
            outcomes[index] = outcome
        kept = [not isinstance(outcome, Stopped) for outcome in outcomes]
        return self._with_outcomes(table.filter(pa.array(kept, pa.bool_())), list(compress(outcomes, kept)))

    def close(self) -> None:
        self._lanes.close()

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as a task takes it: with its seed, its pictures as pixels."""
        if row.get("seed") is None:
            row["seed"] = seed_of(row["id"], self._config.seed)
        for working, name in (("__image", "pixels"), ("__mask", "mask")):
            if (source := row.pop(working, None)) is not None:
                values = np.frombuffer(source["pixels"], np.uint8).copy()  # torch wants to own it
                row[name] = values.reshape(source["height"], source["width"], *((-1,) if name == "pixels" else ()))
        return row

    def _with_outcomes(self, table: pa.Table, outcomes: "Sequence[Outcome | None]") -> pa.Table:
        ids = table["id"].to_pylist()
        made = [None if outcome is None or isinstance(outcome, Exception) else outcome for outcome in outcomes]
        failures = [outcome if isinstance(outcome, Exception) else None for outcome in outcomes]
        hashes = {
            name: table[name].to_pylist() for name in ("source_sha256", "mask_sha256") if name in table.column_names
        }
        varying = [
            {} if one is None else {**one.parameters, "seconds": one.seconds, "created_at": now()} for one in made
        ]
        for row, one in zip(varying, made, strict=True):
            if self._score is not None and one is not None and one.parameters.get("prompt"):
                started = time.perf_counter()
                row["clip_score"] = self._score(one.pixels, one.parameters["prompt"])
                self._report({"score_seconds": time.perf_counter() - started})
        for name, values in hashes.items():
            for row, value in zip(varying, values, strict=True):
                row[name] = value
        kept = (name for name in table.column_names if name not in WORKING or name in (ROW, TAGS))
        columns = {name: table[name] for name in kept}
        columns |= provenance_columns(self._origin, varying)
        columns["width"] = pa.array([None if one is None else one.pixels.shape[1] for one in made], pa.int32())
        columns["height"] = pa.array([None if one is None else one.pixels.shape[0] for one in made], pa.int32())
        columns[PIXELS] = _bytes_of_arrays([None if one is None else one.pixels for one in made])
        known = zip(table["error_type"].to_pylist(), table["error_message"].to_pylist(), failures, strict=True)
        errors = [(kind, message) if error is None else error_of(error) for kind, message, error in known]
        columns |= {name: pa.array([pair[place] for pair in errors], pa.string()) for place, name in enumerate(ERRORS)}
        if len(ids) != len(outcomes):
            raise AssertionError(f"{len(ids)} rows went in, {len(outcomes)} came out")
        return pa.table(columns)


@contextmanager
def beats(report: Report) -> Iterator[None]:
    """Say every second that a model is being loaded."""
    ended = threading.Event()

    def beat() -> None:
        before = time.monotonic()
        while not ended.wait(1.0):
            report({"loading_seconds": time.monotonic() - before})
            before = time.monotonic()

    threading.Thread(target=beat, name="loading", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@dataclass(frozen=True, kw_only=True)
class EncodeImages:
    """CPU stage: pixels to files, hashed. Gives OUTPUT's columns, PROVENANCE's, what is carried, ROW and ERRORS."""

    config: RunConfig
    manifest: pa.Schema
    report: Report | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        encoded: list[bytes | None] = []
        errors = list(zip(table["error_type"].to_pylist(), table["error_message"].to_pylist(), strict=True))
        for index, row in enumerate(table.drop_columns([PIXELS, ROW]).to_pylist()):
            data, pixels = None, table[PIXELS][index]
            try:
                data = self._encode(pixels, row) if pixels.is_valid else None
            except images.ImageError as error:
                errors[index] = error_of(error)
            encoded.append(data)
        places = self._places(table)
        images_of = [
            None if data is None else {"bytes": data, "path": path} for path, data in zip(places, encoded, strict=True)
        ]
        columns: dict[str, Any] = {
            "id": table["id"],
            "image": pa.array(images_of, IMAGE_TYPE),
            "width": table["width"],
            "height": table["height"],
            "format": pa.repeat(pa.scalar(self.config.format), table.num_rows),
            "sha256": pa.array([None if data is None else sha256_of(data) for data in encoded], pa.string()),
        }
        columns |= {name: table[name] for name in (*PROVENANCE, *carried_columns(self.manifest).names, ROW)}
        columns |= {name: pa.array([pair[place] for pair in errors], pa.string()) for place, name in enumerate(ERRORS)}
        if self.report is not None:
            self.report({"encode_seconds": time.perf_counter() - started})
        return pa.table(columns)

    def _places(self, table: pa.Table) -> list[str]:
        """The names of the rows' pictures: their own, or the places of their files in the output."""
        ids = table["id"].to_pylist()
        if self.config.store == "parquet":
            return [file_name(row_id, self.config.format) for row_id in ids]
        tags = table[TAGS].to_pylist()
        found = [tag and tag["place"] for tag in tags]
        return [stored_name(row_id, place, self.config.format) for row_id, place in zip(ids, found, strict=True)]

    def _encode(self, pixels: pa.Scalar, row: Mapping[str, Any]) -> bytes:
        values = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(row["height"], row["width"], -1)
        settings = {name: row[name] for name in PARAMETERS if row[name] is not None}
        metadata = {"Software": "latentmill", "parameters": json.dumps(settings, ensure_ascii=False)}
        found = row.get(TAGS)
        dpi = found and found["dpi"]
        tags = found and images.Tags(
            icc_profile=found["icc_profile"], exif=found["exif"], dpi=(dpi[0], dpi[1]) if dpi else None
        )
        return images.encode(values, self.config.format, quality=self.config.quality, metadata=metadata, tags=tags)


def output_schema(manifest: pa.Schema, task: Task = "generate") -> pa.Schema:
    """What a file of OUTPUT/data holds."""
    own = CLASSIFIED if task == "classify" else {**OUTPUT, **PROVENANCE}
    return pa.schema([*own.items(), *carried_columns(manifest, task)])


def row_ids(table: pa.Table) -> list[str]:
    """The rows' ids; a row without one gets a name made of all that it holds, under which it can fail."""
    ids = table["id"].to_pylist()
    for index, row_id in enumerate(ids):
        if row_id is None:
            row = row_as_json(table.slice(index, 1).to_pylist()[0])
            ids[index] = f"no-id-{sha256_of(row.encode())[:16]}"
    return ids


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def row_as_json(row: Mapping[str, Any]) -> str:
    """The row as it came, with binary values by their size."""
    return json.dumps(_without_bytes(row), ensure_ascii=False, default=str)


def error_of(error: BaseException) -> tuple[str, str]:
    """`error_type` and `error_message`: the kind and one line."""
    lines = str(error.args[0] if isinstance(error, KeyError) and error.args else error).splitlines()
    return type(error).__name__, (lines[0] if lines else "")[:1000]


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if isinstance(value, Mapping):
        return {key: _without_bytes(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_bytes(inner) for inner in value]
    return value


def source_file(source: Any, roots: storage.AllowedRoots, kept_out: str | None = None) -> tuple[bytes, str | None]:
    """The bytes of a manifest's `image` or `mask`, and where their file stands below its root, if it is one.

    A StorageError where that is below the folder `kept_out`."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return source, None
    url = roots.resolve(source)
    if kept_out is not None and storage.is_below(url, kept_out):
        raise storage.StorageError(f"{storage.shown(url)}: lies where this run writes its pictures")
    return storage.read_bytes(url, max_bytes=images.MAX_BYTES), roots.place(url)


def _bytes_of_arrays(arrays: Sequence[NDArray[np.uint8] | None]) -> pa.Array:
    """A column of their bytes; one alone is not copied, for it may be large."""
    given = [np.ascontiguousarray(array).reshape(-1) for array in arrays if array is not None]
    offsets = np.cumsum([0, *(0 if array is None else array.size for array in arrays)], dtype=np.int64)
    data = given[0] if len(given) == 1 else np.concatenate([np.zeros(0, np.uint8), *given])
    valid = pa.array([array is not None for array in arrays], pa.bool_()).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), buffers)


def _nulls(kind: pa.DataType, rows: Sequence[Any]) -> pa.Array:
    return pa.nulls(len(rows), kind)


def _error_columns(errors: Sequence[Exception | None]) -> dict[str, pa.Array]:
    pairs = [(None, None) if error is None else error_of(error) for error in errors]
    return {name: pa.array([pair[place] for pair in pairs], pa.string()) for place, name in enumerate(ERRORS)}
