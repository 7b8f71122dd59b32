"""Upscaling on a real local Ray: all kinds of sources, bad rows, provenance, and a run's output as the manifest."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import cli
from pipeline.config import RunConfig
from pipeline.output.audit import check_output
from pipeline.run.job import run_job
from pipeline.stages.rows import sha256_of
from tests.cheap import FACTS, load_cheap
from tests.checkpoints import tiny_upscaler

pytestmark = pytest.mark.usefixtures("local_ray")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tiny_upscaler(tmp_path_factory.mktemp("checkpoint") / "x4")
    settings = "--num-inference-steps 2 --guidance-scale 1 --lanes 4 --actors 1 --tile 16 --overlap 4"
    return ["--model", str(folder), *settings.split()]


def png(height: int, width: int, channels: int, **tags: Any) -> bytes:
    values = np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0] if channels == 1 else values).save(buffer, "PNG", **tags)
    return buffer.getvalue()


def rows_of(output: Path | str, folder: str = "data") -> dict[str, dict[str, Any]]:
    table = pads.dataset(f"{output}/{folder}", format="parquet").to_table()
    return {row["id"]: row for row in table.to_pylist()}


def test_an_archive_of_any_sizes_and_kinds(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "a.png").write_bytes(color := png(37, 21, 3, dpi=(300, 300)))
    sources = {
        "path": {"path": "shelf/a.png"},
        "gray": {"bytes": png(9, 13, 1)},
        "alpha": {"bytes": png(16, 16, 4)},
        "broken": {"bytes": color[:300]},
        "absent": {"path": "shelf/b.png"},
        "elsewhere": {"path": "/etc/passwd"},
    }
    table = pa.table(
        {
            "id": list(sources),
            "image": pa.array(sources.values(), IMAGE),
            "noise_level": [None, 30, None, None, None, None],
            "note": [f"about {name}" for name in sources],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    output = tmp_path / "out"
    assert cli.run(["upscale", str(tmp_path / "m.parquet"), str(output), *options]) == 3
    result, failed = rows_of(output), rows_of(output, "failed")
    actual = {name: Image.open(io.BytesIO(row["image"]["bytes"])) for name, row in result.items()}
    seen = {name: (picture.mode, picture.size) for name, picture in actual.items()}
    assert seen == {"path": ("RGB", (84, 148)), "gray": ("L", (52, 36)), "alpha": ("RGBA", (64, 64))}
    assert [round(value) for value in actual["path"].info["dpi"]] == [300, 300]
    assert result["path"]["source_sha256"] == sha256_of(color)
    assert [result[name]["noise_level"] for name in actual] == [30 if name == "gray" else 20 for name in actual]
    for row in result.values():
        assert (row["task"], row["tile_size"], row["tile_overlap"], row["upscale_factor"]) == ("upscale", 16, 4, 4)
        assert row["note"] == f"about {row['id']}"
        assert row["sha256"] == sha256_of(row["image"]["bytes"])
    assert {name: row["error_type"] for name, row in failed.items()} == {
        "broken": "ImageError",
        "absent": "StorageError",
        "elsewhere": "StorageError",
    }
    assert check_output(str(output)).count == 0


def test_the_images_of_a_run_are_upscaled_by_the_next(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"r{index}", "prompt": f"cat {index}", "seed": index + 3, "shelf": "top"} for index in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    first, second = tmp_path / "first", tmp_path / "second"
    config = RunConfig(task="generate", manifest=str(tmp_path / "m.parquet"), output=str(first), actors=1, lanes=4)
    run_job(config, load=load_cheap, checkpoint=FACTS)
    assert cli.run(["upscale", str(first), str(second), *options, "--scale", "2", "--correct-colors"]) == 0
    before, after = rows_of(first), rows_of(second)
    assert sorted(after) == [row["id"] for row in rows]
    for row in rows:
        result = after[row["id"]]
        assert result["source_sha256"] == before[row["id"]]["sha256"]
        assert (result["prompt"], result["seed"], result["shelf"]) == (row["prompt"], row["seed"], "top")
        assert (result["num_inference_steps"], result["width"], result["height"]) == (2, 128, 128)
        assert (result["task"], result["colors_corrected"], result["run_id"]) != (
            before[row["id"]]["task"],
            False,
            None,
        )
        small = np.asarray(Image.open(io.BytesIO(result["image"]["bytes"])).resize((64, 64), Image.Resampling.BOX))
        source = np.asarray(Image.open(io.BytesIO(before[row["id"]]["image"]["bytes"])))
        assert np.abs(small.astype(int) - source).mean() < 3
    run = json.loads((first / "run.json").read_text())
    (first / "run.json").write_text(json.dumps(run | {"status": "stopped"}, indent=2))
    assert cli.run(["upscale", str(first), str(tmp_path / "third"), *options]) == 1
    assert "the run of this output has not finished" in capsys.readouterr().err
