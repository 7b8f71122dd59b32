"""Untrusted images: each bad one fails only its own row, quickly, with a clear reason."""

import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.config import RunConfig
from pipeline.manifest.rules import Rules
from pipeline.stages.prepare import PrepareRows
from pipeline.stages.rows import sha256_of
from tests.sample_images import file_of


def png_with_size(content: bytes, width: int, height: int) -> bytes:
    """Rewrite the size in a PNG's header, with a valid checksum."""
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def gif_without_end(frames: int) -> bytes:
    """Return a GIF of `frames` one-pixel frames without its trailer."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames


GOOD = file_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)))
BAD: dict[str, tuple[bytes, str]] = {
    "truncated": (GOOD[: len(GOOD) // 2], "truncated|damaged"),
    "empty": (b"", "empty|has no image"),
    "text.jpg": (b"<html>404 Not Found</html>", "not an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', "not an image"),
    "bomb": (file_of(Image.new("1", (9000, 9000))), "9000 x 9000 pixels; at most"),
    "line": (file_of(Image.new("1", (1, 60_000_000))), "1 x 60000000 pixels; .* a side under 64 counts as 64"),
    "false size": (png_with_size(GOOD, 6000, 6000), "truncated|damaged"),
}


FRAMES = gif_without_end(300_000)


def prepared(folder: Path, rows: list[dict]) -> list[dict]:
    config = RunConfig(task="inpaint", manifest=str(folder / "manifest.parquet"), output=str(folder / "out"))
    table = pa.Table.from_pylist(rows)
    (folder / "manifest.parquet").touch()
    stage = PrepareRows(config=config, rules=Rules(task="inpaint"), manifest=table.schema)
    return stage(table).to_pylist()


def test_each_bad_image_fails_only_its_own_row_and_quickly(tmp_path: Path) -> None:
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.png").write_bytes(GOOD)
    (tmp_path / "endless.gif").write_bytes(FRAMES)
    names = ["good.png", *BAD, "good.png"]
    rows = [{"id": str(index), "image": name, "mask": "good.png"} for index, name in enumerate(names)]
    rows += [{"id": f"mask {name}", "image": "good.png", "mask": name} for name in BAD]
    rows.append({"id": "endless.gif", "image": "endless.gif", "mask": "good.png"})
    started = time.process_time()
    results = {row["id"]: row for row in prepared(tmp_path, rows)}
    assert time.process_time() - started < 10
    for row_id in ("0", str(len(names) - 1)):
        assert results[row_id]["error_type"] is None
        assert results[row_id]["source_sha256"] == results[row_id]["mask_sha256"] == sha256_of(GOOD)
    assert results["endless.gif"]["error_type"] is None
    for index, (name, (_, reason)) in enumerate(BAD.items(), 1):
        for row, column in ((results[str(index)], "image"), (results[f"mask {name}"], "mask")):
            assert row["error_type"] == "ImageError", name
            assert row["error_message"].startswith(f"{column}: ")
            assert re.search(reason, row["error_message"]), (name, row["error_message"])


def test_images_in_the_hugging_face_convention_are_decoded(tmp_path: Path) -> None:
    row = {"id": "a", "image": {"bytes": GOOD, "path": "a.png"}, "mask": {"bytes": GOOD, "path": None}}
    [result] = prepared(tmp_path, [row])
    assert result["error_type"] is None
    assert (result["__image"]["width"], result["__image"]["height"]) == (64, 40)
