"""Column names and Arrow schemas of manifests and outputs: their only home."""

from typing import Final

import pyarrow as pa

MANIFEST_VERSION: Final = 1

IMAGE_TYPE: Final = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
"""The Hugging Face `Image` convention, wide enough for blocks of over 2 GiB."""

PARAMETERS: Final[dict[str, pa.DataType]] = {
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "seed": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "num_inference_steps": pa.int32(),
    "guidance_scale": pa.float64(),
    "guidance_rescale": pa.float64(),
    "sampler": pa.string(),
    "eta": pa.float64(),
    "strength": pa.float64(),
    "noise_level": pa.int32(),
}
"""What a manifest may say of how one row's picture is made, and the provenance says was in force."""

SOURCES: Final = ("image", "mask")
"""Manifest columns that hold pictures: a string URL, binary, or `struct<bytes, path>`."""

WORKING: Final = ("__pixels", "__row", "__tags", "__image", "__mask")
"""Columns between two stages: pixels and tags of the pictures, the manifest's row, its decoded SOURCES."""

OUTPUT: Final[dict[str, pa.DataType]] = {
    "id": pa.string(),
    "image": IMAGE_TYPE,
    "width": pa.int32(),
    "height": pa.int32(),
    "format": pa.string(),
    "sha256": pa.string(),
}

PROVENANCE: Final[dict[str, pa.DataType]] = {
    **{name: kind for name, kind in PARAMETERS.items() if name not in ("width", "height")},
    "upscale_factor": pa.int32(),
    "tile_size": pa.int32(),
    "tile_overlap": pa.int32(),
    "colors_corrected": pa.bool_(),
    "mask_invert": pa.bool_(),
    "mask_dilate": pa.int32(),
    "mask_feather": pa.int32(),
    "task": pa.string(),
    "model": pa.string(),
    "weights_sha256": pa.string(),
    "source_sha256": pa.string(),
    "mask_sha256": pa.string(),
    "software": pa.string(),
    "device": pa.string(),
    "dtype": pa.string(),
    "lanes": pa.int32(),
    "threads": pa.int32(),
    "run_id": pa.string(),
    "created_at": pa.timestamp("us", tz="UTC"),
    "seconds": pa.float64(),
    "clip_score": pa.float64(),
}
"""How a picture was made; `clip_score`, where the run was asked for it, is how well it fits its prompt."""

CLASSIFIED: Final[dict[str, pa.DataType]] = {
    "id": pa.string(),
    "label": pa.string(),
    "label_score": pa.float64(),
    "label_scores": pa.list_(pa.float64()),
    **{
        name: PROVENANCE[name]
        for name in ("task", "model", "weights_sha256", "source_sha256", "software", "device", "dtype", "lanes")
    },
    **{name: PROVENANCE[name] for name in ("threads", "run_id", "created_at")},
}
"""A picture's most probable label and its probability, those of all labels in the run's order, and the provenance."""

FAILED: Final[dict[str, pa.DataType]] = {
    "id": pa.string(),
    "error_type": pa.string(),
    "error_message": pa.string(),
    "row": pa.string(),
}
"""A row that could not be made: `row` is the manifest's row as JSON (binary columns by their size)."""

LEDGER: Final[dict[str, pa.DataType]] = {
    "id": pa.string(),
    "status": pa.string(),
    "file": pa.string(),
    "row": pa.binary(16),
}
"""`row` is a hash of the manifest's row, with which a changed one is found."""

MAX_ROW_GROUP_ROWS: Final = 100


DATA, FAILED_FOLDER, LEDGER_FOLDER = "data", "failed", "ledger"
OK, FAILED_STATUS = "ok", "failed"

FILES: Final = "files"
"""The folder of an output that holds pictures as files."""
