"""The provenance columns: with them, anyone can generate an image again and compare its sha256."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import pyarrow as pa

from pipeline.schema import ACTOR_COLUMNS

PACKAGES: Final = ("latentmill", "torch", "transformers", "pillow", "numpy")
"""Packages whose version can change an image's bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorProvenance:
    """The provenance that all rows of one actor share."""

    task: str
    model: str
    weights_sha256: str
    software: str
    device: str
    dtype: str
    lanes: int
    threads: int
    run_id: str
    vae_sha256: str | None = None
    """Of an autoencoder that replaces the checkpoint's own."""


def software_versions() -> str:
    """Return the versions that affect an image's bytes: `latentmill 0.1.0, torch 2.13.0, ..., Python 3.11.2`."""
    return ", ".join([*(f"{name} {_version(name)}" for name in PACKAGES), f"Python {platform.python_version()}"])


def utc_now() -> datetime:
    return datetime.now(UTC)


def provenance_columns(actor: ActorProvenance, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    """Return the columns of ACTOR_COLUMNS.

    `rows` have the values that differ from row to row; a missing one becomes null. A failed row has no parameters, but
    still the provenance of its actor."""
    shared = asdict(actor)
    columns = {}
    for name, kind in ACTOR_COLUMNS.items():
        if name in shared:
            columns[name] = pa.repeat(pa.scalar(shared[name], kind), len(rows))
        else:
            columns[name] = pa.array([row.get(name) for row in rows], kind)
    return columns


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
