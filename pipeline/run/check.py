"""The checks of a run before its output is touched and before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from pipeline import storage
from pipeline.adapters import adapter_weights
from pipeline.config import SCALES, RunConfig
from pipeline.diffusion.catalog import canonical_name
from pipeline.errors import InvalidManifestError, RunError
from pipeline.inference.checkpoint_info import CheckpointInfo, read_checkpoint_info
from pipeline.manifest.read import read_schema
from pipeline.manifest.rules import Problem, Rules
from pipeline.manifest.validate import validate
from pipeline.output.run_record import read_run, refuse_differences, settings_of
from pipeline.schema import DATA, FAILED_FOLDER, FILES, LEDGER_FOLDER

_LISTED_PROBLEMS: Final = 3
_OUTPUT_FOLDERS: Final = (DATA, FAILED_FOLDER, LEDGER_FOLDER, FILES)
"""The folders of an output in which a run deletes files that it has not committed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedRun:
    """The facts of a run that passed the checks."""

    checkpoint: CheckpointInfo
    rules: Rules
    schema: pa.Schema
    """The columns of the manifest."""
    duplicates: frozenset[str]
    """Ids that more than one row of the manifest has."""


def check_run(config: RunConfig, checkpoint: CheckpointInfo | None = None) -> CheckedRun:
    """Check a run's options, checkpoint, manifest and output. RunError, or the package's own error of the part."""
    check_options(config)
    check_output_folder(config)
    checkpoint = checkpoint or read_checkpoint_info(config)
    rules = rules_for_run(config, checkpoint)
    problems = check_rows(config, rules)
    if not config.new_run:
        refuse_differences(config, {"config": settings_of(config)}, read_run(config.output))
    return CheckedRun(
        checkpoint=checkpoint,
        rules=rules,
        schema=read_schema(config.manifest),
        duplicates=frozenset(each.id for each in problems if each.column == "id" and each.id is not None),
    )


def rules_for_run(config: RunConfig, checkpoint: CheckpointInfo) -> Rules:
    """Return the rules that the rows of a run must follow."""
    return Rules(
        task=config.task,
        sampler_name=canonical_name,
        loras=tuple(name for name, _ in config.loras),
        needs_image=checkpoint.edits_images,
        size_multiple=checkpoint.downsample_factor,
    )


def check_options(config: RunConfig) -> None:
    """RunError if an option has a value that no run can have."""
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
    if config.defaults.sampler is not None:
        try:
            canonical_name(config.defaults.sampler)
        except ValueError as error:
            raise RunError(f"--{error}") from None
    loras = [name for name, _ in config.loras]
    _refuse_repeated("--lora", loras)
    _refuse_repeated("--embedding", [name.lower() for name, _ in config.embeddings])
    try:
        adapter_weights(config.defaults.use_loras, loras)
    except ValueError as error:
        raise RunError(f"--use-lora: {error}") from None
    if len(set(config.labels)) < len(config.labels):
        raise RunError("a label is given more than once; give each once")
    if config.task == "classify" and len(config.labels) < 2:
        raise RunError(f"{len(config.labels)} labels are too few to choose from; give two or more")
    if "{}" not in config.template:
        raise RunError(f"template is {config.template!r}; it must hold {{}}, which each label replaces")


def _refuse_repeated(flag: str, names: Sequence[str]) -> None:
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RunError(f"{flag} gives the name {repeated[0]!r} more than once; give each a name of its own")


def check_output_folder(config: RunConfig) -> None:
    """RunError if a run cannot write to its output."""
    if not config.output:
        raise RunError("output is empty; give a folder, or use build_processor to write no files")
    if config.output.startswith("hf://"):
        raise RunError("the output is at hf://, where each file is a commit; write elsewhere and upload the result")
    if storage.exists(config.output) and not storage.is_folder(config.output):
        raise RunError(f"{storage.redact_url(config.output)}: is a file; the output is a folder")
    _refuse_overlap(config.manifest, config.output)


def _refuse_overlap(manifest: str, output: str) -> None:
    """RunError if a run would read what it writes, or delete what it reads."""
    shown = storage.redact_url(output)
    for folder in (output, *(storage.join(output, name) for name in _OUTPUT_FOLDERS)):
        if storage.is_below(folder, manifest):
            raise RunError(f"{shown}: the output lies in the manifest's folder, which is read again; give one outside")
        if folder != output and storage.is_below(manifest, folder):
            raise RunError(
                f"{storage.redact_url(manifest)}: the manifest lies in {storage.redact_url(folder)}, where this run "
                "writes; move it, or give another output"
            )


def check_rows(config: RunConfig, rules: Rules) -> list[Problem]:
    """Return the problems of invalid rows if the run may skip these rows, else raise InvalidManifestError."""
    problems = list(validate(config.manifest, rules, limit=config.limit))
    only_rows = all(problem.row is not None for problem in problems)
    if not problems or (config.skip_invalid and only_rows):
        return problems
    listed = "; ".join(str(problem) for problem in problems[:_LISTED_PROBLEMS])
    more = f"; and {len(problems) - _LISTED_PROBLEMS:,} more" if len(problems) > _LISTED_PROBLEMS else ""
    hint = " (--skip-invalid runs the valid rows)" if only_rows else ""
    raise InvalidManifestError(f"{storage.redact_url(config.manifest)}: {listed}{more}{hint}", problems)
