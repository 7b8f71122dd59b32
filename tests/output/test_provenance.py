"""The provenance columns: complete, typed, and correct for each row."""

from datetime import UTC, datetime

import pyarrow as pa

from pipeline.output.provenance import PACKAGES, ActorProvenance, provenance_columns, software_versions, utc_now
from pipeline.schema import ACTOR_COLUMNS

ACTOR = ActorProvenance(
    task="generate",
    model="tiny",
    weights_sha256="ab",
    software=software_versions(),
    device="cpu",
    dtype="float32",
    lanes=8,
    threads=1,
    run_id="r",
)


def test_every_column_of_the_schema_has_its_type() -> None:
    columns = provenance_columns(ACTOR, [{"prompt": "x", "seed": 7, "created_at": utc_now()}, {}])
    assert {name: column.type for name, column in columns.items()} == ACTOR_COLUMNS
    table = pa.table(columns).to_pylist()
    assert (table[0]["prompt"], table[0]["seed"], table[0]["lanes"], table[0]["model"]) == ("x", 7, 8, "tiny")
    assert table[1]["prompt"] is None and table[1]["seed"] is None
    assert abs((datetime.now(UTC) - table[0]["created_at"]).total_seconds()) < 60


def test_software_lists_the_packages_that_affect_the_bytes() -> None:
    versions = software_versions()
    assert all(f"{name} " in versions for name in (*PACKAGES, "Python"))
    assert "unknown" not in versions
