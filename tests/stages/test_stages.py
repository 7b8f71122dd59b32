"""The stages without Ray: one row in, one row out, whatever is wrong with a row or with the actor."""

import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.config import RowDefaults, RunConfig
from pipeline.diffusion.catalog import canonical_name
from pipeline.diffusion.engine import LaneEngine
from pipeline.errors import ActorError
from pipeline.inference.task import RowResult
from pipeline.inference.worker import LaneWorker
from pipeline.manifest.identity import derive_seed
from pipeline.manifest.rules import Rules
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from pipeline.stages.rows import sha256_of
from pipeline.tasks.rows import Row
from tests.cheap import CheapTask, load_broken, load_cheap, zeros
from tests.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def config_for(folder: Path, model: Path | str = "none", **changes: Any) -> RunConfig:
    (folder / "manifest.parquet").touch()
    config = RunConfig(
        task="generate",
        manifest=str(folder / "manifest.parquet"),
        output=str(folder / "out"),
        model=str(model),
        defaults=RowDefaults(num_inference_steps=3),
        lanes=4,
    )
    return replace(config, **changes)


def through(config: RunConfig, rows: list[dict[str, Any]], load: Any = None) -> list[dict[str, Any]]:
    """The rows after all three stages."""
    table = pa.Table.from_pylist(rows)
    prepared = PrepareRows(config=config, rules=Rules(sampler_name=canonical_name), manifest=table.schema)(table)
    denoise = Denoise(config, "run", "cpu", lambda amounts: None, load)
    try:
        result = denoise(prepared)
    finally:
        denoise.close()
    return EncodeImages(config=config, manifest=table.schema)(result).to_pylist()


MIXED = [
    {"id": f"row {index}", "prompt": prompt, "seed": seed, "num_inference_steps": steps, "sampler": sampler}
    | {"guidance_scale": scale, "width": width, "label": index, "__index_level_0__": index}
    for index, (prompt, seed, steps, sampler, scale, width) in enumerate(
        [
            ("a red circle", 1, 5, "ddim", 3.0, 64),
            ("a blue square", 2, 7, "euler_a", 1.0, 64),
            ("cats on the left", None, 4, "dpmpp_2m", 9.0, 64),
            ("a red circle", 1, 5, "ddim", 3.0, 32),
            ("a green triangle", 4, 6, "pndm", 2.0, 64),
        ]
    )
]


def test_a_row_comes_out_the_same_beside_others_and_alone(tmp_path: Path, checkpoint: Path) -> None:
    config = config_for(tmp_path, checkpoint)
    together = {row["id"]: row["sha256"] for row in through(config, MIXED)}
    alone = {row["id"]: row["sha256"] for one in MIXED for row in through(config, [one])}
    backwards = {row["id"]: row["sha256"] for row in through(config, MIXED[::-1])}
    assert together == alone == backwards
    assert len(set(together.values())) == len(MIXED)


def test_the_output_says_what_was_in_force(tmp_path: Path, checkpoint: Path) -> None:
    rows = through(config_for(tmp_path, checkpoint), MIXED)
    assert [row["id"] for row in rows] == [row["id"] for row in MIXED]
    for result, asked in zip(rows, MIXED, strict=True):
        assert result["error_type"] is None
        assert result["label"] == asked["label"]
        for name in ("prompt", "num_inference_steps", "sampler", "guidance_scale", "width"):
            assert result[name] == asked[name]
        picture = Image.open(io.BytesIO(result["image"]["bytes"]))
        assert picture.size == (result["width"], result["height"]) == (asked["width"], 64)
        assert result["sha256"] == sha256_of(result["image"]["bytes"])
        assert json.loads(picture.info["parameters"])["seed"] == result["seed"]
        assert result["seconds"] > 0
    assert rows[2]["seed"] == derive_seed("row 2", 0)


def test_bad_rows_go_on_as_rows_and_their_neighbors_are_made(tmp_path: Path) -> None:
    rows = [
        {"id": "good", "prompt": "fine", "guidance_scale": 2.0},
        {"id": "nan", "prompt": "fine", "guidance_scale": float("nan")},
        {"id": "refused", "prompt": "refuse", "guidance_scale": 2.0},
        {"id": None, "prompt": "fine", "guidance_scale": 2.0},
        {"id": "also good", "prompt": "fine", "guidance_scale": None},
    ]
    good, nan, refused, nameless, other = through(config_for(tmp_path), rows, load_cheap)
    assert good["error_type"] is None and other["error_type"] is None
    assert good["sha256"] and other["sha256"]
    assert nan["error_type"] == "InvalidRow" and "guidance_scale is nan" in nan["error_message"]
    assert json.loads(nan["__row"])["guidance_scale"] == "nan"
    assert (refused["error_type"], refused["error_message"]) == ("ValueError", "this prompt is refused")
    assert nameless["error_type"] == "InvalidRow" and nameless["id"].startswith("no-id-")
    assert {row["image"] for row in (nan, refused, nameless) if not row["sha256"]} == {None}


