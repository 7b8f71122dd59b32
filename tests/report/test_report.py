"""The report: complete, readable without a network, and safe with any prompt."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.output.lease import Lease
from pipeline.output.run_record import write_run
from pipeline.output.sink import LedgerDatasink
from pipeline.report.contact_sheet import contact_sheet
from pipeline.report.sources import sources_of
from pipeline.report.write import write_report
from pipeline.run.plan import plan_run
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from tests.cheap import FACTS, load_cheap


@pytest.fixture
def output(tmp_path: Path) -> Path:
    prompts = ["a red circle", '<script>alert(1)</script> & "quotes"', "refuse"]
    table = pa.table({"id": ["a", "b", "c"], "prompt": prompts})
    pq.write_table(table, tmp_path / "m.parquet")
    config = RunConfig(task="generate", manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "out"), lanes=2)
    lease = Lease(config.output)
    plan = plan_run(config, lease, FACTS)
    lease.release()
    denoise = Denoise(config, plan.run_id, "cpu", lambda amounts: None, load_cheap)
    made = denoise(PrepareRows(config=config, rules=plan.rules, manifest=table.schema)(table))
    denoise.close()
    sink = LedgerDatasink(config.output, table.schema, lambda amounts: None)
    sink.write([EncodeImages(config=config, manifest=table.schema)(made)], None)
    write_run(config, plan.run_id, plan.attempt, {"ok": 2, "failed": 1, "status": "finished"})
    return tmp_path / "out"


def test_the_gallery_shows_pictures_and_failures_and_asks_nothing_of_the_network(output: Path) -> None:
    page = Path(write_report(str(output))).read_text()
    assert page.count("<img ") == 2
    assert page.count("data:image/png;base64,") == 2
    assert "this prompt is refused" in page
    assert "a red circle" in page
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", page)


def test_a_prompt_is_text_and_never_a_program(output: Path) -> None:
    page = Path(write_report(str(output))).read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_contact_sheet_holds_every_picture(output: Path) -> None:
    write_report(str(output))
    sheet = np.asarray(Image.open(io.BytesIO((output / "report" / "contact_sheet.png").read_bytes())))
    assert sheet.shape[1] > 2 * 128
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 3


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run's output"):
        write_report(str(tmp_path))


def test_sources_and_masks_stand_beside_what_was_made_of_them(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "before.png")
    Image.new("L", (9, 9), 255).save(tmp_path / "mask.png")
    sources = {"image": ["before.png", "gone.png"], "mask": ["mask.png", "mask.png"]}
    pq.write_table(pa.table({"id": ["a", "b"], **sources}), tmp_path / "m.parquet")
    run = {"config": {"manifest": str(tmp_path / "m.parquet"), "defaults": {"mask_invert": True}}}
    found = sources_of(run, [{"id": "a", "source_sha256": "x"}, {"id": "b", "source_sha256": "y"}], 64)
    assert list(found) == ["a"]
    assert [picture.getpixel((0, 0)) for picture in found["a"]] == [(255, 0, 0), (0, 0, 0)]
    assert sources_of(run, [{"id": "a", "source_sha256": None}], 64) == {}
    rows = [{"id": "a", "prompt": "x"}]
    sheet = Image.open(io.BytesIO(contact_sheet(rows, [(*found["a"], Image.new("RGB", (9, 9), "blue"))])))
    assert {(255, 0, 0), (0, 0, 0), (0, 0, 255)} <= {color for _, color in sheet.getcolors(10_000) or []}
