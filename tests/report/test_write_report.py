"""Writing a report: its contents, its errors and its imports."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RunError
from pipeline.report.write import write_report


def test_the_report_shows_the_images_and_failed_rows_of_a_run(output: Path) -> None:
    page = Path(write_report(str(output))).read_text()
    assert page.count("<img ") == 2
    assert page.count("data:image/png;base64,") == 2
    assert "this prompt is refused" in page
    assert "a red circle" in page
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_contact_sheet_contains_every_image(output: Path) -> None:
    write_report(str(output))
    sheet = np.asarray(Image.open(io.BytesIO((output / "report" / "contact_sheet.png").read_bytes())))
    assert sheet.shape[1] > 2 * 128
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 3


def test_a_folder_that_is_not_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not the output of a run"):
        write_report(str(tmp_path))


def test_the_report_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, pipeline.report.write; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
