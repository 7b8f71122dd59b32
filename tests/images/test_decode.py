"""Decoding what is not trusted, encoding what must not change."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms

from pipeline.errors import ImageError
from pipeline.images import resize as resize_module
from pipeline.images.decode import decode_image, decode_mask, decode_with_metadata
from pipeline.images.encode import encode_image
from pipeline.images.resize import bytes_of, center_square, resize, resize_to_cover, to_float

PICTURES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


def file_of(picture: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def ramp(width: int = 20, height: int = 12) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)), -1).astype(np.uint8)


@given(PICTURES)
def test_png_keeps_every_pixel(pixels: np.ndarray) -> None:
    assert np.array_equal(decode_image(encode_image(pixels, "png")), pixels)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_encoding_is_deterministic_and_close(image_format: str) -> None:
    pixels = ramp(64, 48)
    once = encode_image(pixels, image_format, metadata={"prompt": "a ring"})  # type: ignore[arg-type]
    assert once == encode_image(pixels.copy(), image_format, metadata={"prompt": "a ring"})  # type: ignore[arg-type]
    assert np.abs(decode_image(once).astype(int) - pixels).mean() < 3
    assert Image.open(io.BytesIO(once)).format == image_format.upper()


def test_metadata_is_found_again() -> None:
    png = Image.open(io.BytesIO(encode_image(ramp(), "png", metadata={"prompt": "ein Würfel", "seed": "7"})))
    assert (png.info["prompt"], png.info["seed"]) == ("ein Würfel", "7")
    jpeg = Image.open(io.BytesIO(encode_image(ramp(), "jpeg", metadata={"seed": "7"})))
    assert jpeg.getexif()[0x010E] == "seed: 7"


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_a_turned_photograph_is_upright(orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = file_of(Image.fromarray(ramp()), exif=exif)
    assert np.array_equal(decode_image(stored), np.rot90(ramp(), turns))


def test_transparency_is_laid_on_white_and_is_black_in_a_mask() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    assert decode_image(file_of(picture))[0, 1].tolist() == [255, 255, 255]
    assert decode_mask(file_of(picture)).tolist() == [[255, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    suffix = {"CMYK": "JPEG", "YCbCr": "JPEG", "F": "TIFF"}.get(mode, "PNG")
    picture = Image.fromarray(ramp())
    picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
    assert decode_image(file_of(picture, suffix)).shape == (12, 20, 3)


def test_sixteen_bit_grays_keep_their_brightness() -> None:
    gray = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert decode_image(file_of(gray))[0, :, 0].tolist() == [0, 128, 255]


def test_refusals_say_why_in_one_line() -> None:
    good = encode_image(ramp(64, 64))
    frames = file_of(Image.new("L", (4, 4)), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 9)])
    reasons = {
        b"": "empty",
        b"<svg xmlns='x'/>": "is no picture",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "is no picture",
        good[: len(good) // 2]: "cut off|damaged",
        frames: "several frames; one is needed",
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
def test_damaged_files_raise_nothing_but_image_errors(image_format: str, data: st.DataObject) -> None:
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


@given(PICTURES)
def test_levels_survive_the_way_to_floats_and_back(pixels: np.ndarray) -> None:
    floats = to_float(pixels)
    assert floats.shape == (3, *pixels.shape[:2])
    assert floats.min() >= -1
    assert floats.max() <= 1
    assert np.array_equal(bytes_of(floats), pixels)


def test_floats_outside_of_the_range_are_clipped() -> None:
    assert bytes_of(np.array([[[-9.0]], [[0.0]], [[9.0]]], np.float32)).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize(("height", "width"), [(1, 16_384), (9_001, 3), (40, 330)])
def test_the_middle_of_a_thin_picture_is_cut_before_it_is_scaled(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    resize_pixels = resize_module.resize
    monkeypatch.setattr(
        resize_module, "resize", lambda pixels, *size: sizes.extend(size[:2]) or resize_pixels(pixels, *size)
    )
    pixels = np.linspace(0, 200, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    square = center_square(pixels, 64)
    assert square.shape == (64, 64, 3) and max(sizes) <= 8 * 64
    assert abs(float(square.mean()) - 100) < 2


def test_covering_keeps_proportions() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    covered = resize_to_cover(wide, 10, 10, "nearest")
    assert covered.min() == 255, "the middle square alone is kept"
    assert resize(wide, 20, 5).shape == (5, 20, 3)


def test_pixels_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_image(np.zeros((2, 2, 3), np.float32))  # type: ignore[arg-type]


def photograph(**options: object) -> bytes:
    """A JPEG that lies on its side, with a color profile, 300 dots an inch, and who took it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "A. Photographer"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8769)[0xA002] = 20
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return file_of(Image.fromarray(ramp()), "JPEG", exif=exif.tobytes(), icc_profile=profile, dpi=(300, 300))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_what_a_file_says_beside_its_pixels_is_kept(image_format: str) -> None:
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


def test_a_picture_keeps_the_channels_that_it_has() -> None:
    gray, rgb = ramp()[..., 0], ramp()
    alpha = np.where(np.arange(20) < 10, 0, 255).astype(np.uint8)[None].repeat(12, 0)
    palette = Image.fromarray(rgb).quantize(8)
    see_through = palette.copy()
    see_through.info["transparency"] = 0
    sixteen = Image.fromarray((gray.astype(np.uint16) << 8) + 77)
    for picture, channels in [
        (Image.fromarray(gray), 1),
        (Image.fromarray(gray).convert("1"), 1),
        (Image.fromarray(np.dstack([gray, alpha])), 2),
        (Image.fromarray(rgb), 3),
        (palette, 3),
        (see_through, 4),
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
    with pytest.raises(ImageError, match="floating-point pixels"):
        decode_with_metadata(file_of(Image.fromarray(gray.astype(np.float32)), "TIFF"))


def test_what_a_format_cannot_hold_is_said() -> None:
    with pytest.raises(ImageError, match="transparent in part, which jpeg cannot hold; give png or webp"):
        encode_image(np.zeros((2, 2, 4), np.uint8), "jpeg")
    with pytest.raises(ImageError, match=r"16400 x 1 pixels are too many for webp \(16383 a side\)"):
        encode_image(np.zeros((1, 16_400, 3), np.uint8), "webp")
