"""Validation of whole manifests: every problem is reported with its row."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.duplicates import duplicate_ids
from pipeline.manifest.read import count_rows
from pipeline.manifest.rules import Rules, row_problems
from pipeline.manifest.validate import validate
from tests.sample_manifests import RULES, VALID_ROW, messages, write_manifest


def test_a_valid_manifest_has_no_problem(tmp_path: Path) -> None:
    assert messages(write_manifest(tmp_path / "m.parquet", [VALID_ROW, {**VALID_ROW, "id": "cat-2", "seed": 7}])) == []


def test_every_problem_is_reported_with_its_row_and_duplicates_last(tmp_path: Path) -> None:
    rows = [
        VALID_ROW,
        {**VALID_ROW, "id": "cat-2", "width": 7, "num_inference_steps": 0},
        {**VALID_ROW, "id": "cat-3"},
        VALID_ROW,
    ]
    path = write_manifest(tmp_path / "m.parquet", rows)
    assert messages(path) == [
        'row 1 (id "cat-2"): width is 7; give a multiple of 8 from 8 to 4096',
        'row 1 (id "cat-2"): num_inference_steps is 0; give 1 to 1000',
        'row 0 (id "cat-1"): its id is not unique: row 3 has it too',
        'row 3 (id "cat-1"): its id is not unique: row 0 has it too',
    ]
    duplicates = duplicate_ids(path)
    assert duplicates == {"cat-1"}
    assert [bool(row_problems(row, RULES, duplicates)) for row in rows] == [True, True, False, True]
    assert len(messages(path, limit=3)) == 2, "the other row with this id is not among the first three"


def test_rows_are_counted_over_all_files_of_a_folder(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m" / "b.parquet", [{**VALID_ROW, "id": "cat-9", "width": 7}])
    write_manifest(tmp_path / "m" / "a.parquet", [VALID_ROW, {**VALID_ROW, "id": "cat-2"}])
    assert [text.split(":")[0] for text in messages(str(tmp_path / "m"))] == ['row 2 (id "cat-9")']
    assert count_rows(str(tmp_path / "m")) == 3


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])])
def test_upscaling_needs_an_image_in_each_row(tmp_path: Path, kind: pa.DataType) -> None:
    values = {pa.string(): ["a.png", None], pa.binary(): [b"png", b""]}.get(kind, [{"path": "a.png"}, {"bytes": None}])
    pq.write_table(pa.table({"id": ["a", "b"], "image": pa.array(values, kind)}), tmp_path / "m.parquet")
    upscale = Rules(task="upscale")
    assert messages(str(tmp_path / "m.parquet"), upscale) == ['row 1 (id "b"): it has no image, which upscale needs']
    assert 'there is no column "mask"' in messages(str(tmp_path / "m.parquet"), Rules(task="inpaint"))


def test_missing_columns_and_rows_are_reported(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "m.parquet")
    assert messages(str(tmp_path / "m.parquet")) == [
        'there is no column "id"; `latentmill manifest build` writes one',
        'there is no column "prompt"',
    ]
    assert messages(write_manifest(tmp_path / "e.parquet", [])) == ["there are no rows"]


ROWS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["a", "b", "c", None, ""]),
        "prompt": st.sampled_from(["a cat", "", None]),
        "seed": st.one_of(st.none(), st.integers(-2, 2)),
        "width": st.sampled_from([None, 0, 7, 8, 64, 4104]),
        "num_inference_steps": st.sampled_from([None, 0, 1, 1000, 1001]),
        "guidance_scale": st.one_of(st.none(), st.floats()),
        "sampler": st.sampled_from([None, "ddim", "", "DDIM"]),
        "eta": st.sampled_from([None, -0.5, 0.0, 1.0, math.nan]),
        "strength": st.sampled_from([None, 0.0, 0.5, 1.0, math.nan]),
        "image": st.sampled_from([None, "", "a.png"]),
    }
)


@given(st.lists(ROWS, max_size=12))
def test_a_stage_refuses_exactly_the_rows_that_validation_reports(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = write_manifest(tmp_path_factory.mktemp("m") / "m.parquet", rows)
    reported = {problem.row for problem in validate(path, RULES)} - {None}
    duplicates = duplicate_ids(path)
    assert reported == {index for index, row in enumerate(rows) if row_problems(row, RULES, duplicates)}
