"""What a run is about to do; what can be wrong with it is said here, before a cluster or a model is asked for."""

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import manifest, storage
from pipeline.buckets import HashBuckets, Shard, among, hashes_of
from pipeline.changed_rows import changed_rows
from pipeline.checkpoint_files import local_checkpoint
from pipeline.config import SCALES, RunConfig
from pipeline.diffusion.samplers import SAMPLERS
from pipeline.lease import Lease
from pipeline.ledger import Committed, delete_uncommitted, forget_all, forget_failed, read_ledger
from pipeline.manifest_rules import Problem, Rules
from pipeline.models.clip_folder import check_clip, clip_side
from pipeline.models.configs import CheckpointError, checked_form
from pipeline.provenance import now, software_versions

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


class RunError(ValueError):
    """Why a run cannot start or did not finish: one line for a person."""


class InvalidManifestError(RunError):
    """A manifest with invalid rows; `problems` are all of them."""

    def __init__(self, message: str, problems: list[Problem]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """What is known of a checkpoint without loading it."""

    folder: Path | None = None
    clip: Path | None = None
    """The folder of the CLIP that new pictures are scored by, if they are."""
    size_bytes: int = 0
    """Of both."""
    downsample_factor: int = 8
    native_pixels: int = 512 * 512
    square: int | None = None
    """Pixels of the side of the square that pictures are cut to, where it takes them in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """A run that can start: what there is, what is done, what is to be done."""

    run_id: str
    attempt: int
    rules: Rules
    schema: pa.Schema
    duplicates: frozenset[str]
    committed: Committed
    fingerprint: str
    """Of the manifest."""
    rows: int
    """Of the manifest: those that this run makes, all in all."""
    todo: int
    checkpoint: CheckpointFacts

    @property
    def already_done(self) -> int:
        return self.rows - self.todo

    def rows_a_block(self, config: RunConfig, actors: int) -> int:
        """Rows of one part of the output: enough to fill the lanes, few enough for memory and to share among actors."""
        if config.task == "upscale":
            return 1  # its pictures are of any size
        size = (config.defaults.width or 0) * (config.defaults.height or 0)
        most = min(_MAX_BLOCK_ROWS, _BLOCK_BYTES // (3 * max(size, self.checkpoint.native_pixels)))
        return max(config.lanes, min(most, math.ceil(self.todo / (_BLOCKS_AN_ACTOR * actors))), 1)

    def rows_a_file(self, config: RunConfig, actors: int) -> int:
        """Rows that make a file of about _FILE_BYTES, if the run is long enough: a kill costs a few files at most."""
        size = (config.defaults.width or 0) * (config.defaults.height or 0)
        picture = max(size, self.checkpoint.native_pixels) * _BYTES_A_PIXEL[config.format]
        most = max(1, int(_FILE_BYTES // picture))
        most = min(most, _MAX_FILE_ROWS) if config.task == "upscale" else most
        return max(1, min(most, math.ceil(self.todo / (_FILES_AN_ACTOR * actors))))


def plan_run(config: RunConfig, lease: Lease, checkpoint: CheckpointFacts | None = None) -> RunPlan:
    """Check a run, take the lease on its output, look at what is done; RunError says in one line why it cannot start.

    Deletes what a killed run left in the output without a ledger entry."""
    try:
        _check(config)
        facts = checkpoint or facts_of(config)
        rules = Rules(task=config.task, samplers=tuple(SAMPLERS), size_multiple=facts.downsample_factor)
        schema = manifest.read_schema(config.manifest)
        problems = _problems(config, rules)
        earlier = {} if config.new_run else read_run(config.output)
        refuse_differences(config, {"config": settings_of(config)}, earlier)
        lease.acquire()
        if config.new_run:
            forget_all(config.output)
        if config.retry_failed:
            forget_failed(config.output)
        committed = read_ledger(config.output)
        fingerprint = manifest.fingerprint(config.manifest)
        _refuse_changed_rows(config, committed, fingerprint, earlier)
        delete_uncommitted(config.output, committed)
        rows = count_rows(config)
        return RunPlan(
            run_id=str(earlier.get("run_id") or uuid.uuid4().hex),
            attempt=int(earlier.get("attempt") or 0) + 1,
            rules=rules,
            schema=schema,
            duplicates=frozenset(p.id for p in problems if p.column == "id" and p.id is not None),
            committed=committed,
            fingerprint=fingerprint,
            rows=rows,
            todo=rows if not committed.hashes.count else _count_missing(config, committed),
            checkpoint=facts,
        )
    except (storage.StorageError, manifest.ManifestError, CheckpointError) as error:
        raise RunError(str(error)) from error


def read_run(output: str) -> dict[str, Any]:
    """run.json of an output, empty if there is none; RunError if it is damaged."""
    url = storage.join(output, "run.json")
    if not storage.exists(url):
        return {}
    try:
        return json.loads(storage.read_bytes(url))
    except ValueError as error:
        raise RunError(f"{storage.shown(url)}: is no JSON; delete it, or give another OUTPUT") from error


def write_run(config: RunConfig, plan: RunPlan, figures: dict[str, Any]) -> None:
    """Write run.json: what the run is, without secrets, and what is known of how it goes."""
    earlier = read_run(config.output)
    earlier = earlier if earlier.get("run_id") == plan.run_id else {}
    run = {
        "run_id": plan.run_id,
        "attempt": plan.attempt,
        "started_at": earlier.get("started_at") or now().isoformat(timespec="seconds"),
        "task": config.task,
        "config": settings_of(config),
        "manifest": earlier.get("manifest") or {},
        "software": software_versions(),
        **figures,
    }
    text = json.dumps({**earlier, **run}, indent=2, ensure_ascii=False)
    storage.write_bytes(storage.join(config.output, "run.json"), text.encode() + b"\n")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The run's options as run.json has them: without what is secret, or of one attempt alone."""
    urls = ("manifest", "output", "model", "clip_score")
    settings = asdict(config) | {name: storage.shown(url) for name in urls if (url := getattr(config, name))}
    settings["allow_roots"] = [storage.shown(root) for root in config.allow_roots]
    for name in ("address", "retry_failed", "new_run", "patience", "grace", "call_limit"):
        del settings[name]
    return json.loads(json.dumps(settings))


def refuse_differences(config: RunConfig, now: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """RunError if the pictures of this attempt would be others than those that the output holds already."""
    same = ("task", "defaults", "seed", "lanes", "threads", "format", "quality", "store", "shard")
    same += ("clip_score", "labels", "template")
    options, was = now.get("config", {}), earlier.get("config", {})
    differences = [_difference(name, options[name], was[name]) for name in same if name in options and name in was]
    for name, words in (("model", "the model's weights"), ("clip", "the CLIP's weights")):
        digests = [about.get(name, {}).get("weights_sha256") for about in (now, earlier)]
        if None not in digests:
            differences.append(_difference(words, *digests))
    for name in ("dtype", "device"):
        if name in now and name in earlier:
            differences.append(_difference(name, now[name], earlier[name]))
    found = "; ".join(difference for difference in differences if difference)
    if found:
        output = storage.shown(config.output)
        raise RunError(f"{output} holds a run that differs: {found}; give another OUTPUT, or --new-run to begin anew")


def _difference(name: str, now: Any, earlier: Any) -> str:
    if isinstance(now, dict) and isinstance(earlier, dict):
        parts = [_difference(inner, now[inner], earlier[inner]) for inner in now if inner in earlier]
        return "; ".join(part for part in parts if part)
    return "" if now == earlier else f"{name} is {now}, was {earlier}"


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
        raise RunError(f"{storage.shown(config.output)}: is a file; the output is a folder")


def facts_of(config: RunConfig) -> CheckpointFacts:
    """What the checkpoint that a run names says of itself; CheckpointError if it cannot be used for the task."""
    folder = local_checkpoint(config.model)
    clip = None if config.clip_score is None else local_checkpoint(config.clip_score)
    if clip is not None:
        check_clip(clip)
    size = sum(path.stat().st_size for part in (folder, clip) if part for path in part.rglob("*.safetensors"))
    if config.task == "classify":
        check_clip(folder)
        side = clip_side(folder)
        return CheckpointFacts(folder=folder, size_bytes=size, native_pixels=side**2, square=side)
    try:
        autoencoder = folder / ("vqvae" if (folder / "vqvae").is_dir() else "vae")
        latents = json.loads((autoencoder / "config.json").read_text())
        unet = json.loads((folder / "unet" / "config.json").read_text())
        channels = unet["in_channels"], latents.get("vq_embed_dim") or latents["latent_channels"]
        side, factor = unet["sample_size"], 2 ** (len(latents["block_out_channels"]) - 1)
        native = (side[0] * side[1] if isinstance(side, list) else side * side) * factor**2
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: vae/config.json and unet/config.json must give their channels and sample_size ({error})"
        ) from error
    checked_form(folder.name, config.task, *channels)
    return CheckpointFacts(folder=folder, clip=clip, size_bytes=size, downsample_factor=factor, native_pixels=native)


def _problems(config: RunConfig, rules: Rules) -> list[Problem]:
    """The invalid rows, where the run may skip them; else InvalidManifestError."""
    problems = list(manifest.validate(config.manifest, rules, limit=config.limit))
    if not problems or (config.skip_invalid and all(problem.row is not None for problem in problems)):
        return problems
    shown = "; ".join(str(problem) for problem in problems[:_SHOWN_PROBLEMS])
    more = f"; and {len(problems) - _SHOWN_PROBLEMS:,} more" if len(problems) > _SHOWN_PROBLEMS else ""
    hint = " (--skip-invalid runs the rest)" if all(problem.row is not None for problem in problems) else ""
    message = f"{storage.shown(config.manifest)}: {shown}{more}{hint}"
    raise InvalidManifestError(message, problems)


def ids_of(manifest_url: str, limit: int | None = None, shard: Shard | None = None) -> HashBuckets:
    """The ids of a manifest, or of its first `limit` rows, or those of one shard of these."""
    asked = HashBuckets()
    for batch in manifest.limited(manifest.read_batches(manifest_url, ["id"]), limit):
        hashes = hashes_of(row_id for row_id in batch["id"].to_pylist() if row_id is not None)
        asked.add_hashes(hashes if shard is None else hashes[shard.has(hashes)])
    return asked


def _refuse_changed_rows(config: RunConfig, committed: Committed, fingerprint: str, earlier: Mapping[str, Any]) -> None:
    """RunError if rows that are done are others now, where the manifest is not the file that it was."""
    before = earlier.get("manifest", {}).get("sha256")
    if before is None or not committed.hashes.count or fingerprint == before:
        return
    if changed := changed_rows(config.manifest, config.limit, committed):
        raise RunError(
            f"{storage.shown(config.manifest)}: {changed.count:,} rows that are done have changed since, the first is "
            f"{changed.first!r}; give another OUTPUT, or --new-run to begin anew"
        )


def count_rows(config: RunConfig) -> int:
    """The rows that a run makes of its manifest: all, the first `limit`, or its shard's of these."""
    if config.shard is None:
        return min(manifest.count_rows(config.manifest), config.limit or 2**63)
    batches = manifest.limited(manifest.read_batches(config.manifest, ["id"]), config.limit)
    return sum(int(np.count_nonzero(in_shard(batch, config.shard))) for batch in batches)


def in_shard(rows: pa.RecordBatch | pa.Table, shard: Shard) -> NDArray[np.bool_]:
    """For each row, whether it falls to the shard; those without an id go together."""
    return shard.has(hashes_of(row_id or "" for row_id in rows["id"].to_pylist()))


def _count_missing(config: RunConfig, committed: Committed) -> int:
    """Memory: one bucket of the manifest's and one of the ledger's ids."""
    with ids_of(config.manifest, config.limit, config.shard) as asked:
        return sum(int(np.count_nonzero(~among(*pair))) for pair in zip(asked, committed.hashes, strict=True))
