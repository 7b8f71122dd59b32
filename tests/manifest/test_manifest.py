"""Manifests: what is wrong with one is reported before anything runs, all of it."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import ManifestError
from pipeline.manifest.identity import derive_seed
from pipeline.manifest.read import count_rows, fingerprint, read_batches, read_schema
from pipeline.manifest.rules import Rules, row_problems, schema_problems
from pipeline.manifest.validate import duplicate_ids, validate

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m")
RULES = Rules(samplers=SAMPLERS)
GOOD = {
    "id": "cat-1",
    "prompt": "a cat",
    "width": 64,
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "sampler": "ddim",
}
TYPES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("width", pa.int32()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("sampler", pa.string()),
        ("eta", pa.float32()),
        ("strength", pa.float64()),
        ("image", pa.string()),
    ]
)


def write(path: Path, rows: list[dict[str, Any]], types: pa.Schema = TYPES) -> str:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=types), path, row_group_size=3)
    return str(path)


def messages(path: str, rules: Rules = RULES, limit: int | None = None) -> list[str]:
    return [str(problem) for problem in validate(path, rules, limit=limit)]


def test_a_good_manifest_has_no_problem(tmp_path: Path) -> None:
    assert messages(write(tmp_path / "m.parquet", [GOOD, {**GOOD, "id": "cat-2", "seed": 7}])) == []


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "it has no prompt; say what to make"),
    ({"prompt": "  "}, "it has no prompt; say what to make"),
    ({"id": None}, "it has no id; give each row a unique one"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0; give 1 to 1000"),
    ({"num_inference_steps": 1001}, "num_inference_steps is 1001; give 1 to 1000"),
    ({"guidance_scale": math.nan}, "guidance_scale is nan; give a number of 0 or more (1 is off)"),
    ({"guidance_scale": math.inf}, "guidance_scale is inf; give a number of 0 or more (1 is off)"),
    ({"guidance_scale": -1.0}, "guidance_scale is -1.0; give a number of 0 or more (1 is off)"),
    ({"width": 7}, "width is 7; give a multiple of 8 from 8 to 4096"),
    ({"width": 0}, "width is 0; give a multiple of 8 from 8 to 4096"),
    ({"width": 8192}, "width is 8192; give a multiple of 8 from 8 to 4096"),
    ({"sampler": "eulr"}, 'sampler is "eulr", which does not exist; did you mean "euler"?'),
    ({"sampler": "zzz"}, 'sampler is "zzz", which does not exist; there are ddim, euler, euler_a, dpmpp_2m'),
    ({"seed": -1}, "seed is -1; give 0 or more"),
    ({"eta": 1.5}, "eta is 1.5; give 0 to 1"),
    ({"strength": 0.0, "image": "a.png"}, "strength is 0.0; give more than 0, at most 1"),
    ({"strength": 0.5}, "strength is given, but no image to start from; give an image, or no strength"),
    ({"strength": 0.5, "image": ""}, "strength is given, but no image to start from; give an image, or no strength"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[f"{change}" for change, _ in BROKEN])
def test_each_kind_of_broken_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {**GOOD, **change}
    path = write(tmp_path / "m.parquet", [{**GOOD, "id": "before"}, row])
    name = f' (id "{row["id"]}")' if row["id"] else ""
    assert messages(path) == [f"row 1{name}: {message}"]
    assert row_problems(row, RULES) == [message]


def test_every_problem_is_reported_with_its_row_and_duplicates_last(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "id": "cat-2", "width": 7, "num_inference_steps": 0}, {**GOOD, "id": "cat-3"}, GOOD]
    path = write(tmp_path / "m.parquet", rows)
    assert messages(path) == [
        'row 1 (id "cat-2"): width is 7; give a multiple of 8 from 8 to 4096',
        'row 1 (id "cat-2"): num_inference_steps is 0; give 1 to 1000',
        'row 0 (id "cat-1"): its id is not unique: row 3 has it too',
        'row 3 (id "cat-1"): its id is not unique: row 0 has it too',
    ]
    duplicates = duplicate_ids(path)
    assert duplicates == {"cat-1"}
    assert [bool(row_problems(row, RULES, duplicates)) for row in rows] == [True, True, False, True]
    assert len(messages(path, limit=3)) == 2, "the first row's twin is not among the first three"


def test_rows_are_counted_over_all_files_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "m" / "b.parquet", [{**GOOD, "id": "cat-9", "width": 7}])
    write(tmp_path / "m" / "a.parquet", [GOOD, {**GOOD, "id": "cat-2"}])
    assert [text.split(":")[0] for text in messages(str(tmp_path / "m"))] == ['row 2 (id "cat-9")']
    assert count_rows(str(tmp_path / "m")) == 3


def test_a_wrong_type_names_the_column_and_both_types(tmp_path: Path) -> None:
    types = TYPES.set(4, pa.field("num_inference_steps", pa.string())).append(pa.field("sha256", pa.string()))
    assert messages(write(tmp_path / "m.parquet", [], types)) == [
        'the column "num_inference_steps" is string; it must be int32',
        'the column "sha256" would hide the column of the output with this name; rename it',
    ]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("seed", pa.int32()),
        ("seed", pa.uint8()),
        ("guidance_scale", pa.float32()),
        ("guidance_scale", pa.int64()),
        ("prompt", pa.large_string()),
        ("sampler", pa.dictionary(pa.int8(), pa.string())),
        ("negative_prompt", pa.null()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image", pa.large_binary()),
        ("color", pa.list_(pa.string())),
    ],
)
def test_types_as_pandas_and_others_write_them_are_taken(tmp_path: Path, column: str, kind: pa.DataType) -> None:
    columns = {"id": pa.array(["a", "b"]), "prompt": pa.array(["a cat", "a dog"])}
    columns[column] = pa.array(["ddim", "euler"]).cast(kind) if column == "sampler" else pa.nulls(2, kind)
    if column == "prompt":
        columns[column] = pa.array(["a cat", "a dog"], kind)
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert messages(str(tmp_path / "m.parquet")) == []


def test_a_name_that_a_run_needs_for_itself_is_refused_and_others_like_it_are_not() -> None:
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("__pixels", pa.binary())])
    [problem] = schema_problems(schema, Rules())
    assert problem.column == "__pixels" and "rename it" in str(problem)
    of_pandas = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("__index_level_0__", pa.int64())])
    assert not schema_problems(of_pandas, Rules())


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])])
def test_upscaling_needs_a_picture_in_each_row(tmp_path: Path, kind: pa.DataType) -> None:
    values = {pa.string(): ["a.png", None], pa.binary(): [b"png", b""]}.get(kind, [{"path": "a.png"}, {"bytes": None}])
    pq.write_table(pa.table({"id": ["a", "b"], "image": pa.array(values, kind)}), tmp_path / "m.parquet")
    upscale = Rules(task="upscale")
    assert messages(str(tmp_path / "m.parquet"), upscale) == ['row 1 (id "b"): it has no image, which upscale needs']
    assert 'there is no column "mask"' in messages(str(tmp_path / "m.parquet"), Rules(task="inpaint"))


def test_missing_columns_and_rows_are_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "m.parquet")
    assert messages(str(tmp_path / "m.parquet")) == [
        'there is no column "id"; `latentmill manifest build` writes one',
        'there is no column "prompt"',
    ]
    assert messages(write(tmp_path / "e.parquet", [])) == ["there are no rows"]


def test_what_is_no_manifest_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("prompt\na cat\n")
    (tmp_path / "folder").mkdir()
    damaged = Path(write(tmp_path / "damaged.parquet", [{**GOOD, "id": f"cat-{n}"} for n in range(100)]))
    content = bytearray(damaged.read_bytes())
    content[4:400] = bytes(396)
    damaged.write_bytes(content)
    reasons = {
        "m.csv": "is no Parquet file; `latentmill manifest build` makes one",
        "absent.parquet": "there is no such file or folder",
        "folder": "the folder holds no .parquet file|there is no such",
        "damaged.parquet": "is damaged",
    }
    for name, reason in reasons.items():
        with pytest.raises(ManifestError, match=reason) as caught:
            list(validate(str(tmp_path / name), RULES))
        assert "\n" not in str(caught.value)


def test_a_manifest_in_a_bucket_reads_the_same(s3_bucket: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", [GOOD, {**GOOD, "id": "cat-2", "width": 7}])
    storage.write_bytes(f"{s3_bucket}/m/rows.parquet", Path(path).read_bytes())
    for url in (f"{s3_bucket}/m", f"{s3_bucket}/m/rows.parquet"):
        assert messages(url) == messages(path)
        assert fingerprint(url) == fingerprint(path)
    with pytest.raises(ManifestError, match="there is no such file or folder"):
        read_schema(f"{s3_bucket}/absent.parquet")


def test_the_fingerprint_changes_with_the_rows(tmp_path: Path) -> None:
    first = fingerprint(write(tmp_path / "a.parquet", [GOOD]))
    assert first == fingerprint(write(tmp_path / "b.parquet", [GOOD]))
    assert first != fingerprint(write(tmp_path / "c.parquet", [{**GOOD, "seed": 1}]))


def test_seeds_are_fixed_for_ever() -> None:
    assert derive_seed("cat-1", 0) == 5931716645602723806
    assert derive_seed("cat-1", 1) != derive_seed("cat-1", 0)


@given(st.text(), st.integers(-(2**63), 2**63))
def test_a_seed_is_a_non_negative_int64(row_id: str, run_seed: int) -> None:
    assert 0 <= derive_seed(row_id, run_seed) < 2**63


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
    path = write(tmp_path_factory.mktemp("m") / "m.parquet", rows)
    reported = {problem.row for problem in validate(path, RULES)} - {None}
    duplicates = duplicate_ids(path)
    assert reported == {index for index, row in enumerate(rows) if row_problems(row, RULES, duplicates)}


def test_the_output_of_a_finished_run_is_a_manifest_of_what_its_pictures_are(tmp_path: Path) -> None:
    rows = {"id": ["a"], "image": [{"bytes": b"x", "path": "a.png"}], "prompt": ["cat"], "seed": [4], "shelf": ["top"]}
    made = {"num_inference_steps": [30], "sampler": ["ddim"], "sha256": ["0"], "task": ["generate"], "width": [64]}
    for folder in ("data", "ledger", "failed"):
        (tmp_path / "out" / folder).mkdir(parents=True)
        pq.write_table(
            pa.table(rows | made if folder == "data" else {"id": ["b"]}), tmp_path / "out" / folder / "k.parquet"
        )
    (tmp_path / "out" / "run.json").write_text('{"status": "finished"}')
    path = str(tmp_path / "out")
    assert read_schema(path).names == list(rows)
    assert [batch.schema.names for batch in read_batches(path)] == [list(rows)]
    assert count_rows(path) == 1
    assert list(validate(path, Rules(task="upscale"))) == []
    (tmp_path / "out" / "run.json").write_text('{"status": "stopped"}')
    with pytest.raises(ManifestError, match="holds a run that has not finished"):
        read_schema(path)
