"""Images as files of an output: their paths, their rows, and that no source is overwritten."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from PIL import Image

from pipeline.config import RunConfig
from pipeline.errors import StorageError
from pipeline.images.naming import stored_name
from pipeline.manifest.rules import Rules
from pipeline.output.audit import check_output
from pipeline.output.image_files import read_image_bytes
from pipeline.output.sink import LedgerDatasink
from pipeline.report.write import write_report
from pipeline.schema import IMAGE_TYPE
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.fetch import SourceReader
from pipeline.stages.prepare import PrepareRows
from pipeline.stages.rows import sha256_of
from pipeline.storage import AllowedRoots
from tests.cheap import load_cheap
from tests.output.rows import MANIFEST, orphans_of
from tests.output.test_audit import rows_with_images
from tests.sample_images import file_of, ramp

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
    paths = {name: row["image"]["path"].removeprefix(f"{output}/") for name, row in written.items()}
    assert len(set(paths.values())) == 3
    assert all(paths[name].startswith("files/shelf/a.b-") for name in ("one", "two"))
    assert paths["embedded"] == stored_name("embedded", None, "png")
    for row in written.values():
        assert row["image"]["bytes"] is None
        assert sha256_of(Path(row["image"]["path"]).read_bytes()) == row["sha256"]
        assert read_image_bytes(str(output), row) == Path(row["image"]["path"]).read_bytes()
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


@pytest.mark.parametrize("source", ["a.png", "files/shelf/files/a.png"])
def test_datasets_opens_images_from_any_folder_and_a_moved_output_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    content = file_of(Image.fromarray(ramp()))
    path = stored_name("a", source, "png")
    rows = rows_with_images(["a"], ())
    image = pa.array([{"bytes": content, "path": path}], IMAGE_TYPE)
    rows = rows.set_column(rows.schema.get_field_index("image"), "image", image)
    LedgerDatasink("files/out", MANIFEST, lambda amounts: None, store="files").write([rows], None)
    monkeypatch.chdir("/")
    [data] = (tmp_path / "files" / "out" / "data").iterdir()
    loaded = datasets.Dataset.from_parquet(str(data), cache_dir=str(tmp_path / "cache"))
    assert (np.asarray(loaded[0]["image"]) == ramp()).all()  # pyright: ignore
    (tmp_path / "files" / "out").rename(tmp_path / "moved")
    [row] = pads.dataset(tmp_path / "moved" / "data", format="parquet").to_table().to_pylist()
    assert read_image_bytes(str(tmp_path / "moved"), row) == content
    reader = SourceReader(AllowedRoots(str(tmp_path / "moved")))
    assert reader.read(row["image"]) == (content, path)
    with pytest.raises(StorageError, match="not below the manifest's folder"):
        reader.read("/files/etc/files/passwd")
    assert orphans_of(str(tmp_path / "moved")) == []
