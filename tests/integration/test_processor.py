"""The processor on a real local Ray: a Dataset of rows in, a Dataset of images out, the same images as a run's."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import ray.data
from PIL import Image

import pipeline
from pipeline import RowDefaults, RunConfig, build_processor
from pipeline.errors import InvalidManifestError, RunError
from pipeline.schema import OUTPUT, PROVENANCE
from tests.checkpoints import tiny_checkpoint, tiny_upscaler

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = [
    {"id": f"r{index}", "prompt": f"{'a red circle' if index % 2 else 'a blue square'}", "seed": index, "shelf": "top"}
    for index in range(11)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny"))


def config_for(model: str, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {"actors": 1, "lanes": 4, "defaults": RowDefaults(num_inference_steps=2), **changes}
    return RunConfig(**{"task": "generate", "model": model, **settings})


def processed(config: RunConfig, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    results = build_processor(config)(ray.data.from_items(rows)).take_all()
    assert len(results) == len(rows)
    return {row["id"]: row for row in results}


def test_a_dataset_gives_the_images_of_a_run(tmp_path: Path, model: str) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "m.parquet")
    config = config_for(model, manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "out"))
    summary = pipeline.run(config)
    assert (summary.ok, summary.failed) == (len(ROWS), 0)
    assert pipeline.check(config.output, config.manifest).count == 0
    run = pads.dataset(tmp_path / "out" / "data").to_table(columns=["id", "sha256"])
    results = processed(config_for(model), ROWS)
    assert {row_id: row["sha256"] for row_id, row in results.items()} == dict(
        zip(run["id"].to_pylist(), run["sha256"].to_pylist(), strict=True)
    )
    row = results["r3"]
    assert set(row) == {*OUTPUT, *PROVENANCE, "shelf", "error_type", "error_message"}
    assert (row["shelf"], row["error_type"], row["error_message"]) == ("top", None, None)
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (64, 64)


def test_a_bad_row_comes_out_with_its_error(model: str) -> None:
    results = processed(config_for(model), [*ROWS[:2], {**ROWS[2], "prompt": None}])
    assert [row["error_type"] for row in results.values()].count(None) == 2
    assert (results["r2"]["error_type"], results["r2"]["image"]) == ("InvalidRow", None)
    assert "prompt" in results["r2"]["error_message"]


def test_images_are_read_only_from_allowed_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "relative", "image": "a.png"}, {"id": "absolute", "image": str(tmp_path / "a.png")}]
    upscaler = str(tiny_upscaler(tmp_path / "x4"))
    defaults = RowDefaults(num_inference_steps=2, guidance_scale=1.0, tile=16, overlap=4)
    config = config_for(upscaler, task="upscale", defaults=defaults)
    refused = processed(config, rows)
    assert [row["error_type"] for row in refused.values()] == ["StorageError"] * 2
    assert "no folder to read from is allowed" in refused["relative"]["error_message"]
    allowed = processed(config_for(upscaler, task="upscale", defaults=defaults, allow_roots=(str(tmp_path),)), rows)
    assert [(row["error_message"], row["width"], row["height"]) for row in allowed.values()] == [(None, 48, 36)] * 2


def test_what_a_processor_cannot_do_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="output is '.*'; a processor has no files"):
        build_processor(config_for(model, output=str(tmp_path)))
    with pytest.raises(RunError, match="no-such-model"):
        build_processor(config_for("no-such-model"))
    with pytest.raises(InvalidManifestError, match='column "width" is string'):
        build_processor(config_for(model))(ray.data.from_items([{"id": "a", "prompt": "x", "width": "wide"}]))
