"""Reading: files, folders, buckets, outputs of runs, fingerprints."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import ManifestError
from pipeline.manifest.read import count_rows, fingerprint, read_batches, read_schema
from pipeline.manifest.rules import Rules
from pipeline.manifest.validate import validate
from tests.sample_manifests import RULES, VALID_ROW, messages, write_manifest


def test_a_path_that_is_not_a_manifest_gives_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na cat\n")
    (tmp_path / "folder").mkdir()
    damaged = Path(write_manifest(tmp_path / "damaged.parquet", [{**VALID_ROW, "id": f"cat-{n}"} for n in range(100)]))
    content = bytearray(damaged.read_bytes())
    content[4:400] = bytes(396)
    damaged.write_bytes(content)
    reasons = {
        "m.csv": "not a Parquet file; `latentmill manifest build` makes one",
        "absent.parquet": "there is no such file or folder",
        "folder": "the folder contains no .parquet file|there is no such",
        "damaged.parquet": "the file is damaged",
    }
    for name, reason in reasons.items():
        with pytest.raises(ManifestError, match=reason) as caught:
            list(validate(str(tmp_path / name), RULES))
        assert "\n" not in str(caught.value)


def test_a_manifest_in_a_bucket_is_read_like_a_local_one(s3_bucket: str, tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.parquet", [VALID_ROW, {**VALID_ROW, "id": "cat-2", "width": 7}])
    storage.write_bytes(f"{s3_bucket}/m/rows.parquet", Path(path).read_bytes())
    for url in (f"{s3_bucket}/m", f"{s3_bucket}/m/rows.parquet"):
        assert messages(url) == messages(path)
        assert fingerprint(url) == fingerprint(path)
    with pytest.raises(ManifestError, match="there is no such file or folder"):
        read_schema(f"{s3_bucket}/absent.parquet")


def test_the_fingerprint_changes_with_the_rows(tmp_path: Path) -> None:
    first = fingerprint(write_manifest(tmp_path / "a.parquet", [VALID_ROW]))
    assert first == fingerprint(write_manifest(tmp_path / "b.parquet", [VALID_ROW]))
    assert first != fingerprint(write_manifest(tmp_path / "c.parquet", [{**VALID_ROW, "seed": 1}]))


def test_the_output_of_a_finished_run_is_read_without_the_record_of_its_run(tmp_path: Path) -> None:
    rows = {"id": ["a"], "image": [{"bytes": b"x", "path": "a.png"}], "prompt": ["cat"], "seed": [4], "shelf": ["top"]}
    record = {"num_inference_steps": [30], "sampler": ["ddim"], "sha256": ["0"], "task": ["generate"], "width": [64]}
    for folder in ("data", "ledger", "failed"):
        (tmp_path / "out" / folder).mkdir(parents=True)
        pq.write_table(
            pa.table(rows | record if folder == "data" else {"id": ["b"]}), tmp_path / "out" / folder / "k.parquet"
        )
    (tmp_path / "out" / "run.json").write_text('{"status": "finished"}')
    path = str(tmp_path / "out")
    assert read_schema(path).names == list(rows)
    assert [batch.schema.names for batch in read_batches(path)] == [list(rows)]
    assert count_rows(path) == 1
    assert list(validate(path, Rules(task="upscale"))) == []
    (tmp_path / "out" / "run.json").write_text('{"status": "stopped"}')
    with pytest.raises(ManifestError, match="the run of this output has not finished"):
        read_schema(path)
