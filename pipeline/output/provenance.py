"""The columns that say how a picture was made, so that anyone can make it again and compare the sha256."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import pyarrow as pa

from pipeline.schema import PARAMETERS, PROVENANCE

PACKAGES: Final = ("latentmill", "torch", "transformers", "pillow", "numpy")
"""Whose version can change a picture's bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What every row of one actor shares."""

    task: str
    model: str
    weights_sha256: str
    software: str
    device: str
    dtype: str
    lanes: int
    threads: int
    run_id: str


def software_versions() -> str:
    """The versions that decide a picture's bytes, in one line: `latentmill 0.1.0, torch 2.13.0, ..., Python 3.11.2`."""
    return ", ".join([*(f"{name} {_version(name)}" for name in PACKAGES), f"Python {platform.python_version()}"])


def now() -> datetime:
    return datetime.now(UTC)


def provenance_columns(origin: Origin, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    """PROVENANCE's columns, and `width` and `height`: `rows` hold what differs from row to row, null where absent.

    A row that failed has no parameters, and so nothing that was in force; what the actor is stays true of it."""
    shared = asdict(origin)
    columns = {}
    for name, kind in {**PARAMETERS, **PROVENANCE}.items():
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
