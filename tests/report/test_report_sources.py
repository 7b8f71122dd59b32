"""The source images and masks in a report."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.report.contact_sheet import render_contact_sheet
from pipeline.report.sources import read_sources


def test_sources_and_masks_are_read_and_unreadable_sources_are_omitted(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "before.png")
    Image.new("L", (9, 9), 255).save(tmp_path / "mask.png")
    columns = {"image": ["before.png", "gone.png"], "mask": ["mask.png", "mask.png"]}
    pq.write_table(pa.table({"id": ["a", "b"], **columns}), tmp_path / "m.parquet")
    run = {"config": {"manifest": str(tmp_path / "m.parquet"), "defaults": {"mask_invert": True}}}
    sources = read_sources(run, [{"id": "a", "source_sha256": "x"}, {"id": "b", "source_sha256": "y"}], 64)
    assert list(sources) == ["a"]
    assert [image.getpixel((0, 0)) for image in sources["a"]] == [(255, 0, 0), (0, 0, 0)]
    assert read_sources(run, [{"id": "a", "source_sha256": None}], 64) == {}
    panel = (*sources["a"], Image.new("RGB", (9, 9), "blue"))
    sheet = Image.open(io.BytesIO(render_contact_sheet([{"id": "a", "prompt": "x"}], [panel])))
    assert {(255, 0, 0), (0, 0, 0), (0, 0, 255)} <= {color for _, color in sheet.getcolors(10_000) or []}
