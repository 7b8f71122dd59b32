"""Folders of images: which files become rows, and what is said about the others."""

import os
from pathlib import Path

import pytest
from PIL import Image

from jobs import cli
from pipeline import storage
from pipeline.errors import BuildError, printable
from pipeline.images.decode import FORMATS
from pipeline.manifest.image_folder import IMAGE_SUFFIXES, from_folder

Captured = pytest.CaptureFixture[str]


def test_the_suffixes_are_those_that_pillow_gives_the_formats_that_are_read() -> None:
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert set(IMAGE_SUFFIXES) - {".avif", ".avifs"} == known - {".avif", ".avifs", ".pfm"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    folder.mkdir()
    for name in ("a.jpg", "b.JPG", "c.jfif", "d.jpe", "e.gif", "f.ppm", "g.png", "new\nline.png", "h.avif", "i.jp2"):
        (folder / name).write_bytes(b"x")
    return folder


def built(capsys: Captured, folder: Path) -> tuple[int, str]:
    status = cli.run(["manifest", "build", str(folder), str(folder.parent / "m.parquet")])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_every_format_that_is_read_is_taken(capsys: Captured, pictures: Path) -> None:
    assert built(capsys, pictures) == (0, f"10 rows written to {pictures.parent}/m.parquet\n")


def test_files_that_are_left_out_are_counted_and_named(capsys: Captured, pictures: Path) -> None:
    for name in (b"caf\xe9.png", b"z.txt", b"y.txt", b"README"):
        Path(os.fsdecode(bytes(pictures) + b"/" + name)).write_bytes(b"x")
    (pictures / "empty.png").touch()
    (pictures / "broken.png").symlink_to("nowhere")
    os.mkfifo(pictures / "pipe.png")
    (pictures / ".DS_Store").write_bytes(b"x")
    status, said = built(capsys, pictures)
    assert status == 0 and said.startswith("10 rows written to ")
    notes = set(said.strip().partition("; left out: ")[2].split("; "))
    assert notes == {
        r"1 file with a name that is not UTF-8 (caf\xe9.png)",
        "3 files with another suffix (.txt, README)",
        "1 file of 0 bytes (empty.png)",
        "2 files that cannot be read (broken.png, pipe.png)",
    }


def test_empty_files_in_a_bucket_are_left_out(s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/pics/a.png", b"x")
    storage.write_bytes(f"{s3_bucket}/pics/b.png", b"")
    source = from_folder(f"{s3_bucket}/pics", f"{s3_bucket}/m.parquet")
    assert [row["image"] for row in source.rows()] == ["pics/a.png"]
    assert source.left_out == ("1 file of 0 bytes (b.png)",)


def test_a_folder_without_a_usable_image_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(BuildError, match=r"the folder contains no image .*; 1 file of 0 bytes \(a\.png\)"):
        from_folder(str(tmp_path), str(tmp_path / "m.parquet"))


def test_a_message_about_any_name_is_one_line(tmp_path: Path) -> None:
    name = str(tmp_path / "new\nline\u2028\x1b[31m\udce9\ud800.png")
    assert len(printable(name).splitlines()) == 1 and printable(name).isascii()
    with pytest.raises(storage.StorageError, match=r"new\\nline\\u2028\\x1b.31m.*: there is no such file") as caught:
        storage.read_bytes(str(tmp_path / "new\nline\u2028\x1b[31m.png"))
    assert len(str(caught.value).splitlines()) == 1
