"""Files with several frames or pages: the main picture is taken, whatever the format."""

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from pipeline.images.decode import decode_image, decode_mask, decode_with_metadata
from tests.sample_images import file_of, ramp

MAIN = Image.fromarray(ramp())


@pytest.mark.parametrize("image_format", ["MPO", "GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_is_taken(image_format: str) -> None:
    size = (7, 5) if image_format in ("MPO", "TIFF") else MAIN.size
    other = Image.new("RGB", size, "#00ff00")
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    alone = "JPEG" if image_format == "MPO" else image_format
    frames = file_of(MAIN, image_format, save_all=True, append_images=[other], **lossless)
    single = file_of(MAIN, alone, **lossless)
    assert np.abs(decode_image(frames).astype(int) - decode_image(single)).max() <= (image_format == "AVIF") * 8
    assert decode_mask(frames).shape == decode_with_metadata(frames)[0].shape[:2] == (12, 20)


@pytest.mark.parametrize("kind", [1, 4])  # a thumbnail, a transparency mask
def test_a_tiff_page_that_is_a_thumbnail_or_a_mask_is_not_the_main_picture(kind: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = kind
    small, main = MAIN.resize((5, 3)), MAIN.copy()
    small.encoderinfo = {"tiffinfo": tags}
    main.encoderinfo = {"tiffinfo": TiffImagePlugin.ImageFileDirectory_v2()}
    pages = file_of(small, "TIFF", save_all=True, append_images=[main], tiffinfo=tags)
    assert (decode_image(pages) == ramp()).all()
    alone = file_of(small, "TIFF", tiffinfo=tags)
    assert decode_image(alone).shape == (3, 5, 3)
