"""The column names and Arrow schemas of manifests and outputs."""

from typing import Final

import pyarrow as pa

MANIFEST_VERSION: Final = 1

IMAGE_TYPE: Final = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
"""The Hugging Face `Image` convention, with 64-bit offsets for blocks of over 2 GiB."""

PARAMETERS: Final[dict[str, pa.DataType]] = {
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "seed": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "num_inference_steps": pa.int32(),
    "guidance_scale": pa.float64(),
    "image_guidance_scale": pa.float64(),
    "guidance_rescale": pa.float64(),
    "sampler": pa.string(),
    "eta": pa.float64(),
    "strength": pa.float64(),
    "noise_level": pa.int32(),
    "clip_skip": pa.int32(),
    "loras": pa.list_(pa.struct([("name", pa.string()), ("weight", pa.float64())])),
}
"""The parameters of a row's image: columns that a manifest may have, and that the provenance records."""


def seed_type(columns: pa.Schema) -> pa.DataType:
    """Return the type of an output's seeds: int64, or uint64 where the manifest's are, up to 2**64 - 1."""
    kind = columns.field("seed").type if "seed" in columns.names else PARAMETERS["seed"]
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind if pa.types.is_uint64(kind) else PARAMETERS["seed"]


SOURCES: Final = ("image", "mask")
"""Manifest columns that hold images: a string URL, binary, or `struct<bytes, path>`."""

ROW: Final = "__row"
"""The manifest's row as JSON, for `failed/` and for the ledger's hash of the row."""
PIXELS: Final = "__pixels"
"""The row's image as raw uint8 (height, width, C), between the network and the encoder."""
SOURCE_METADATA: Final = "__source_metadata"
"""Color profile, EXIF, resolution and path of the row's source, for the encoder."""
DECODED: Final = {"image": "__image", "mask": "__mask"}
"""The column of the decoded pixels of each of SOURCES."""
WORKING: Final = (ROW, PIXELS, SOURCE_METADATA, *DECODED.values())
"""All columns that stand only between two stages."""

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
    "prompt_syntax": pa.string(),
    "original_size": pa.list_(pa.int32()),
    "crop": pa.list_(pa.int32()),
    "target_size": pa.list_(pa.int32()),
    "aesthetic_score": pa.float64(),
    "negative_aesthetic_score": pa.float64(),
    "mask_invert": pa.bool_(),
    "mask_dilate": pa.int32(),
    "mask_feather": pa.int32(),
    "task": pa.string(),
    "model": pa.string(),
    "weights_sha256": pa.string(),
    "vae_sha256": pa.string(),
    "embeddings": pa.list_(pa.struct([("name", pa.string()), ("sha256", pa.string())])),
    "lora_sha256": pa.list_(pa.string()),
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
"""The provenance of an image. `clip_score` is null unless the run scores images against their prompts."""

ACTOR_COLUMNS: Final[dict[str, pa.DataType]] = {**PARAMETERS, **PROVENANCE, "seed": pa.uint64()}
"""PARAMETERS and PROVENANCE between the network and the encoder, which gives seeds the type of the output's."""

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
"""An image's most probable label and its probability, the probabilities of all labels in order, and provenance."""

FAILED: Final[dict[str, pa.DataType]] = {
    "id": pa.string(),
    "error_type": pa.string(),
    "error_message": pa.string(),
    "row": pa.string(),
}
"""A failed row; `row` is the manifest's row as JSON, in which the size stands for a binary value."""

LEDGER: Final[dict[str, pa.DataType]] = {
    "id": pa.string(),
    "status": pa.string(),
    "file": pa.string(),
    "row": pa.binary(16),
}
"""`row` is a hash of the manifest's row, by which a resumed run detects a changed row."""

MAX_ROW_GROUP_ROWS: Final = 100


DATA, FAILED_FOLDER, LEDGER_FOLDER = "data", "failed", "ledger"
OK, FAILED_STATUS = "ok", "failed"

FILES: Final = "files"
"""The folder of an output that holds images as files."""
