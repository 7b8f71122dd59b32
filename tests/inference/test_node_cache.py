"""Checkpoints from object storage: copied once to a machine, whole, and the driver's."""

import multiprocessing
import os
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.errors import CheckpointError
from pipeline.inference import node_cache
from pipeline.inference.node_cache import WeightHashes, local_checkpoint
from pipeline.stages.denoise import Denoise
from pipeline.storage import locate, write_bytes
from tests.cheap import load_cheap

FILES = {"model_index.json": b"{}", "unet/config.json": b"{}", "unet/a.safetensors": os.urandom(3_000_000)}


@pytest.fixture
def model(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    for name, content in {**FILES, "unet/a.bin": b"pickle"}.items():
        write_bytes(f"{s3_bucket}/models/one/{name}", content)
    return f"{s3_bucket}/models/one"


def test_a_storage_of_several_names_holds_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    for name, content in FILES.items():
        write_bytes(f"memory://models/one/{name}", content)  # whose files are listed as memory:///models/one/...
    assert (local_checkpoint("memory://models/one") / "unet" / "a.safetensors").read_bytes() == FILES[
        "unet/a.safetensors"
    ]


def fetch(model: str, copies: "multiprocessing.Queue[str]") -> None:
    copy = node_cache._copy

    def told(model: str, sizes: dict[str, int], folder: Path) -> None:
        copies.put("copied")
        copy(model, sizes, folder)

    node_cache._copy = told
    copies.put(str(local_checkpoint(model)))


def test_processes_that_start_at_once_copy_it_once(model: str) -> None:
    context = multiprocessing.get_context("spawn")
    copies = context.Queue()
    processes = [context.Process(target=fetch, args=(model, copies)) for _ in range(3)]
    for process in processes:
        process.start()
    told = [copies.get(timeout=120) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert told.count("copied") == 1
    (folder,) = {Path(name) for name in told if name != "copied"}
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES


def test_a_copy_that_is_there_is_taken_as_it_is_where_nothing_can_be_written(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(place: Path) -> None:
        raise OSError(f"{place}: read-only file system")

    folder = local_checkpoint(model)
    monkeypatch.setattr(node_cache, "_exclusive_lock", refused)
    assert local_checkpoint(model) == folder


def test_what_a_process_left_that_died_half_way_is_not_taken(model: str) -> None:
    folder = local_checkpoint(model)
    half = folder.rename(folder.parent / f".{folder.name}")
    (half / "unet" / "a.safetensors").write_bytes(b"half")
    (half / "unet" / "stale.json").write_bytes(b"{}")
    assert local_checkpoint(model) == folder
    assert (folder / "unet" / "a.safetensors").read_bytes() == FILES["unet/a.safetensors"]
    assert not (folder / "unet" / "stale.json").exists() and not half.exists()


def test_a_file_that_comes_short_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = locate(model)[0]
    monkeypatch.setattr(filesystem, "get_file", lambda path, to: Path(to).write_bytes(b"half"))
    with pytest.raises(CheckpointError, match="models/one/.* 4 of .* bytes were received; try again"):
        local_checkpoint(model)


def test_an_actor_with_other_weights_than_the_driver_does_not_start(tmp_path: Path) -> None:
    config = RunConfig(task="generate", manifest="m.parquet", output=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"its sha256 is 0000.*, the driver's is 1111.*; delete that node's copy"):
        Denoise(config, "run", "cpu", lambda amounts: None, load_cheap, weights=WeightHashes(model="1" * 64))
    Denoise(config, "run", "cpu", lambda amounts: None, load_cheap, weights=WeightHashes(model="0" * 64)).close()
