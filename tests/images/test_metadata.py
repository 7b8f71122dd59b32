"""Color profile, EXIF and resolution are carried from the source to the new file."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.images.decode import decode_with_metadata
from pipeline.images.encode import encode_image
from pipeline.images.metadata import ImageMetadata
from tests.sample_images import file_of, ramp


def photograph(**options: object) -> bytes:
    """A rotated JPEG with a color profile, 300 dots per inch and its photographer's name."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "A. Photographer"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8769)[0xA002] = 20
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return file_of(Image.fromarray(ramp()), "JPEG", exif=exif.tobytes(), icc_profile=profile, dpi=(300, 300))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_metadata_is_carried_to_the_new_file(image_format: str) -> None:
    pixels, tags = decode_with_metadata(source := photograph())
    assert pixels.shape == (20, 12, 3)
    assert np.abs(pixels.astype(int) - np.rot90(ramp(), 3)).mean() < 6
    written = encode_image(pixels, image_format, metadata={"seed": "7"}, tags=tags)  # type: ignore[arg-type]
    again = Image.open(io.BytesIO(written))
    assert again.info["icc_profile"] == Image.open(io.BytesIO(source)).info["icc_profile"]
    exif = again.getexif()
    assert exif[0x013B] == "A. Photographer"
    assert exif.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
    assert 0x0112 not in exif and 0xA002 not in exif.get_ifd(0x8769)
    dpi = again.info["dpi"] if image_format != "webp" else (exif[0x011A], exif[0x011B])
    assert [round(float(value)) for value in dpi] == [300, 300]
    assert encode_image(pixels, image_format, tags=tags) == encode_image(pixels, image_format, tags=tags)  # type: ignore[arg-type]


@pytest.mark.parametrize("description", [None, "scan"])
def test_metadata_of_over_64_kilobytes_is_shortened_for_jpeg(description: str | None) -> None:
    exif = Image.Exif()
    exif[0x013B], exif[0x8298] = "A. Photographer", "C" * 30_000
    exif.get_ifd(0x8769).update({0x927C: b"M" * 70_000, 0x9003: "2024:05:06 07:08:09"})
    if description:
        exif[0x010E] = description
    tags = ImageMetadata(exif=exif.tobytes())
    written = Image.open(io.BytesIO(encode_image(ramp(), "jpeg", metadata={"prompt": "x" * 70_000}, tags=tags)))
    read = written.getexif()
    assert (read[0x013B], read.get_ifd(0x8769)[0x9003]) == ("A. Photographer", "2024:05:06 07:08:09")
    assert 0x927C not in read.get_ifd(0x8769) and read[0x8298] == "C" * 30_000
    assert read[0x010E] == description or (read[0x010E].startswith("prompt: xxx") and read[0x010E].endswith("x..."))


def test_the_metadata_of_a_rotated_tiff_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "A. Photographer"
    pixels, tags = decode_with_metadata(file_of(Image.fromarray(ramp()), "TIFF", exif=exif, dpi=(300, 300)))
    assert pixels.shape == (20, 12, 3) and tags.dpi == (300, 300)
    written = Image.open(io.BytesIO(encode_image(pixels, "png", tags=tags)))
    assert written.getexif()[0x013B] == "A. Photographer" and 0x0112 not in written.getexif()


def test_a_profile_of_grays_is_not_written_for_colors() -> None:
    profile = b"\0" * 16 + b"GRAY" + b"\0" * 108
    pixels, tags = decode_with_metadata(file_of(Image.fromarray(ramp()[..., 0]), icc_profile=profile))
    for image_format, expected in (("png", profile), ("jpeg", profile), ("webp", None)):
        written = encode_image(pixels, image_format, tags=tags)  # type: ignore[arg-type]
        assert Image.open(io.BytesIO(written)).info.get("icc_profile") == expected
