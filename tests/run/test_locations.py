"""Where a run's manifest and output may lie: a run never reads what it writes, nor deletes what it reads."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.run.check import check_output_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest folder `m` in the working directory, and links to it and to an output inside it."""
    (tmp_path / "m" / "sub").mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "m" / "p.parquet")
    (tmp_path / "to-m").symlink_to(tmp_path / "m")
    (tmp_path / "to-sub").symlink_to(tmp_path / "m" / "sub")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data").symlink_to(tmp_path / "m" / "sub")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(manifest: str, output: str) -> None:
    check_output_folder(RunConfig(task="generate", manifest=manifest, output=output))


@pytest.mark.parametrize(
    ("manifest", "output"),
    [
        ("m", "m"),
        ("m", "m/out"),
        ("m/", "./m/deep/er/"),
        (".", "out-2"),
        ("m", "to-m/out"),
        ("m", "to-sub"),
        ("to-m", "m/out"),
        ("m", "file://{cwd}/m/out"),
        ("file://{cwd}/m", "m//out"),
        ("{cwd}/m", "sub/../m/out"),
        ("m", "out"),
        ("s3://b/m", "s3a://b/m/out"),
        ("s3://b/m/", "s3://b/m"),
        ("memory://b/m", "memory://b/m/out"),
    ],
)
def test_an_output_in_the_manifests_folder_is_refused(
    folder: Path, manifest: str, output: str, s3_endpoint: str
) -> None:
    with pytest.raises(RunError, match="the output lies in the manifest's folder"):
        check(manifest.format(cwd=os.getcwd()), output.format(cwd=os.getcwd()))


@pytest.mark.parametrize("name", ["data/sub", "failed/m.parquet", "ledger/x.parquet", "files/m", "data/m.parquet"])
def test_a_manifest_where_the_run_deletes_files_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(RunError, match="where this run writes; move it, or give another output"):
        check(f"other/{name}", "other")


@pytest.mark.parametrize(
    ("manifest", "output"),
    [("m/p.parquet", "m/out"), ("m", "m-out"), ("m", "."), ("m/sub", "m/other"), ("s3://b/m", "s3://b/m-2")],
)
def test_an_output_beside_or_above_the_manifest_is_fine(
    folder: Path, manifest: str, output: str, s3_bucket: str
) -> None:
    bucket = storage.redact_url(s3_bucket)
    check(manifest.replace("s3://b", bucket), output.replace("s3://b", bucket))
