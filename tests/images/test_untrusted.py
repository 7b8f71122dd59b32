"""Pictures from strangers: each bad one fails its own row, soon, with a reason that a person understands."""

import io
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


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def png_that_says(content: bytes, width: int, height: int) -> bytes:
    """A PNG whose header has been rewritten, with a checksum that fits."""
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def gif_without_end(frames: int) -> bytes:
    """A GIF of very many one-pixel frames, and no trailer."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames


GOOD = file_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)))
BAD: dict[str, tuple[bytes, str]] = {
    "truncated": (GOOD[: len(GOOD) // 2], "cut off|damaged"),
    "empty": (b"", "empty|has no image"),
    "text.jpg": (b"<html>404 Not Found</html>", "no picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', "no picture"),
    "bomb": (file_of(Image.new("1", (9000, 9000))), "9000 x 9000 pixels; at most"),
    "line": (file_of(Image.new("L", (30_000, 1))), "30000 x 1 pixels; no side"),
    "liar": (png_that_says(GOOD, 6000, 6000), "cut off|damaged"),
    "endless.gif": (gif_without_end(300_000), "several frames"),
}


def prepared(folder: Path, rows: list[dict]) -> list[dict]:
    config = RunConfig(task="inpaint", manifest=str(folder / "manifest.parquet"), output=str(folder / "out"))
    table = pa.Table.from_pylist(rows)
    stage = PrepareRows(config=config, rules=Rules(task="inpaint"), manifest=table.schema)
    return stage(table).to_pylist()


def test_each_bad_picture_fails_its_row_alone_and_soon(tmp_path: Path) -> None:
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.png").write_bytes(GOOD)
    names = ["good.png", *BAD, "good.png"]
    rows = [{"id": str(index), "image": name, "mask": "good.png"} for index, name in enumerate(names)]
    rows += [{"id": f"mask {name}", "image": "good.png", "mask": name} for name in BAD]
    started = time.process_time()
    made = {row["id"]: row for row in prepared(tmp_path, rows)}
    assert time.process_time() - started < 10
    for row_id in ("0", str(len(names) - 1)):
        assert made[row_id]["error_type"] is None
        assert made[row_id]["source_sha256"] == made[row_id]["mask_sha256"] == sha256_of(GOOD)
    for index, (name, (_, reason)) in enumerate(BAD.items(), 1):
        for row, column in ((made[str(index)], "image"), (made[f"mask {name}"], "mask")):
            assert row["error_type"] == "ImageError", name
            assert row["error_message"].startswith(f"{column}: ")
            assert re.search(reason, row["error_message"]), (name, row["error_message"])


def test_the_pictures_of_a_run_are_a_manifest_s_pictures(tmp_path: Path) -> None:
    row = {"id": "a", "image": {"bytes": GOOD, "path": "a.png"}, "mask": {"bytes": GOOD, "path": None}}
    [made] = prepared(tmp_path, [row])
    assert made["error_type"] is None
    assert (made["__image"]["width"], made["__image"]["height"]) == (64, 40)
