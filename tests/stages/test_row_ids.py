"""The ids of rows: text, whatever the Dataset of a processor has."""

import pyarrow as pa
import pytest

from pipeline.manifest.columns import schema_problems
from pipeline.manifest.rules import Rules
from pipeline.stages.rows import row_ids


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.string(), pa.large_string()])
def test_integer_ids_are_their_digits(kind: pa.DataType) -> None:
    table = pa.table({"id": pa.array(["7", None, "12"]).cast(kind), "prompt": ["a", "b", "c"]})
    first, unnamed, last = row_ids(table)
    assert (first, last) == ("7", "12") and unnamed.startswith("no-id-")
    assert schema_problems(table.schema, Rules()) == []
