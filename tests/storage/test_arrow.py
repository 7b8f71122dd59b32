"""pyarrow reads from object storage through the same endpoint."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage


def test_pyarrow_reads_through_the_same_endpoint(s3_bucket: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a"]}), sink)
    storage.write_bytes(f"{s3_bucket}/m/x.parquet", sink.getvalue().to_pybytes())
    filesystem, path = storage.arrow_filesystem(f"{s3_bucket}/m/x.parquet")
    assert pq.read_table(path, filesystem=filesystem).to_pydict() == {"id": ["a"]}
