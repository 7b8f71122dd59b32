"""Decoding of untrusted files: pixels, modes and errors."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images.decode import decode_image, decode_mask, decode_with_metadata
from pipeline.images.encode import encode_image
from tests.sample_images import file_of, ramp


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_a_rotated_photograph_becomes_upright(orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = file_of(Image.fromarray(ramp()), exif=exif)
    assert np.array_equal(decode_image(stored), np.rot90(ramp(), turns))


def test_transparency_becomes_white_in_an_image_and_black_in_a_mask() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    assert decode_image(file_of(picture))[0, 1].tolist() == [255, 255, 255]
    assert decode_mask(file_of(picture)).tolist() == [[255, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_is_converted_to_rgb(mode: str) -> None:
    suffix = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    picture = Image.fromarray(ramp())
    picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
    assert decode_image(file_of(picture, suffix)).shape == (12, 20, 3)


def test_sixteen_bit_grays_keep_their_brightness() -> None:
    gray = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert decode_image(file_of(gray))[0, :, 0].tolist() == [0, 128, 255]


def test_an_image_keeps_its_channels() -> None:
    gray, rgb = ramp()[..., 0], ramp()
    alpha = np.where(np.arange(20) < 10, 0, 255).astype(np.uint8)[None].repeat(12, 0)
    palette = Image.fromarray(rgb).quantize(8)
    transparent_palette = palette.copy()
    transparent_palette.info["transparency"] = 0
    sixteen = Image.fromarray((gray.astype(np.uint16) << 8) + 77)
    for picture, channels in [
        (Image.fromarray(gray), 1),
        (Image.fromarray(gray).convert("1"), 1),
        (Image.fromarray(np.dstack([gray, alpha])), 2),
        (Image.fromarray(rgb), 3),
        (palette, 3),
        (transparent_palette, 4),
        (Image.fromarray(np.dstack([rgb, alpha])), 4),
        (sixteen, 1),
    ]:
        pixels, _ = decode_with_metadata(file_of(picture))
        assert pixels.shape == (12, 20, channels), picture.mode
        if picture.mode in ("L", "LA", "RGB", "RGBA"):
            assert (decode_with_metadata(encode_image(pixels, "png"))[0] == pixels).all()
            assert (pixels == np.asarray(picture).reshape(pixels.shape)).all()
        if channels == 1 and picture.mode != "1":
            assert (pixels[..., 0] == gray).all()
    cmyk, tags = decode_with_metadata(file_of(Image.fromarray(rgb).convert("CMYK"), "TIFF", icc_profile=b"broken" * 40))
    assert np.abs(cmyk.astype(int) - rgb).max() <= 1
    assert tags.icc_profile is None


def test_errors_give_the_reason_in_one_line() -> None:
    good = encode_image(ramp(64, 64))
    reasons = {
        b"": "empty",
        b"<svg xmlns='x'/>": "is not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "is not an image",
        good[: len(good) // 2]: "truncated|damaged",
    }
    for content, reason in reasons.items():
        with pytest.raises(ImageError, match=reason) as caught:
            decode_image(content)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="64 x 64 pixels; at most 4,000"):
        decode_image(good, max_pixels=4000)
    with pytest.raises(ImageError, match="at most 10 are decoded"):
        decode_image(good, max_bytes=10)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
    with pytest.raises(ImageError, match="pixels"):
        decode_image(bomb)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damaged_files_raise_only_image_errors(image_format: str, data: st.DataObject) -> None:
    content = bytearray(file_of(Image.fromarray(ramp()), image_format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        pixels = decode_image(bytes(content[:cut] if data.draw(st.booleans()) else content), max_pixels=10**6)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
