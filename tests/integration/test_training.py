"""Training on Ray: a user's own table, and several workers."""

import io
import json
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from jobs.cli import cli
from pipeline.storage import write_bytes
from pipeline.training.data.examples import SCENES
from pipeline.training.data.table import Table
from pipeline.training.ray_train import DataError, prepare_table

pytestmark = pytest.mark.usefixtures("local_ray")


def table_of(count: int) -> bytes:
    """A Parquet file of scenes and captions, whose second picture is broken."""
    examples = SCENES.examples(9, 0, count, 80)
    files = []
    for picture, _ in examples:
        file = io.BytesIO()
        picture.save(file, "PNG")
        files.append(file.getvalue())
    files[1] = files[1][:100]
    written = io.BytesIO()
    pq.write_table(pa.table({"image": files, "prompt": [caption for _, caption in examples]}), written)
    return written.getvalue()


def trained(output: Path, *options: str, steps: int = 3) -> dict[str, torch.Tensor]:
    """The autoencoder's weights after some steps of the command."""
    arguments = ["train", "shapes-autoencoder", str(output), "--steps", str(steps), "--threads", "1", *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return load_file(output / "vae" / "diffusion_pytorch_model.safetensors")


def test_a_table_in_a_bucket_is_trained_on_without_its_broken_images(s3_bucket: str, tmp_path: Path) -> None:
    write_bytes(f"{s3_bucket}/own/part-0.parquet", table_of(20))
    trained(tmp_path, "--data", f"{s3_bucket}/own")
    assert torch.tensor(1e-40) * 1 > 0  # denormal numbers are as they were
    own = Table(tmp_path / "data")
    assert own.size == 19
    seen = own.examples(1, 0, 19, 64)
    assert {caption for _, caption in seen} <= {caption for _, caption in SCENES.examples(9, 0, 20, 80)}
    assert [caption for _, caption in seen] != [caption for _, caption in own.examples(1, 19, 19, 64)]
    assert {caption for _, caption in seen} == {caption for _, caption in own.examples(1, 19, 19, 64)}
    assert "circle" in own.words() or "square" in own.words()


def test_a_table_without_captions_is_refused_in_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "own.parquet")
    result = CliRunner().invoke(
        cli, ["train", "shapes-autoencoder", str(tmp_path / "out"), "--data", str(tmp_path / "own.parquet")]
    )
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].endswith("has no column prompt; training needs image and prompt")


def test_the_images_of_another_table_are_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.parquet").write_bytes(table_of(2))
    prepare_table(f"{tmp_path}/first.parquet", tmp_path / "data", 64)
    prepare_table(f"{tmp_path}/first.parquet", tmp_path / "data", 64)
    with pytest.raises(DataError, match=r"data holds the images of .*first\.parquet, 64 pixels wide, not those of"):
        prepare_table(f"{tmp_path}/second.parquet", tmp_path / "data", 64)
    with pytest.raises(DataError, match=r"first\.parquet, 128 wide; delete it, or give another OUTPUT"):
        prepare_table(f"{tmp_path}/first.parquet", tmp_path / "data", 128)


def test_two_workers_learn_what_one_does(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone")
    together = trained(tmp_path / "together", "--workers", "2")
    for name, weight in alone.items():
        torch.testing.assert_close(weight.float(), together[name].float(), atol=2e-3, rtol=0)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_the_weights_come_out_the_same(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", steps=30)
    killed: list[int] = []

    def kill() -> None:
        log = tmp_path / "together" / "autoencoder" / "log.jsonl"
        while not log.exists():  # its first line comes with step 20
            time.sleep(0.1)
        for process in psutil.process_iter(["cmdline"]):
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or ()):
                process.kill()
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    together = trained(tmp_path / "together", "--workers", "2", steps=30)
    killer.join(10)
    assert len(killed) == 1
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "together/autoencoder/log.jsonl").read_text().splitlines()
    ]
    assert steps == [20, 20]
    for name, weight in alone.items():
        torch.testing.assert_close(weight.float(), together[name].float(), atol=5e-3, rtol=0)
