"""The start of a run: what a later attempt may change, and how many rows are left."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import RunError
from pipeline.manifest.arrow_values import row_to_json
from pipeline.manifest.identity import Shard
from pipeline.manifest.read import fingerprint
from pipeline.output.lease import Lease
from pipeline.output.run_record import read_run, refuse_differences, settings_of
from pipeline.run.job import prepare_run
from pipeline.schema import ROW
from tests.cheap import FACTS
from tests.output.rows import MANIFEST, datasink, encoded_rows

CONFIG = RunConfig(task="generate", manifest="m", output="s3://key:hidden@bucket/out", seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "seed is 2, was 1"),
        ({"lanes": 4}, "lanes is 4, was 8"),
        ({"shard": Shard(1, 2)}, "shard is {'index': 1, 'count': 2}, was None"),
        ({"format": "webp"}, "format is webp, was png"),
        ({"defaults": RowDefaults(guidance_scale=3.0)}, "guidance_scale is 3.0, was None"),
    ],
)
def test_options_that_change_the_images_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    earlier = {"config": settings_of(CONFIG)}
    with pytest.raises(RunError, match="--new-run") as caught:
        refuse_differences(CONFIG, {"config": settings_of(replace(CONFIG, **changes))}, earlier)
    assert message in str(caught.value) and "hidden" not in str(caught.value) and "\n" not in str(caught.value)


def test_options_that_leave_the_images_unchanged_may_change() -> None:
    later = replace(
        CONFIG, actors=7, address="ray://x", limit=3, stall_timeout=9.0, retry_failed=True, manifest="grown"
    )
    refuse_differences(CONFIG, {"config": settings_of(later)}, {"config": settings_of(CONFIG)})
    refuse_differences(CONFIG, {"config": settings_of(later)}, {})


def test_another_model_is_refused() -> None:
    now, earlier = ({"model": {"weights_sha256": digest}} for digest in ("aa", "bb"))
    with pytest.raises(RunError, match="the model's weights is aa, was bb"):
        refuse_differences(CONFIG, now, earlier)
    refuse_differences(CONFIG, now, now)


def test_another_clip_to_score_by_is_refused() -> None:
    now, earlier = ({"clip": {"weights_sha256": digest}} for digest in ("aa", "bb"))
    with pytest.raises(RunError, match="the CLIP's weights is aa, was bb"):
        refuse_differences(CONFIG, now, earlier)


def test_no_key_of_a_url_is_written_down() -> None:
    url = "s3://key:hidden@bucket/clip"
    config = replace(CONFIG, manifest=url, model=url, clip_score=url, allow_roots=(url,))
    assert "hidden" not in json.dumps(settings_of(config))
    assert "bucket/clip" in settings_of(config)["clip_score"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "hf://datasets/me/pictures"}, "each file is a commit"),
        ({"lanes": 1}, "a guided row takes two"),
        ({"task": "classify", "labels": ("a", "a")}, "more than once"),
        ({"task": "classify", "labels": ("a",)}, "give two or more"),
    ],
)
def test_invalid_options_are_refused_before_the_run_starts(changes: dict[str, Any], message: str) -> None:
    config = replace(CONFIG, **changes)
    with pytest.raises(RunError, match=message):
        prepare_run(config, Lease(config.output), FACTS)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A manifest of four rows and an output with one good and one failed row."""
    columns = {"id": list("abcd"), "prompt": ["x"] * 4, "shelf": pa.nulls(4, pa.int32())}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    datasink(str(tmp_path / "out")).write([encoded_rows(["a", "b"], failed=("b",))], None)
    return RunConfig(task="generate", manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "todo"),
    [({}, 2), ({"retry_failed": True}, 3), ({"new_run": True}, 4), ({"limit": 3}, 1), ({"shard": Shard(1, 1)}, 2)],
)
def test_the_rows_that_are_left(config: RunConfig, changes: dict[str, Any], todo: int) -> None:
    lease = Lease(config.output)
    config = replace(config, **changes)
    try:
        plan = prepare_run(config, lease, FACTS)
        plan.state.record.stop("stopped")
    finally:
        lease.release()
    assert (plan.todo, read_run(config.output)["run_id"]) == (todo, plan.state.record.run_id)


def test_a_run_into_a_held_output_is_refused_before_anything_is_touched(config: RunConfig) -> None:
    holder = Lease(config.output)
    holder.acquire()
    half_written = Path(config.output) / "data" / "half.parquet"
    half_written.write_bytes(b"PAR1")
    with pytest.raises(RunError, match="another run writes here"):
        prepare_run(config, Lease(config.output), FACTS)
    assert half_written.exists()
    holder.release()


def test_a_manifest_may_grow_but_committed_rows_may_not_change(tmp_path: Path) -> None:
    config = RunConfig(task="generate", manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "out"))
    rows = [{"id": name, "prompt": "x", "shelf": None} for name in "abcd"]

    def attempt(*changes: dict[str, Any], new_run: bool = False) -> int:
        """Return the number of rows left after these changes of the manifest."""
        table = {row["id"]: row for row in (*rows, *changes)}
        seed = [pa.field("seed", pa.int64())] if any("seed" in row for row in changes) else []
        pq.write_table(pa.Table.from_pylist(list(table.values()), pa.schema([*MANIFEST, *seed])), config.manifest)
        lease = Lease(config.output)
        try:
            return prepare_run(replace(config, new_run=new_run), lease, FACTS).todo
        finally:
            lease.release()

    assert attempt() == 4
    done = encoded_rows(["a", "b"], failed=("b",))
    done = done.set_column(done.schema.get_field_index(ROW), ROW, pa.array([row_to_json(row) for row in rows[:2]]))
    datasink(config.output).write([done], None)
    about = {"run_id": "r", "manifest": {"sha256": fingerprint(config.manifest)}}
    (tmp_path / "out" / "run.json").write_text(json.dumps(about))
    assert attempt() == 2
    assert attempt({"id": "e", "prompt": "new"}, {"id": "c", "prompt": "other", "seed": 3}) == 3
    with pytest.raises(RunError, match="1 rows have changed since they were committed, the first is 'b'"):
        attempt({"id": "b", "prompt": "other"})
    with pytest.raises(RunError, match="the first is 'a'"):
        attempt({"id": "a", "prompt": "x", "seed": 7})
    assert attempt({"id": "b", "prompt": "other"}, new_run=True) == 4


def test_a_block_holds_few_rows_where_sources_are_large_or_of_unknown_size(tmp_path: Path) -> None:
    def rows_per_block(image: pa.Array | None, mask: pa.Array | None = None) -> int:
        rows = 3000 if image is None else len(image)
        columns = {"id": [str(index) for index in range(rows)], "prompt": ["x"] * rows}
        columns |= {name: values for name, values in (("image", image), ("mask", mask)) if values is not None}
        pq.write_table(pa.table(columns), tmp_path / "m.parquet", use_dictionary=False)
        task = "generate" if mask is None else "inpaint"
        config = RunConfig(task=task, manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "out"))
        lease = Lease(config.output)
        try:
            return prepare_run(config, lease, FACTS).rows_per_block(1)
        finally:
            lease.release()

    urls, photographs = pa.array(["x.jpg"] * 3000), pa.array([bytes(20_000)] * 3000)
    assert rows_per_block(None) == 94
    assert rows_per_block(urls) == 2
    assert rows_per_block(urls, urls) == 2
    assert rows_per_block(photographs) == 94
    assert rows_per_block(photographs, photographs) == 94
    assert rows_per_block(pa.array([bytes(2_000_000)] * 20)) == 3
