"""Images as files of an output: their paths, their rows, and that no source is overwritten."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from PIL import Image

from pipeline.config import RunConfig
from pipeline.images.naming import stored_name
from pipeline.manifest.rules import Rules
from pipeline.output.audit import check_output
from pipeline.output.image_files import read_image_bytes
from pipeline.output.sink import LedgerDatasink
from pipeline.report.write import write_report
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from pipeline.stages.rows import sha256_of
from tests.cheap import load_cheap

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_files_are_named_like_their_sources_and_rows_have_their_paths(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(buffer, "PNG")
    output = tmp_path / "out"
    for path in (tmp_path / "shelf" / "a.b.png", output / "files" / "c.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(buffer.getvalue())
    sources = {
        "one": {"path": "shelf/a.b.png"},
        "two": {"path": "shelf/a.b.png"},
        "embedded": {"bytes": buffer.getvalue()},
        "own": {"path": "out/files/c.png"},
    }
    (tmp_path / "m.parquet").touch()
    table = pa.table({"id": list(sources), "prompt": [""] * 4, "image": pa.array(sources.values(), IMAGE)})
    config = RunConfig(task="upscale", manifest=str(tmp_path / "m.parquet"), output=str(output), store="files")
    rows = PrepareRows(config=config, rules=Rules(task="upscale"), manifest=table.schema)(table)
    denoise = Denoise(config, "run", "cpu", lambda amounts: None, load_cheap)
    rows = EncodeImages(config=config, manifest=table.schema)(denoise(rows))
    denoise.close()
    sink = LedgerDatasink(str(output), table.schema, lambda amounts: None, store="files")
    assert sink.write([rows], None) == (3, 1)

    written = {row["id"]: row for row in pads.dataset(output / "data", format="parquet").to_table().to_pylist()}
    paths = {name: row["image"]["path"] for name, row in written.items()}
    assert len(set(paths.values())) == 3
    assert all(paths[name].startswith("files/shelf/a.b-") for name in ("one", "two"))
    assert paths["embedded"] == stored_name("embedded", None, "png")
    for row in written.values():
        assert row["image"]["bytes"] is None
        assert sha256_of((output / row["image"]["path"]).read_bytes()) == row["sha256"]
        assert read_image_bytes(str(output), row) == (output / row["image"]["path"]).read_bytes()
    (failed,) = pads.dataset(output / "failed", format="parquet").to_table().to_pylist()
    assert (failed["id"], failed["error_type"]) == ("own", "StorageError")
    assert "lies where this run writes its pictures" in failed["error_message"]
    assert (tmp_path / "shelf" / "a.b.png").read_bytes() == buffer.getvalue()
    (output / "files" / "c.png").unlink()
    assert check_output(str(output)).count == 0
    assert Path(write_report(str(output))).exists()
    (output / paths["one"]).write_bytes(b"other")
    (output / paths["two"]).unlink()
    assert check_output(str(output)).count == 2
