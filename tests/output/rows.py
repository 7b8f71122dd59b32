"""Rows as EncodeImages returns them, and the sink that writes them."""

import json
from typing import Any

import pyarrow as pa

from pipeline.output.ledger import find_orphans, read_ledger
from pipeline.output.sink import LedgerDatasink
from pipeline.schema import IMAGE_TYPE, ROW
from pipeline.stages.rows import ERRORS, output_schema

MANIFEST = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("shelf", pa.int32())])


def encoded_rows(ids: list[str], failed: tuple[str, ...] = (), size: int = 10) -> pa.Table:
    """Return rows with images of `size` zero bytes; those in `failed` have an error instead."""
    columns: dict[str, Any] = {field.name: pa.nulls(len(ids), field.type) for field in output_schema(MANIFEST)}
    content = bytes(size)
    images = [None if row_id in failed else {"bytes": content, "path": f"{row_id}.png"} for row_id in ids]
    columns |= {"id": pa.array(ids, pa.string()), "image": pa.array(images, IMAGE_TYPE)}
    columns[ROW] = pa.array([json.dumps({"id": row_id}) for row_id in ids])
    for name, kind in ERRORS.items():
        columns[name] = pa.array([f"{name} of {row_id}" if row_id in failed else None for row_id in ids], kind)
    return pa.table(columns)


def datasink(output: str) -> LedgerDatasink:
    return LedgerDatasink(output, MANIFEST, lambda amounts: None)


def orphans_of(output: str) -> list[str]:
    ledger = read_ledger(output)
    return find_orphans(output, ledger.listed, ledger.files)
