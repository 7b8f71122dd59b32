"""Runs with LoRAs on a real local Ray: one actor against two, resume, and files from object storage."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.adapters import AdapterWeight, NamedPath
from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import RunError
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.checkpoint.lora_file import lora_digest
from pipeline.run.job import run_job
from tests.checkpoints import tiny_checkpoint
from tests.lora_checkpoints import random_factors, save_kohya, save_peft

pytestmark = pytest.mark.usefixtures("local_ray")

CHOICES = (None, "", "one", "one:0.5, two", "two:-0.5", "locon:0.7", "locon, one:0.2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def loras(checkpoint: Path, tmp_path: Path) -> dict[str, Path]:
    stack = load_stack(checkpoint)
    kinds = {"one": random_factors(stack, seed=1), "two": random_factors(stack, seed=2)}
    kinds["locon"] = random_factors(stack, seed=3, endings=("conv1", "to_q"), size=0.1)
    return {name: save_kohya(tmp_path / f"{name}.safetensors", stack, factors) for name, factors in kinds.items()}


def config_for(
    rows: list[dict[str, Any]], folder: Path, checkpoint: Path, loras: dict[str, Any], **changes: Any
) -> RunConfig:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    settings: dict[str, Any] = {"actors": 1, "lanes": 4, "defaults": RowDefaults(num_inference_steps=2), **changes}
    named = tuple(NamedPath(name, str(path)) for name, path in loras.items())
    return RunConfig(
        task="generate",
        manifest=str(folder / "manifest.parquet"),
        output=str(folder / "out"),
        model=str(checkpoint),
        loras=named,
        **settings,
    )


def output_rows(folder: Path) -> dict[str, dict[str, Any]]:
    rows = pads.dataset(folder / "out" / "data", format="parquet").to_table().to_pylist()
    return {row["id"]: row for row in rows}


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"row-{index:02}", "prompt": "a red circle", "seed": index, "loras": CHOICES[index % len(CHOICES)]}
        for index in range(count)
    ]


def test_shuffled_rows_on_two_actors_have_the_bytes_of_one_actor(
    checkpoint: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    rows = rows_of(21)
    run_job(config_for(rows, tmp_path / "one", checkpoint, loras))
    shuffled = random.Random(1).sample(rows, len(rows))
    run_job(config_for(shuffled, tmp_path / "two", checkpoint, loras, actors=2))
    one, two = output_rows(tmp_path / "one"), output_rows(tmp_path / "two")
    assert {name: row["sha256"] for name, row in one.items()} == {name: row["sha256"] for name, row in two.items()}
    assert one["row-03"]["loras"] == [{"name": "one", "weight": 0.5}, {"name": "two", "weight": 1.0}]
    assert one["row-03"]["lora_sha256"] == [lora_digest(loras["one"]), lora_digest(loras["two"])]
    assert one["row-00"]["loras"] is None
    assert one["row-00"]["lora_sha256"] is None


def test_a_run_does_not_go_on_with_another_file_of_the_same_name(
    checkpoint: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    config = config_for(rows_of(4), tmp_path / "run", checkpoint, loras, limit=2)
    run_job(config)
    moved = dict(loras, one=loras["one"].rename(tmp_path / "elsewhere.safetensors"))
    assert run_job(config_for(rows_of(4), tmp_path / "run", checkpoint, moved, limit=3)).completed == 1
    moved["one"] = loras["two"]
    with pytest.raises(RunError, match="the LoRA one is .*, was"):
        run_job(config_for(rows_of(4), tmp_path / "run", checkpoint, moved))


def test_a_folder_at_a_url_is_used_by_rows_that_name_none(
    checkpoint: Path, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    stack = load_stack(checkpoint)
    folder = save_peft(tmp_path / "style", random_factors(stack, networks=["unet"]))
    for path in folder.iterdir():
        storage.write_bytes(f"{s3_bucket}/loras/style/{path.name}", path.read_bytes())
    defaults = RowDefaults(num_inference_steps=2, use_loras=(AdapterWeight("style", 0.7),))
    rows = [{"id": "0", "prompt": "a", "seed": 1, "loras": None}, {"id": "1", "prompt": "a", "seed": 1, "loras": ""}]
    for name, path in (("local", str(folder)), ("remote", f"{s3_bucket}/loras/style")):
        run_job(config_for(rows, tmp_path / name, checkpoint, {"style": path}, defaults=defaults))
    local, remote = output_rows(tmp_path / "local"), output_rows(tmp_path / "remote")
    assert local["0"]["sha256"] == remote["0"]["sha256"] != local["1"]["sha256"]
    assert remote["0"]["lora_sha256"] == [lora_digest(folder)]
    assert remote["1"]["loras"] is None
