"""Checkpoints from object storage: copied once to a machine, whole, and the driver's."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, StorageUnavailableError
from pipeline.inference import node_cache
from pipeline.inference.node_cache import WeightHashes, local_checkpoint
from pipeline.models.checkpoint.layout import names_in_use
from pipeline.stages.denoise import Denoise
from pipeline.storage import delete, locate, write_bytes
from tests.cheap import load_cheap

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INDEX = json.dumps({"unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": ["x", "y"]}).encode()
FILES = {"model_index.json": INDEX, "unet/config.json": b"{}", WEIGHTS: os.urandom(3_000_000)}
UNUSED = (
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/deeper/config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "stray/config.json",
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
)
"""Files that no checkpoint of FILES needs."""
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def model(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    for name, content in {**FILES, **dict.fromkeys(UNUSED, b"unused")}.items():
        write_bytes(f"{s3_bucket}/models/one/{name}", content)
    return f"{s3_bucket}/models/one"


def test_a_storage_of_several_names_holds_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    for name, content in FILES.items():
        write_bytes(f"memory://models/one/{name}", content)  # whose files are listed as memory:///models/one/...
    assert (local_checkpoint("memory://models/one") / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch(model: str, copies: "multiprocessing.Queue[str]") -> None:
    copy = node_cache._copy

    def counted(url: str, path: Path) -> None:
        copies.put("copied")
        copy(url, path)

    node_cache._copy = counted
    copies.put(str(local_checkpoint(model)))


def test_processes_that_start_at_once_copy_each_file_in_use_once(model: str) -> None:
    context = multiprocessing.get_context("spawn")
    copies = context.Queue()
    processes = [context.Process(target=fetch, args=(model, copies)) for _ in range(3)]
    for process in processes:
        process.start()
    received = [copies.get(timeout=120) for _ in range(len(FILES) + len(processes))]
    for process in processes:
        process.join(60)
    assert received.count("copied") == len(FILES)
    (folder,) = {Path(name) for name in received if name != "copied"}
    assert files_below(folder) == FILES


def test_only_the_weights_of_the_precision_are_copied(model: str) -> None:
    write_bytes(f"{model}/{HALF}", b"half")
    folder = local_checkpoint(model, half=True)
    assert {name for name in files_below(folder) if name.endswith(".safetensors")} == {HALF}
    assert local_checkpoint(model, half=False) == folder
    assert {name for name in files_below(folder) if name.endswith(".safetensors")} == {HALF, WEIGHTS}


def test_shards_are_copied_by_their_index(model: str) -> None:
    delete(f"{model}/{WEIGHTS}")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "../../outside.safetensors"}}
    for name in ("one", "two", "three"):
        write_bytes(f"{model}/unet/{name}.safetensors", name.encode())
    write_bytes(f"{model}/{WEIGHTS}.index.json", json.dumps(index).encode())
    names = files_below(local_checkpoint(model))
    assert {name for name in names if name.endswith(".safetensors")} == {"unet/one.safetensors", "unet/two.safetensors"}


@pytest.mark.parametrize(
    "key", ["../out.json", "unet/../../out.json", "/out.json", "unet//config.json", "tokenizer/.."]
)
def test_no_key_leads_out_of_the_cache(key: str) -> None:
    names = names_in_use({"model_index.json", key}, lambda name: json.loads(INDEX), half=False)
    assert all(".." not in name and not name.startswith("/") for name in names)


def test_a_transient_error_is_no_reason_to_start_over(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = locate(model)[0]
    answer, failures = filesystem.cat_file, iter([ConnectionError("reset"), TimeoutError("slow")])

    def cat_file(*arguments: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return answer(*arguments, **options)

    monkeypatch.setattr(filesystem, "cat_file", cat_file)
    assert (local_checkpoint(model) / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("home", ["none", "read-only"])
def test_a_cache_that_cannot_be_written_is_told_in_one_line(
    home: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATENTMILL_CACHE")
    (tmp_path / "file").write_text("in the way")  # root may write to every folder
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if home == "none":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(CheckpointError, match="set LATENTMILL_CACHE"):
        local_checkpoint(model)


def test_a_copy_that_is_there_is_taken_as_it_is_where_nothing_can_be_written(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path) -> None:
        raise OSError(f"{folder}: read-only file system")

    folder = local_checkpoint(model)
    monkeypatch.setattr(node_cache, "_exclusive_lock", refused)
    assert local_checkpoint(model) == folder


def test_what_a_process_left_that_died_half_way_is_not_taken(model: str) -> None:
    weights = local_checkpoint(model) / WEIGHTS
    weights.unlink()
    half = weights.with_name(f".{weights.name}.part")
    half.write_bytes(b"half")
    assert (local_checkpoint(model) / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert not half.exists()


def test_a_file_that_comes_short_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = locate(model)[0]
    answer = filesystem.cat_file
    short = lambda path, **options: answer(path, **options)[:-1] if options else answer(path)  # noqa: E731
    monkeypatch.setattr(filesystem, "cat_file", short)
    with pytest.raises(StorageUnavailableError, match="models/one/.*: the server sent .* bytes instead of"):
        local_checkpoint(model)


def test_an_actor_with_other_weights_than_the_driver_does_not_start(tmp_path: Path) -> None:
    config = RunConfig(task="generate", manifest="m.parquet", output=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"its sha256 is 0000.*, the driver's is 1111.*; delete that node's copy"):
        Denoise(config, "run", "cpu", lambda amounts: None, load_cheap, weights=WeightHashes(model="1" * 64))
    Denoise(config, "run", "cpu", lambda amounts: None, load_cheap, weights=WeightHashes(model="0" * 64)).close()
