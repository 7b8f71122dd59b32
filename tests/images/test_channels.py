"""Sample formats: levels are read by their depth, the same way for images, masks and images with metadata."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.errors import ImageError
from pipeline.images.decode import decode_image, decode_mask, decode_with_metadata
from tests.sample_images import file_of, png_of, ramp, tiff_of

DECODERS = (decode_image, decode_mask, lambda content: decode_with_metadata(content)[0])
LEVELS = np.array([[0, 32_768, 65_535]], np.uint16)


def packed(levels: list[int]) -> np.ndarray:
    """Return 12-bit levels, two in three bytes."""
    digits = "".join(f"{level:03x}" for level in levels)
    return np.frombuffer(bytes.fromhex(digits), np.uint8)[None]


@pytest.mark.parametrize(
    "content",
    [
        file_of(Image.fromarray(LEVELS)),
        file_of(Image.fromarray(LEVELS), "TIFF"),
        file_of(Image.fromarray(LEVELS), "JPEG2000"),
        file_of(Image.fromarray(LEVELS).convert("I"), "PPM"),
        file_of(Image.frombytes("I;16B", (3, 1), LEVELS.astype(">u2").tobytes()), "TIFF"),
        tiff_of(65_535 - LEVELS, white_is_zero=True),
        tiff_of(255 - (LEVELS >> 8).astype(np.uint8), white_is_zero=True),
        b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes(),
    ],
)
def test_levels_of_any_depth_have_the_same_brightness(content: bytes) -> None:
    for decode in DECODERS:
        assert decode(content).reshape(3, -1)[:, 0].tolist() == [0, 128, 255]


def test_twelve_bits_are_read_by_their_levels() -> None:
    content = tiff_of(packed([0, 2048, 4095, 0])[:, :5], bits=12)
    content = content.replace(b"\x00\x01\x04\x00\x01\x00\x00\x00\x05", b"\x00\x01\x04\x00\x01\x00\x00\x00\x03")
    for decode in DECODERS:
        assert decode(content).reshape(3, -1)[:, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("levels", "kind"),
    [
        (np.array([[0.0, 1.0]], np.float32), "floating-point"),
        (np.array([[0, 255]], np.uint32), "32-bit"),
        (np.array([[0, 255]], np.int16), "signed"),
        (np.array([[0, 127]], np.int8), "signed"),
    ],
)
def test_levels_without_a_common_white_are_refused_in_every_task(levels: np.ndarray, kind: str) -> None:
    for decode in DECODERS:
        with pytest.raises(ImageError, match=f"the image has {kind} levels; give an image with 8 or 16"):
            decode(tiff_of(levels))


@pytest.mark.parametrize("black_and_white", [np.array([[0, 1]]), np.array([[1, 1]])])
def test_a_mask_of_zeros_and_ones_is_white_in_one_bit_and_refused_in_more(black_and_white: np.ndarray) -> None:
    one_bit = file_of(Image.fromarray(black_and_white.astype(bool)))
    assert decode_mask(one_bit).tolist() == (255 * black_and_white).tolist()
    eight = black_and_white.astype(np.uint8)
    palette = Image.fromarray(eight, "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    assert decode_mask(file_of(palette)).tolist() == (255 * black_and_white).tolist()
    color = np.zeros((1, 2, 4), np.uint8)
    color[..., 0], color[..., 3] = eight, 255
    for content in (file_of(Image.fromarray(eight)), tiff_of(eight), file_of(Image.fromarray(color))):
        with pytest.raises(ImageError, match="the mask's levels are 0 to 1; black is 0, and white must be 255"):
            decode_mask(content)
    for sixteen in (black_and_white, 255 * black_and_white):
        content = file_of(Image.fromarray(sixteen.astype(np.uint16)))
        with pytest.raises(ImageError, match="white must be 65535"):
            decode_mask(content)
    assert not decode_mask(file_of(Image.fromarray(0 * eight))).any()


def test_a_transparent_level_of_a_sixteen_bit_gray_is_read() -> None:
    content = file_of(Image.fromarray(LEVELS), transparency=32_768)
    assert decode_with_metadata(content)[0].tolist() == [[[0, 255], [128, 0], [255, 255]]]
    assert decode_image(content)[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_level_of_few_bits_is_read(bits: int) -> None:
    white = 2**bits - 1
    content = png_of(bytes([white << (8 - bits)]), 2, bits, transparent=white)
    assert decode_with_metadata(content)[0].tolist() == [[[255, 0], [0, 255]]]


def test_cmyk_is_converted_by_its_profile_in_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def convert(picture: Image.Image, *profiles: object, outputMode: str) -> Image.Image:
        calls.append(picture.mode)
        return Image.new(outputMode, picture.size, (10, 20, 30))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = file_of(Image.fromarray(ramp()).convert("CMYK"), "TIFF", icc_profile=profile)
    for decode in DECODERS[::2]:
        assert decode(content)[0, 0].tolist() == [10, 20, 30]
    assert calls == ["CMYK", "CMYK"]


def test_lab_is_converted() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    stored = ImageCms.profileToProfile(Image.fromarray(ramp()), srgb, lab, outputMode="LAB")
    assert stored is not None
    assert np.abs(decode_image(file_of(stored, "TIFF")).astype(int) - ramp()).mean() < 4


@pytest.mark.parametrize("image_format", ["AVIF", "JPEG2000", "PPM"])
def test_other_formats_that_pillow_reads_are_read(image_format: str) -> None:
    assert np.abs(decode_image(file_of(Image.fromarray(ramp()), image_format)).astype(int) - ramp()).mean() < 6
