"""Labels and scores by a CLIP on a real local Ray: labels, bad rows, a resumed run."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from jobs import cli
from pipeline.images.decode import decode_image
from pipeline.inference.clip_score import load_clip_scorer
from pipeline.output.audit import check_output
from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import SCENES
from pipeline.training.data.scenes import Background, Scene, Thing
from tests.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.usefixtures("local_ray")

LABELS = [f"a {color} {shape} on a white background" for color in ("red", "blue") for shape in ("circle", "star")]


def rows_of(output: Path, folder: str = "data") -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pads.dataset(output / folder, format="parquet").to_table().to_pylist()}


def classify(manifest: Path, output: Path, *options: str) -> int:
    labels = [part for label in LABELS for part in ("--label", label)]
    return cli.run(["classify", str(manifest), str(output), *labels, "--actors", "1", *options])


def write_images(path: Path) -> dict[str, str]:
    """Write drawn scenes as a table of images, one of them truncated; return their expected labels."""
    wanted: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for index in range(24):
        color, shape = ("red", "blue")[index % 2], ("circle", "star")[index // 2 % 2]
        thing = Thing(shape, color, "large", 0.4 + index / 120, 0.5, 0.24, says_size=False)
        buffer = io.BytesIO()
        draw(Scene((thing,), Background("plain", ("white",))), 80 + index).save(buffer, "PNG")
        rows.append({"id": f"r{index:02}", "image": buffer.getvalue(), "width": "kept as it is", "shelf": index})
        wanted[f"r{index:02}"] = f"a {color} {shape} on a white background"
    rows.append({"id": "broken", "image": rows[0]["image"][:100], "width": "kept as it is", "shelf": 99})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return wanted


def test_images_get_their_labels_and_only_the_bad_one_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = write_images(tmp_path / "m.parquet")
    assert classify(tmp_path / "m.parquet", tmp_path / "out") == 3
    actual = rows_of(tmp_path / "out")
    assert {row_id: row["label"] for row_id, row in actual.items()} == wanted
    for row in actual.values():
        assert sum(row["label_scores"]) == pytest.approx(1)
        assert row["label_score"] == max(row["label_scores"]) == row["label_scores"][LABELS.index(row["label"])]
        assert (row["width"], row["model"], row["task"]) == ("kept as it is", "shapes-clip", "classify")
    assert "image" not in actual["r00"]
    assert list(rows_of(tmp_path / "out", "failed")) == ["broken"]
    assert check_output(str(tmp_path / "out"), str(tmp_path / "m.parquet")).count == 0

    capfd.readouterr()
    assert classify(tmp_path / "m.parquet", tmp_path / "out") == 3
    assert "25 rows were there already" in capfd.readouterr().out
    assert classify(tmp_path / "m.parquet", tmp_path / "out", "--template", "{}!") == 1
    assert "template is {}!, was {}" in capfd.readouterr().err

    assert classify(tmp_path / "m.parquet", tmp_path / "other", "--actors", "2", "--limit", "7") == 0
    for row_id, row in rows_of(tmp_path / "other").items():
        assert row["label_scores"] == actual[row_id]["label_scores"], "a picture's scores depend on it alone"


def test_a_picture_can_be_scored_against_its_prompt(tmp_path: Path) -> None:
    captions = [caption for _, caption in SCENES.examples(1, 0, 5, 64)]
    pq.write_table(pa.table({"id": list("abcde"), "prompt": captions}), tmp_path / "m.parquet")
    model = str(tiny_checkpoint(tmp_path / "tiny"))
    options = ["--model", model, "--num-inference-steps", "2", "--lanes", "4", "--actors", "1"]
    command = ["generate", str(tmp_path / "m.parquet"), str(tmp_path / "out"), *options]
    assert cli.run([*command, "--clip-score", "shapes-clip"]) == 0
    score = load_clip_scorer("shapes-clip", 1, "cpu")
    for row in rows_of(tmp_path / "out").values():
        expected = score(decode_image(row["image"]["bytes"]), row["prompt"])
        assert row["clip_score"] == pytest.approx(expected, abs=1e-4)
        assert 0 <= row["clip_score"] <= 100


def test_invalid_labels_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "m.parquet")
    command = ["classify", str(tmp_path / "m.parquet"), str(tmp_path / "out"), "--label", "a"]
    for options, reason in (
        ([], "give two or more"),
        (["--label", "b", "--label", "a"], "given more than once"),
        (["--label", "b", "--template", "a photo"], "must hold {}"),
        (["--label", "b", "--model", "shapes"], "is not a CLIP"),
    ):
        assert cli.run([*command, *options]) == 1
        error = capfd.readouterr().err
        assert reason in error and len(error.splitlines()) == 1
