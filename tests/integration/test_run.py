"""Whole runs on a real local Ray: images in the output, resume, bad rows, object storage, exit statuses."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import cli
from pipeline import storage
from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import InvalidManifestError, RunError
from pipeline.manifest.identity import Shard
from pipeline.output.audit import check_output
from pipeline.output.ledger import read_ledger
from pipeline.report.write import write_report
from pipeline.run.job import run_job
from pipeline.run.summary import RunSummary
from tests.cheap import FACTS, load_broken, load_cheap, load_deadly, load_hanging, load_stuck
from tests.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = 40
SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "pndm", "heun", "lms")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def mixed_rows() -> list[dict[str, Any]]:
    """Rows with mixed samplers, steps, guidance and seeds; every fifth is unguided, every fourth has no seed."""
    chance = random.Random(5)
    return [
        {
            "id": f"row-{index:02}",
            "prompt": chance.choice(["a red circle", "a blue square", "cats on the left"]),
            "seed": None if index % 4 == 0 else chance.randrange(1000),
            "num_inference_steps": chance.randint(5, 12 if index % 10 else 30),
            "guidance_scale": 1.0 if index % 5 == 0 else chance.uniform(1, 9),
            "sampler": SAMPLERS[index % len(SAMPLERS)],
            "shelf": f"shelf {index % 3}",
        }
        for index in range(ROWS)
    ]


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def config_for(manifest: str, output: Path | str, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {"actors": 1, "lanes": 4, "defaults": RowDefaults(num_inference_steps=2), **changes}
    return RunConfig(task="generate", manifest=manifest, output=str(output), **settings)


def run_cheap(manifest: str, output: Path | str, **changes: Any) -> RunSummary:
    return run_job(config_for(manifest, output, **changes), load=load_cheap, checkpoint=FACTS)


def hashes(output: Path | str) -> dict[str, str]:
    table = pads.dataset(f"{output}/data", format="parquet").to_table(columns=["id", "sha256"])
    assert table.num_rows == len(set(table["id"].to_pylist()))
    return dict(zip(table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def in_order(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, local_ray: None
) -> tuple[str, Path, RunSummary]:
    """The mixed manifest, run in order by one actor."""
    folder = tmp_path_factory.mktemp("in-order")
    manifest = write_manifest(folder / "manifest.parquet", mixed_rows())
    return manifest, folder / "out", run_job(config_for(manifest, folder / "out", model=str(checkpoint)))


def test_a_run_records_the_time_of_each_part(in_order: tuple[str, Path, RunSummary]) -> None:
    output = in_order[1]
    run = json.loads((output / "run.json").read_text())["last_attempt"]
    spent = run["seconds_in"]
    for name in ("loading", "request", "network", "decode", "encode", "write"):
        assert 0 < spent[name] < run["seconds"]
    assert 0.5 < run["occupancy"] <= 1
    assert run["images_per_second_per_actor"] <= run["images_per_second"] < run["ideal_images_per_second"]
    rates = pq.read_table(output / "report" / "rates-001.parquet").to_pylist()
    assert sum(minute["ok"] for minute in rates) == sum(minute["rows"] for minute in rates) == ROWS
    assert sum(minute["network_seconds"] for minute in rates) == pytest.approx(spent["network"], abs=0.01)


def test_every_row_becomes_an_image_with_its_provenance(in_order: tuple[str, Path, RunSummary]) -> None:
    _, output, summary = in_order
    assert (summary.ok, summary.failed, summary.already_done, summary.completed) == (ROWS, 0, 0, ROWS)
    table = pads.dataset(output / "data", format="parquet").to_table().sort_by("id").to_pylist()
    for result, asked in zip(table, mixed_rows(), strict=True):
        for name in ("id", "prompt", "num_inference_steps", "guidance_scale", "sampler", "shelf"):
            assert result[name] == asked[name]
        assert asked["seed"] in (None, result["seed"])
        assert Image.open(io.BytesIO(result["image"]["bytes"])).size == (64, 64)
        assert (result["lanes"], result["threads"], result["dtype"], result["run_id"]) == (
            4,
            1,
            "float32",
            summary.run_id,
        )
    run = json.loads((output / "run.json").read_text())
    assert (run["status"], run["ok"], run["manifest"]["rows"]) == ("finished", ROWS, ROWS)
    assert run["model"]["weights_sha256"] == table[0]["weights_sha256"]
    assert all(pq.ParquetFile(path).metadata.row_group(0).num_rows <= 100 for path in (output / "data").iterdir())


def test_a_shuffled_manifest_and_more_actors_give_the_same_images(
    tmp_path: Path, checkpoint: Path, in_order: tuple[str, Path, RunSummary]
) -> None:
    rows = mixed_rows()
    random.Random(1).shuffle(rows)
    manifest = write_manifest(tmp_path / "shuffled.parquet", rows)
    run_job(config_for(manifest, tmp_path / "out", model=str(checkpoint), actors=1, max_actors=2))
    expected = hashes(in_order[1])
    assert hashes(tmp_path / "out") == expected
    assert len(set(expected.values())) == ROWS


def test_other_libraries_open_the_output(tmp_path: Path, in_order: tuple[str, Path, RunSummary]) -> None:
    import datasets

    output = in_order[1]
    loaded = datasets.load_dataset("parquet", data_files=f"{output}/data/*.parquet", cache_dir=str(tmp_path))["train"]
    assert len(loaded) == ROWS
    assert isinstance(loaded[0]["image"], Image.Image)
    frame = pd.read_parquet(output / "data")
    assert len(frame) == ROWS
    assert Image.open(io.BytesIO(frame["image"][0]["bytes"])).size == (64, 64)


def test_a_resumed_run_completes_only_the_missing_rows(
    tmp_path: Path, checkpoint: Path, in_order: tuple[str, Path, RunSummary]
) -> None:
    manifest, original, _ = in_order
    output = shutil.copytree(original, tmp_path / "out")
    entries = sorted((output / "ledger").iterdir())
    lost = {row_id for entry in entries[:2] for row_id in pq.read_table(entry)["id"].to_pylist()}
    for entry in entries[:2]:
        entry.unlink()
    (output / "data" / ".half.parquet.part").write_bytes(b"PAR1")
    summary = run_job(config_for(manifest, output, model=str(checkpoint)))
    assert (summary.completed, summary.already_done, summary.ok) == (len(lost), ROWS - len(lost), ROWS)
    assert hashes(output) == hashes(original)
    assert not (output / "data" / ".half.parquet.part").exists()
    assert summary.run_id == json.loads((output / "run.json").read_text())["run_id"]
    again = run_job(config_for(manifest, output, model=str(checkpoint)))
    assert (again.completed, again.already_done, again.ok) == (0, ROWS, ROWS)


def broken_rows() -> list[dict[str, Any]]:
    rows = [{"id": f"r{index}", "prompt": "fine", "num_inference_steps": 2, "width": 64} for index in range(12)]
    for row in rows:
        row |= {"guidance_scale": 2.0, "sampler": "ddim"}
    rows[1]["prompt"] = None
    rows[2]["num_inference_steps"] = 0
    rows[3]["guidance_scale"] = float("nan")
    rows[4]["width"] = 7
    rows[5]["sampler"] = "eulr"
    rows[7]["id"] = "r6"
    rows[8]["id"] = None
    return rows


BROKEN = {"r1", "r2", "r3", "r4", "r5", "r6", "no-id"}


def test_broken_rows_are_all_named_before_anything_starts(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", broken_rows())
    with pytest.raises(InvalidManifestError, match="skip-invalid") as caught:
        run_cheap(manifest, tmp_path / "out")
    assert {problem.row for problem in caught.value.problems} == {1, 2, 3, 4, 5, 6, 7, 8}
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_skip_invalid_commits_the_bad_rows_as_failed(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", broken_rows())
    summary = run_cheap(manifest, tmp_path / "out", skip_invalid=True)
    assert (summary.ok, summary.failed) == (4, 8)
    failed = pads.dataset(tmp_path / "out" / "failed").to_table().to_pylist()
    assert {row["id"] if not row["id"].startswith("no-id") else "no-id" for row in failed} == BROKEN
    reasons = {row["id"]: row["error_message"] for row in failed}
    assert "width is 7" in reasons["r4"] and 'did you mean "euler"' in reasons["r5"]
    assert json.loads(next(row["row"] for row in failed if row["id"] == "r2"))["num_inference_steps"] == 0
    again = run_cheap(manifest, tmp_path / "out", skip_invalid=True)
    assert (again.completed, again.ok, again.failed) == (0, 4, 8)


def test_a_wrong_column_type_is_refused(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", [{"id": "a", "prompt": "x", "width": "wide"}])
    with pytest.raises(InvalidManifestError, match='column "width" is string'):
        run_cheap(manifest, tmp_path / "out", skip_invalid=True)


def test_a_grown_manifest_makes_the_new_rows(tmp_path: Path) -> None:
    rows = [{"id": f"r{index}", "prompt": "x"} for index in range(9)]
    manifest = write_manifest(tmp_path / "m.parquet", rows[:6])
    assert run_cheap(manifest, tmp_path / "out", limit=4).completed == 4
    write_manifest(tmp_path / "m.parquet", rows)
    summary = run_cheap(manifest, tmp_path / "out")
    assert (summary.completed, summary.already_done, summary.ok) == (5, 4, 9)
    assert set(hashes(tmp_path / "out")) == {row["id"] for row in rows}


@pytest.mark.slow
def test_a_row_that_kills_its_process_again_and_again_fails_and_its_neighbors_are_made(tmp_path: Path) -> None:
    rows = [{"id": f"r{index}", "prompt": "poison" if index == 4 else "x"} for index in range(12)]
    manifest = write_manifest(tmp_path / "m.parquet", rows)
    summary = run_job(config_for(manifest, tmp_path / "out"), load=load_deadly, checkpoint=FACTS)
    assert (summary.ok, summary.failed) == (11, 1)
    (failed,) = pads.dataset(tmp_path / "out" / "failed").to_table().to_pylist()
    assert (failed["id"], failed["error_type"]) == ("r4", "ProcessDied")
    assert check_output(str(tmp_path / "out"), manifest).count == 0


def test_a_run_without_progress_ends_within_its_stall_timeout(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", [{"id": "a", "prompt": "x"}])
    with pytest.raises(RunError, match=r"no progress for \d+ seconds.*run the same command again"):
        run_job(config_for(manifest, tmp_path / "out", stall_timeout=5.0, grace=2.0), load=load_stuck, checkpoint=FACTS)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_a_call_that_hangs_costs_its_process_and_no_row(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", [{"id": f"r{index}", "prompt": "x"} for index in range(6)])
    config = config_for(manifest, tmp_path / "out", call_limit=1.0)
    summary = run_job(config, load=load_hanging, checkpoint=FACTS)
    assert (summary.ok, summary.failed) == (6, 0)
    assert (tmp_path / "out.hung").exists()


def test_jobs_that_share_a_manifest_make_each_row_once(tmp_path: Path) -> None:
    rows = [{"id": f"r{index}", "prompt": "x"} for index in range(30)]
    manifest = write_manifest(tmp_path / "m.parquet", rows)
    outputs = [tmp_path / str(index) for index in (1, 2)]
    for index, output in enumerate(outputs, 1):
        assert 5 < run_cheap(manifest, output, shard=Shard(index, 2)).completed < 25
        assert check_output(str(output), manifest).count == 0
    first, second = (hashes(output) for output in outputs)
    assert not set(first) & set(second)
    assert run_cheap(manifest, outputs[0], shard=Shard(1, 2)).completed == 0
    run_cheap(manifest, tmp_path / "whole")
    assert hashes(tmp_path / "whole") == first | second


def test_a_dying_model_ends_the_run_in_one_line_and_marks_no_row(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", [{"id": "a", "prompt": "x"}])
    with pytest.raises(RunError, match=r"out of memory \(pretended\)") as caught:
        run_job(config_for(manifest, tmp_path / "out"), load=load_broken, checkpoint=FACTS)
    assert "\n" not in str(caught.value)
    assert read_ledger(str(tmp_path / "out")).ok == read_ledger(str(tmp_path / "out")).failed == 0


def test_a_checkpoint_that_cannot_be_loaded_is_named_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    manifest = write_manifest(tmp_path / "m.parquet", [{"id": "a", "prompt": "x"}])
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="diffusion_pytorch_model.safetensors: is not a readable safetensors") as caught:
        run_job(config_for(manifest, tmp_path / "out", model=str(broken)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_object_storage_in_and_out(tmp_path: Path, s3_bucket: str, checkpoint: Path) -> None:
    rows = [{"id": f"r{index}", "prompt": "a red circle", "seed": index} for index in range(10)]
    local = write_manifest(tmp_path / "part-0.parquet", rows[:5])
    storage.write_bytes(f"{s3_bucket}/manifest/part-0.parquet", Path(local).read_bytes())
    local = write_manifest(tmp_path / "part-1.parquet", [{**row, "shelf": "top"} for row in rows[5:]])
    storage.write_bytes(f"{s3_bucket}/manifest/part-1.parquet", Path(local).read_bytes())
    output = f"{s3_bucket}/runs/one"
    summary = run_cheap(f"{s3_bucket}/manifest", output)
    assert (summary.ok, summary.failed) == (10, 0)
    again = run_cheap(f"{s3_bucket}/manifest", output)
    assert (again.completed, again.already_done) == (0, 10)
    filesystem, path = storage.arrow_filesystem(f"{output}/data")
    shelves = pads.dataset(path, filesystem=filesystem).to_table(columns=["shelf"])["shelf"].to_pylist()
    assert sorted(shelves, key=str) == [None] * 5 + ["top"] * 5
    assert write_report(output) == f"{output}/report/index.html"
    for url in storage.list_files(output):
        assert b"secret-of-the-test" not in storage.read_bytes(url)


def test_exit_statuses(
    tmp_path: Path, checkpoint: Path, in_order: tuple[str, Path, RunSummary], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(checkpoint), "--num-inference-steps", "2", "--actors", "1", "--lanes", "4"]
    assert cli.run(["generate", in_order[0], str(in_order[1]), *options]) == 0
    assert "40 rows were there already. 0 rows completed: 40 images are in" in capsys.readouterr().out
    bad = write_manifest(tmp_path / "bad.parquet", [{"id": "a", "prompt": "a red circle"}, {"id": "b", "prompt": None}])
    assert cli.run(["generate", bad, str(tmp_path / "bad"), *options]) == 1
    assert "row 1" in capsys.readouterr().err
    assert cli.run(["generate", bad, str(tmp_path / "bad"), *options, "--skip-invalid"]) == 3
    assert "1 images are in" in (out := capsys.readouterr().out) and "1 rows failed" in out
    assert cli.run(["generate", in_order[0], str(tmp_path / "x"), "--model", "no-such-model"]) == 1
    assert "no-such-model: no such checkpoint folder" in capsys.readouterr().err
