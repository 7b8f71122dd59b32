"""A small valid manifest for tests, and the messages that its validation gives."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.diffusion.catalog import canonical_name
from pipeline.manifest.build import build
from pipeline.manifest.rules import Rules
from pipeline.manifest.sources import Source
from pipeline.manifest.validate import validate

RULES = Rules(sampler_name=canonical_name)
VALID_ROW = {
    "id": "cat-1",
    "prompt": "a cat",
    "width": 64,
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "sampler": "ddim",
}
TYPES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("width", pa.int32()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("sampler", pa.string()),
        ("eta", pa.float32()),
        ("strength", pa.float64()),
        ("image", pa.string()),
    ]
)


def write_manifest(path: Path, rows: list[dict[str, Any]], types: pa.Schema = TYPES) -> str:
    """Write rows as a Parquet file and return its path."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=types), path, row_group_size=3)
    return str(path)


def messages(path: str, rules: Rules = RULES, limit: int | None = None) -> list[str]:
    """Return the messages of all problems of a manifest."""
    return [str(problem) for problem in validate(path, rules, limit=limit)]


def build_rows(source: Source, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Build a manifest from a source and return its rows."""
    path = str(folder / "m.parquet")
    count = build(source, path, **options)
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == count
    assert len({row["id"] for row in rows}) == count
    return rows
