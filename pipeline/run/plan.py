"""What a run is about to do; what can be wrong with it is said here, before a cluster or a model is asked for."""

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import SCALES, RunConfig
from pipeline.diffusion.samplers import SAMPLERS
from pipeline.errors import CheckpointError, InvalidManifestError, ManifestError, RunError
from pipeline.inference.checkpoint_info import CheckpointInfo, read_checkpoint_info
from pipeline.manifest.identity import in_shard
from pipeline.manifest.read import count_rows, fingerprint, read_batches, read_schema, take_rows
from pipeline.manifest.rules import Problem, Rules
from pipeline.manifest.validate import validate
from pipeline.output.id_sets import isin_sorted, read_manifest_ids
from pipeline.output.lease import Lease
from pipeline.output.ledger import LedgerState, clear_ledger, delete_uncommitted, read_ledger, remove_failed_rows
from pipeline.output.manifest_changes import find_changed_rows
from pipeline.output.run_record import read_run, refuse_differences, settings_of

_SHOWN_PROBLEMS: Final = 3
_BLOCK_BYTES: Final = 64 * 2**20
_MAX_BLOCK_ROWS: Final = 1024
_BLOCKS_AN_ACTOR: Final = 32
"""At least so many in a run, if they fill the lanes: at its end an actor waits for another's last block at most."""
_FILE_BYTES: Final = 256 * 2**20
_BYTES_A_PIXEL: Final = {"png": 1.5, "webp": 0.4, "jpeg": 0.4}
_MAX_FILE_ROWS: Final = 16
"""Where pictures may be of any size."""
_FILES_AN_ACTOR: Final = 16
"""At least so many in a run: a short run commits often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """A run that can start: what there is, what is done, what is to be done."""

    run_id: str
    attempt: int
    rules: Rules
    schema: pa.Schema
    duplicates: frozenset[str]
    committed: LedgerState
    fingerprint: str
    """Of the manifest."""
    rows: int
    """Of the manifest: those that this run makes, all in all."""
    todo: int
    checkpoint: CheckpointInfo

    @property
    def already_done(self) -> int:
        return self.rows - self.todo

    def rows_per_block(self, config: RunConfig, actors: int) -> int:
        """Rows of one part of the output: enough to fill the lanes, few enough for memory and to share among actors."""
        if config.task == "upscale":
            return 1  # its pictures are of any size
        size = (config.defaults.width or 0) * (config.defaults.height or 0)
        most = min(_MAX_BLOCK_ROWS, _BLOCK_BYTES // (3 * max(size, self.checkpoint.native_pixels)))
        return max(config.lanes, min(most, math.ceil(self.todo / (_BLOCKS_AN_ACTOR * actors))), 1)

    def rows_per_file(self, config: RunConfig, actors: int) -> int:
        """Rows that make a file of about _FILE_BYTES, if the run is long enough: a kill costs a few files at most."""
        size = (config.defaults.width or 0) * (config.defaults.height or 0)
        picture = max(size, self.checkpoint.native_pixels) * _BYTES_A_PIXEL[config.format]
        most = max(1, int(_FILE_BYTES // picture))
        most = min(most, _MAX_FILE_ROWS) if config.task == "upscale" else most
        return max(1, min(most, math.ceil(self.todo / (_FILES_AN_ACTOR * actors))))


def plan_run(config: RunConfig, lease: Lease, checkpoint: CheckpointInfo | None = None) -> RunPlan:
    """Check a run, take the lease on its output, look at what is done; RunError says in one line why it cannot start.

    Deletes what a killed run left in the output without a ledger entry."""
    try:
        _check(config)
        facts = checkpoint or read_checkpoint_info(config)
        rules = Rules(task=config.task, samplers=tuple(SAMPLERS), size_multiple=facts.downsample_factor)
        schema = read_schema(config.manifest)
        problems = _problems(config, rules)
        earlier = {} if config.new_run else read_run(config.output)
        refuse_differences(config, {"config": settings_of(config)}, earlier)
        lease.acquire()
        if config.new_run:
            clear_ledger(config.output)
        if config.retry_failed:
            remove_failed_rows(config.output)
        committed = read_ledger(config.output)
        manifest_sha256 = fingerprint(config.manifest)
        _refuse_changed_rows(config, committed, manifest_sha256, earlier)
        delete_uncommitted(config.output, committed)
        rows = count_rows_to_make(config)
        return RunPlan(
            run_id=str(earlier.get("run_id") or uuid.uuid4().hex),
            attempt=int(earlier.get("attempt") or 0) + 1,
            rules=rules,
            schema=schema,
            duplicates=frozenset(p.id for p in problems if p.column == "id" and p.id is not None),
            committed=committed,
            fingerprint=manifest_sha256,
            rows=rows,
            todo=rows if not committed.id_hashes.count else _count_missing(config, committed),
            checkpoint=facts,
        )
    except (storage.StorageError, ManifestError, CheckpointError) as error:
        raise RunError(str(error)) from error


def _check(config: RunConfig) -> None:
    if config.lanes < 2 and config.task != "classify":
        raise RunError(f"lanes is {config.lanes}; give 2 or more: a guided row takes two")
    for name in ("threads", "actors", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise RunError(f"{name} is {value}; give 1 or more")
    tile, overlap = config.defaults.tile, config.defaults.overlap
    if config.defaults.scale not in SCALES:
        raise RunError(f"scale is {config.defaults.scale}; give one of {', '.join(map(str, SCALES))}")
    if tile is not None and overlap is not None and overlap > tile // 2:
        raise RunError(f"overlap is {overlap}; give at most {tile // 2}, half of the tile")
    if len(set(config.labels)) < len(config.labels):
        raise RunError("a label is given more than once; give each once")
    if config.task == "classify" and len(config.labels) < 2:
        raise RunError("there are no labels to choose among; give two or more")
    if "{}" not in config.template:
        raise RunError(f"template is {config.template!r}; it must hold {{}}, where the label stands")
    if config.defaults.sampler is not None and config.defaults.sampler not in SAMPLERS:
        raise RunError(f"sampler {config.defaults.sampler!r} does not exist; there are {', '.join(SAMPLERS)}")
    if config.output.startswith("hf://"):
        raise RunError("the output is at hf://, where each file is a commit; write elsewhere, and upload what is made")
    if storage.exists(config.output) and not storage.is_folder(config.output):
        raise RunError(f"{storage.redact_url(config.output)}: is a file; the output is a folder")


def _problems(config: RunConfig, rules: Rules) -> list[Problem]:
    """The invalid rows, where the run may skip them; else InvalidManifestError."""
    problems = list(validate(config.manifest, rules, limit=config.limit))
    if not problems or (config.skip_invalid and all(problem.row is not None for problem in problems)):
        return problems
    shown = "; ".join(str(problem) for problem in problems[:_SHOWN_PROBLEMS])
    more = f"; and {len(problems) - _SHOWN_PROBLEMS:,} more" if len(problems) > _SHOWN_PROBLEMS else ""
    hint = " (--skip-invalid runs the rest)" if all(problem.row is not None for problem in problems) else ""
    message = f"{storage.redact_url(config.manifest)}: {shown}{more}{hint}"
    raise InvalidManifestError(message, problems)


def _refuse_changed_rows(
    config: RunConfig, committed: LedgerState, fingerprint: str, earlier: Mapping[str, Any]
) -> None:
    """RunError if rows that are done are others now, where the manifest is not the file that it was."""
    before = earlier.get("manifest", {}).get("sha256")
    if before is None or not committed.id_hashes.count or fingerprint == before:
        return
    if changed := find_changed_rows(config.manifest, config.limit, committed):
        raise RunError(
            f"{storage.redact_url(config.manifest)}: {changed.count:,} rows that are done have changed "
            f"since, the first is {changed.first!r}; give another OUTPUT, or --new-run to begin anew"
        )


def count_rows_to_make(config: RunConfig) -> int:
    """The rows that a run makes of its manifest: all, the first `limit`, or its shard's of these."""
    if config.shard is None:
        return min(count_rows(config.manifest), config.limit or 2**63)
    batches = take_rows(read_batches(config.manifest, ["id"]), config.limit)
    return sum(int(np.count_nonzero(in_shard(batch, config.shard))) for batch in batches)


def _count_missing(config: RunConfig, committed: LedgerState) -> int:
    """Memory: one bucket of the manifest's and one of the ledger's ids."""
    with read_manifest_ids(config.manifest, config.limit, config.shard) as asked:
        return sum(int(np.count_nonzero(~isin_sorted(*pair))) for pair in zip(asked, committed.id_hashes, strict=True))
