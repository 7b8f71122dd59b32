"""The plan of a run: how many rows it processes, and how large its blocks and files are."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.inference.checkpoint_info import CheckpointInfo
from pipeline.manifest.identity import in_shard
from pipeline.manifest.read import count_rows, manifest_slices, read_batches, take_rows
from pipeline.output.id_sets import isin_sorted, read_manifest_ids
from pipeline.output.ledger import LedgerState
from pipeline.run.check import CheckedRun
from pipeline.run.state import OutputState
from pipeline.schema import SOURCES

_BLOCK_BYTES: Final = 64 * 2**20
_MAX_BLOCK_ROWS: Final = 1024
_UNKNOWN_SOURCE_PIXELS: Final = 8 * 10**6
"""Assumed for images behind URLs: with their masks, two photographs of up to 12 megapixels are about _BLOCK_BYTES."""
_DECODED_BYTES_PER_BYTE: Final = 10
"""Decoded bytes per byte of an image file: of a JPEG of good quality."""
_LEAST_EMBEDDED_BYTES: Final = 1024
"""Bytes of a row below which its image may be a URL, or a file that compresses well, so that its size is unknown."""
_BLOCKS_PER_ACTOR: Final = 32
"""The fewest blocks of a run per actor, if they fill the lanes: at the end, an actor waits for one block at most."""
_FILE_BYTES: Final = 256 * 2**20
_BYTES_PER_PIXEL: Final = {"png": 1.5, "webp": 0.4, "jpeg": 0.4}
_MAX_UPSCALED_ROWS_PER_FILE: Final = 16
"""Upscaled images may be of any size."""
_FILES_PER_ACTOR: Final = 16
"""The fewest files of a run per actor, so that a short run commits often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """The plan of a run that has passed all checks."""

    config: RunConfig
    checked: CheckedRun
    state: OutputState
    rows: int
    """The rows of the manifest, or of its first `limit` rows or its shard."""
    todo: int
    """Those that are not committed yet."""
    source_bytes: int
    """The decoded bytes of a row's source images, as `source_bytes` estimates them."""

    @property
    def already_done(self) -> int:
        return self.rows - self.todo

    def rows_per_block(self, actors: int) -> int:
        """Return the rows of a block: enough to fill the lanes, few enough for memory and to share among actors."""
        share = math.ceil(self.todo / (_BLOCKS_PER_ACTOR * actors))
        most = max_block_rows(self.config, self.checked.checkpoint, self.source_bytes)
        return max(1, min(most, max(self.config.lanes, share)))

    def rows_per_file(self, actors: int) -> int:
        """Return the rows of a file of about _FILE_BYTES, or fewer in a short run: a kill loses a few files at most."""
        most = max(1, int(_FILE_BYTES // (self._image_pixels() * _BYTES_PER_PIXEL[self.config.format])))
        most = min(most, _MAX_UPSCALED_ROWS_PER_FILE) if self.config.task == "upscale" else most
        return max(1, min(most, math.ceil(self.todo / (_FILES_PER_ACTOR * actors))))

    def _image_pixels(self) -> int:
        return max(image_pixels(self.config, self.checked.checkpoint), self.source_bytes // 3)


def plan_run(config: RunConfig, checked: CheckedRun, state: OutputState) -> RunPlan:
    """Count the rows of a run and those that its output lacks."""
    rows = count_run_rows(config)
    todo = rows if not state.ledger.id_hashes.count else _count_missing(config, state.ledger)
    slices = manifest_slices(config.manifest)
    row_bytes = sum(part.size_bytes for part in slices) // max(1, sum(part.rows for part in slices))
    return RunPlan(
        config=config,
        checked=checked,
        state=state,
        rows=rows,
        todo=todo,
        source_bytes=source_bytes(config, checked.schema, row_bytes),
    )


def max_block_rows(config: RunConfig, checkpoint: CheckpointInfo, source_bytes: int) -> int:
    """Return the most rows of a block that keep it at about _BLOCK_BYTES; 1 for upscaling, to images of any size."""
    if config.task == "upscale":
        return 1
    return max(1, min(_MAX_BLOCK_ROWS, _BLOCK_BYTES // (3 * image_pixels(config, checkpoint) + source_bytes)))


def source_bytes(config: RunConfig, schema: pa.Schema, row_bytes: int = 0) -> int:
    """Estimate the decoded bytes of a row's source images; `row_bytes` are those of a row of the manifest's files.

    Labels need none: their images are cropped to the network's size."""
    names = [] if config.task == "classify" else [name for name in SOURCES if name in schema.names]
    total = 0
    for name in names:
        is_url = pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type)
        channels = 3 if name == "image" else 1
        if is_url or row_bytes < _LEAST_EMBEDDED_BYTES:
            total += channels * _UNKNOWN_SOURCE_PIXELS
        else:
            total += _DECODED_BYTES_PER_BYTE * row_bytes // len(names)
    return total


def image_pixels(config: RunConfig, checkpoint: CheckpointInfo) -> int:
    """Return the expected pixels of a run's images."""
    return max((config.defaults.width or 0) * (config.defaults.height or 0), checkpoint.native_pixels)


def count_run_rows(config: RunConfig) -> int:
    """Return the number of a run's rows: those of the manifest, of its first `limit` rows, or of its shard of these."""
    if config.shard is None:
        return min(count_rows(config.manifest), config.limit or 2**63)
    batches = take_rows(read_batches(config.manifest, ["id"]), config.limit)
    return sum(int(np.count_nonzero(in_shard(batch, config.shard))) for batch in batches)


def _count_missing(config: RunConfig, ledger: LedgerState) -> int:
    """Needs memory for one bucket of the manifest's ids and one of the ledger's."""
    with read_manifest_ids(config.manifest, config.limit, config.shard) as ids:
        return sum(int(np.count_nonzero(~isin_sorted(*pair))) for pair in zip(ids, ledger.id_hashes, strict=True))