def test_image_to_image_reads_paths_and_bytes_below_the_manifest(tmp_path: Path, checkpoint: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 72, 3), (200, 30, 60), np.uint8)).save(buffer, "PNG")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "broken.png").write_bytes(buffer.getvalue()[:60])
    base = {"prompt": "a red circle", "seed": 3, "strength": 0.7}
    paths = ["sub/a.png", None, "broken.png", "missing.png", "/etc/passwd", "../a.png"]
    config = config_for(tmp_path, checkpoint)
    rows = [{**base, "id": str(index), "image": path} for index, path in enumerate(paths)]
    rows[1] |= {"strength": None}
    result = through(config, rows)
    assert [row["error_type"] for row in result] == [None, None, "ImageError", *["StorageError"] * 3]
    assert (result[0]["width"], result[0]["height"], result[0]["strength"]) == (72, 40, 0.7)
    assert result[0]["source_sha256"] == sha256_of(buffer.getvalue())
    assert (result[1]["width"], result[1]["strength"], result[1]["source_sha256"]) == (64, None, None)
    [held] = through(config, [{**base, "id": "0", "image": {"bytes": buffer.getvalue(), "path": None}}])
    assert held["sha256"] == result[0]["sha256"]
    assert f"<{len(buffer.getvalue()):,} bytes>" in held["__row"]


@pytest.mark.parametrize(("image_format", "kind"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
def test_every_format_is_what_it_says(tmp_path: Path, image_format: Any, kind: str) -> None:
    rows = [{"id": "../a b", "prompt": "x", "seed": 5}]
    [row] = through(config_for(tmp_path, format=image_format), rows, load_cheap)
    assert Image.open(io.BytesIO(row["image"]["bytes"])).format == kind
    assert row["format"] == image_format
    assert "/" not in row["image"]["path"] and not row["image"]["path"].startswith(".")


def test_concurrent_calls_share_the_lanes() -> None:
    engine = LaneEngine(zeros, lanes=8, device="cpu", dtype=torch.float32)
    started, release = threading.Event(), threading.Event()
    task = CheapTask()
    first_request = task.request

    def held_back(key: Any, row: Any) -> Any:
        started.set()
        release.wait()
        return first_request(key, row)

    task.request = held_back  # pyright: ignore[reportAttributeAccessIssue]
    lanes = LaneWorker(task, engine, threads=1, report=lambda amounts: None)
    outcomes: dict[str, Any] = {}

    def call(name: str, rows: int) -> None:
        outcomes[name] = lanes.run([Row(prompt=name, seed=seed) for seed in range(rows)])

    counts = {"first": 1, "one": 4, "two": 3}
    callers = [threading.Thread(target=call, args=item, daemon=True) for item in counts.items()]
    callers[0].start()
    assert started.wait(60)
    for caller in callers[1:]:
        caller.start()
    deadline = time.monotonic() + 60
    while len(lanes._waiting) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    release.set()
    for caller in callers:
        caller.join(60)
    lanes.close()
    assert engine.stats.calls == 1
    for name, count in counts.items():
        assert [result.parameters.prompt for result in outcomes[name] if isinstance(result, RowResult)] == [
            name
        ] * count
        assert [result.parameters.seed for result in outcomes[name]] == list(range(count))


class LargePictures(CheapTask):
    """Decodes in parts, each of which takes its time."""

    def decode(self, latents: Any, row: Any, heartbeat: Any) -> np.ndarray:
        for _ in range(6):
            time.sleep(0.3)
            heartbeat()
        return super().decode(latents, row, heartbeat)


def test_a_picture_that_is_decoded_for_long_is_heard_of_meanwhile() -> None:
    reported: list[dict[str, float]] = []
    engine = LaneEngine(zeros, lanes=4, device=torch.device("cpu"), dtype=torch.float32)
    thread = LaneWorker(LargePictures(), engine, threads=1, report=lambda amounts: reported.append(dict(amounts)))
    try:
        [result] = thread.run([Row(id="a", prompt="x", seed=1)])
    finally:
        thread.close()
    assert isinstance(result, RowResult)
    assert sum(bool(amounts.get("parts_decoded")) and not amounts.get("rows") for amounts in reported) >= 2


def test_when_the_engine_dies_every_waiting_call_raises(tmp_path: Path) -> None:
    denoise = Denoise(config_for(tmp_path), "run", "cpu", lambda amounts: None, load_broken)
    table = pa.table({"id": ["a"], "prompt": ["x"]})
    prepared = PrepareRows(config=config_for(tmp_path), rules=Rules(), manifest=table.schema)(table)
    raised: list[BaseException] = []

    def call() -> None:
        try:
            denoise(prepared)
        except ActorError as error:
            raised.append(error)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(raised) == 3
    assert all("out of memory" in str(error) for error in raised)
    with pytest.raises(ActorError, match="out of memory"):
        denoise(prepared)
