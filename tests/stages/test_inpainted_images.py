"""Inpainting through all stages: channels and metadata of the source are in the new file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageCms

from pipeline.config import RowDefaults, RunConfig
from pipeline.manifest.rules import Rules
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from tests.checkpoints import tiny_checkpoint
from tests.sample_images import file_of, ramp

MASK = np.zeros((12, 20), np.uint8)
MASK[4:8, 6:14] = 255


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def painted(folder: Path, model: Path, images: dict[str, bytes], mask: np.ndarray) -> dict[str, Any]:
    """Return the rows of the images, by id, after all stages."""
    (folder / "m.parquet").touch()
    defaults = RowDefaults(num_inference_steps=1, guidance_scale=1.0)
    config = RunConfig(
        task="inpaint", manifest=str(folder / "m.parquet"), output="", model=str(model), defaults=defaults
    )
    columns = {
        "id": list(images),
        "image": list(images.values()),
        "mask": [file_of(Image.fromarray(mask))] * len(images),
    }
    table = pa.table(columns)
    prepared = PrepareRows(config=config, rules=Rules(task="inpaint"), manifest=table.schema)(table)
    denoise = Denoise(config, "run", "cpu", lambda amounts: None)
    try:
        rows = EncodeImages(config=config, manifest=table.schema)(denoise(prepared)).to_pylist()
    finally:
        denoise.close()
    assert [row["error_message"] for row in rows] == [None] * len(images)
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize("mask", [MASK, 0 * MASK])
def test_channels_and_metadata_are_kept(tmp_path: Path, checkpoint: Path, mask: np.ndarray) -> None:
    rgb, alpha = ramp(), np.full((12, 20), 77, np.uint8)
    exif = Image.Exif()
    exif[0x013B] = "A. Photographer"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sources = {
        "gray": Image.fromarray(rgb[..., 0]),
        "gray and alpha": Image.fromarray(np.dstack([rgb[..., 0], alpha])),
        "color": Image.fromarray(rgb),
        "color and alpha": Image.fromarray(np.dstack([rgb, alpha])),
    }
    tags = {"dpi": (300, 300), "exif": exif.tobytes()}
    files = {name: file_of(picture, **tags) for name, picture in sources.items()}
    files["profile"] = file_of(sources["color"], icc_profile=profile, **tags)
    rows = painted(tmp_path, checkpoint, files, mask)
    for name, content in files.items():
        source, result = (Image.open(io.BytesIO(data)) for data in (content, rows[name]["image"]["bytes"]))
        assert result.mode == source.mode
        assert (np.asarray(result)[mask == 0] == np.asarray(source)[mask == 0]).all()
        assert result.getexif()[0x013B] == "A. Photographer"
        assert round(result.info["dpi"][0]) == 300
        assert result.info.get("icc_profile") == source.info.get("icc_profile")
