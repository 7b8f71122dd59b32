"""The rules for rows: each invalid value has its message."""

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.diffusion.catalog import CATALOG
from pipeline.manifest.rules import row_problems
from tests.sample_manifests import RULES, VALID_ROW, messages, write_manifest

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, 'it has no prompt (null); give a text, or "" for an unconditional image'),
    ({"id": None}, "it has no id; give each row a unique one"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0; give 1 to 1000"),
    ({"num_inference_steps": 1001}, "num_inference_steps is 1001; give 1 to 1000"),
    ({"guidance_scale": math.nan}, "guidance_scale is nan; give a number of 0 or more (0 to 1 is off)"),
    ({"guidance_scale": math.inf}, "guidance_scale is inf; give a number of 0 or more (0 to 1 is off)"),
    ({"guidance_scale": -1.0}, "guidance_scale is -1.0; give a number of 0 or more (0 to 1 is off)"),
    ({"width": 7}, "width is 7; give a multiple of 8 from 8 to 4096"),
    ({"width": 0}, "width is 0; give a multiple of 8 from 8 to 4096"),
    ({"width": 8192}, "width is 8192; give a multiple of 8 from 8 to 4096"),
    ({"sampler": "eulr"}, 'sampler is "eulr", which does not exist; did you mean "euler", "euler_a"?'),
    ({"sampler": "zzz"}, 'sampler is "zzz", which does not exist; there are ' + ", ".join(CATALOG)),
    ({"seed": -1}, "seed is -1; give 0 to 18446744073709551615"),
    ({"eta": 1.5}, "eta is 1.5; give 0 to 1"),
    ({"strength": 0.0, "image": "a.png"}, "strength is 0.0; give more than 0, at most 1"),
    ({"strength": 0.5}, "strength is given, but no image to start from; give an image, or no strength"),
    ({"strength": 0.5, "image": ""}, "strength is given, but no image to start from; give an image, or no strength"),
]


@pytest.mark.parametrize(("change", "message"), INVALID, ids=[f"{change}" for change, _ in INVALID])
def test_each_invalid_value_has_its_message(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {**VALID_ROW, **change}
    path = write_manifest(tmp_path / "m.parquet", [{**VALID_ROW, "id": "before"}, row])
    name = f' (id "{row["id"]}")' if row["id"] else ""
    assert messages(path) == [f"row 1{name}: {message}"]
    assert row_problems(row, RULES) == [message]
