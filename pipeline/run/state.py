"""The state of an output that a run continues."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.manifest.read import fingerprint
from pipeline.output.ledger import LedgerState, clear_ledger, delete_uncommitted, read_ledger, remove_failed_rows
from pipeline.output.ledger_repair import repair_ledger
from pipeline.output.manifest_changes import find_changed_rows
from pipeline.output.run_record import RunRecord, read_run


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputState:
    """The committed rows of an output, and the record of the attempt that continues it."""

    record: RunRecord
    ledger: LedgerState
    manifest_sha256: str


def read_state(config: RunConfig) -> OutputState:
    """Read the state of an output whose lease is held. RunError if rows changed after they were committed.

    Deletes files that no ledger entry names: a run that was killed left them. With `new_run` no row remains committed,
    with `retry_failed` only the good ones do."""
    earlier = {} if config.new_run else read_run(config.output)
    if config.new_run:
        clear_ledger(config.output)
    if config.retry_failed:
        remove_failed_rows(config.output)
    ledger = repair_ledger(config.output, read_ledger(config.output))
    manifest_sha256 = fingerprint(config.manifest)
    _refuse_changed_rows(config, ledger, manifest_sha256, earlier)
    delete_uncommitted(config.output, ledger)
    record = RunRecord(
        config=config,
        run_id=str(earlier.get("run_id") or uuid.uuid4().hex),
        attempt=int(earlier.get("attempt") or 0) + 1,
    )
    return OutputState(record=record, ledger=ledger, manifest_sha256=manifest_sha256)


def _refuse_changed_rows(
    config: RunConfig, ledger: LedgerState, manifest_sha256: str, earlier: Mapping[str, Any]
) -> None:
    """Look for changed rows only if the manifest is not the file that it was."""
    before = earlier.get("manifest", {}).get("sha256")
    if before is None or not ledger.id_hashes.count or manifest_sha256 == before:
        return
    if changed := find_changed_rows(config.manifest, config.limit, ledger):
        raise RunError(
            f"{storage.redact_url(config.manifest)}: {changed.count:,} rows have changed since they were committed, "
            f"the first is {changed.first!r}; give another OUTPUT, or --new-run to start over"
        )
