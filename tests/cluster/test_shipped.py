"""The files, command line and environment that `latentmill submit` sends."""

from pathlib import Path

import click
import pytest

from jobs import ray_jobs
from jobs.generate import generate
from jobs.ray_jobs import JobError, pack, rewritten, storage_settings
from jobs.submit import SUBMITTABLE
from jobs.upscale import upscale


def test_an_embedded_checkpoint_is_sent_only_if_it_is_named(tmp_path: Path) -> None:
    with_it = pack(tmp_path / "a", "shapes")
    without = pack(tmp_path / "b", "s3://models/sd15")
    assert (tmp_path / "a" / "pipeline" / "checkpoints" / "shapes" / "model_index.json").exists()
    assert list((tmp_path / "b").rglob("*.safetensors")) == []
    assert (tmp_path / "b" / "jobs" / "cli.py").exists()
    assert without < 2 * 2**20 < with_it <= ray_jobs.MAX_BYTES
    assert list(tmp_path.rglob("*.pyc")) == []


def test_a_package_that_is_too_large_is_refused_with_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "MAX_BYTES", 2**20)
    with pytest.raises(JobError, match=r"MiB, more than 1; largest: pipeline/checkpoints/shapes/.*\.safetensors"):
        pack(tmp_path / "a", "shapes")


def test_a_command_line_is_sent_with_absolute_paths_and_its_own_options() -> None:
    line = ["m.parquet", "s3://b/out", "--lanes", "4", "--negative-prompt", "m.parquet", "--allow-root", "pictures"]
    line += ["--actors", "2:8", "--shard", "1/3"]
    command, values = rewritten(generate, [*line, "--skip-invalid", "--guidance-interval", "0.1", "0.9"])
    folder = Path.cwd()
    assert command[0] == "generate"
    assert command[-3:] == ["--", str(folder / "m.parquet"), "s3://b/out"]
    options = " ".join(command[1:-3])
    assert "--negative-prompt m.parquet" in options
    assert f"--allow-root {folder}/pictures" in options
    assert "--guidance-interval 0.1 0.9" in options and "--skip-invalid" in options and "--lanes 4" in options
    assert "--actors 2:8" in options and "--shard 1/3" in options
    assert values["model"] == "shapes" and "--model" not in options
    assert rewritten(generate, command[1:])[0] == command
    for flag in ("--correct-colors", "--no-correct-colors"):
        assert flag in rewritten(upscale, ["m.parquet", "out", flag])[0]
    assert "correct" not in " ".join(rewritten(upscale, ["m.parquet", "out"])[0])


def test_training_is_sent_with_absolute_paths() -> None:
    line = ["shapes-clip", "out", "--data", "table", "--workers", "2"]
    folder = Path.cwd()
    command, values = rewritten(SUBMITTABLE["train"], line)
    assert command == ["train", "--data", f"{folder}/table", "--workers", "2", "--", "shapes-clip", f"{folder}/out"]
    assert values.get("model") is None
    command, _ = rewritten(SUBMITTABLE["train"], ["shapes-clip", "out", "--data", "s3://b/table"])
    assert command[:3] == ["train", "--data", "s3://b/table"]


def test_a_wrong_command_line_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(click.UsageError, match="--lanez"):
        rewritten(generate, ["m", "o", "--lanez", "4"])
    with pytest.raises(click.UsageError, match="--address stands before"):
        rewritten(generate, ["m", "o", "--address", "auto"])


def test_storage_settings_are_the_storage_variables_and_the_named_ones() -> None:
    environment = {
        "AWS_ENDPOINT_URL": "http://e",
        "AWS_SECRET_ACCESS_KEY": "s",
        "HOME": "/root",
        "LATENTMILL_CACHE": "/c",
    }
    assert storage_settings(environment) == {"AWS_ENDPOINT_URL": "http://e", "AWS_SECRET_ACCESS_KEY": "s"}
    assert storage_settings(environment, ("LATENTMILL_CACHE",), storage=False) == {"LATENTMILL_CACHE": "/c"}
    with pytest.raises(JobError, match="NOPE: is not set"):
        storage_settings(environment, ("NOPE",))
