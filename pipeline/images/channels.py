"""Pixel modes and sample formats of image files, read as 8-bit gray, gray and alpha, RGB or RGBA."""

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.errors import ImageError

_DEEP_MODES: Final = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Pillow's modes of grays with more than 8 bits."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""TIFF tags."""
_WHITE_IS_ZERO: Final = 0
_SIGNED: Final = 2


def read_channels(picture: Image.Image) -> Image.Image:
    """Convert an image to 8 bits per channel: to L, LA, RGB or RGBA, whichever loses no channel.

    Grays of 16 or 12 bits are reduced to their upper eight bits. CMYK and Lab become sRGB, by the image's color profile
    if it has one. ImageError for floating-point, 32-bit and signed levels: which of them is white differs between
    programs."""
    _check_samples(picture)
    if picture.mode in _DEEP_MODES:
        return _read_deep(picture)
    if picture.mode in ("CMYK", "LAB"):
        return _to_srgb(picture)
    alpha = picture.has_transparency_data
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("LA" if alpha else "L")
    return picture.convert("RGBA" if alpha else "RGB")


def highest_level(picture: Image.Image, channels: Image.Image) -> tuple[int, int]:
    """Return the highest level of an image's colors, and the level that is white, both at the file's own depth.

    `channels` is what `read_channels` returned for it."""
    if picture.mode in _DEEP_MODES:
        levels, white = _deep_levels(picture)
        return int(levels.max()), white
    levels = np.asarray(channels)
    colors = levels[..., :-1] if channels.mode in ("LA", "RGBA") else levels
    return int(colors.max()), 255


def _check_samples(picture: Image.Image) -> None:
    kind = None
    if picture.mode == "F":
        kind = "floating-point"
    elif _SIGNED in np.atleast_1d(getattr(picture, "tag_v2", {}).get(_SAMPLE_FORMAT, 1)):
        kind = "signed"
    elif picture.mode == "I" and _white_level(picture) is None:
        kind = "32-bit"
    if kind is not None:
        raise ImageError(f"the image has {kind} levels; give an image with 8 or 16 unsigned bits per channel")


def _white_level(picture: Image.Image) -> int | None:
    """Return the level that is white in an image of one of _DEEP_MODES; None if there is none."""
    tags = getattr(picture, "tag_v2", None)
    if tags is None:  # Pillow scales the levels of other formats to 16 bits
        return 65_535
    bits = int(np.max(tags.get(_BITS_PER_SAMPLE, 16)))
    return 2**bits - 1 if bits in (12, 16) else None


def _read_deep(picture: Image.Image) -> Image.Image:
    levels, white = _deep_levels(picture)
    channels = (levels >> (white.bit_length() - 8)).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        channels = np.dstack([channels, np.where(levels == transparent, 0, 255).astype(np.uint8)])
    return Image.fromarray(channels)


def _deep_levels(picture: Image.Image) -> tuple[NDArray[np.uint16], int]:
    """Return the levels (H, W) of a gray with more than 8 bits, and the level that is white."""
    white = _white_level(picture)
    assert white is not None
    levels = np.asarray(picture).clip(0, white).astype(np.uint16)
    if getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts only 8-bit levels
        levels = np.uint16(white) - levels
    return levels, white


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Convert by the image's color profile; a CMYK without a usable one by simple subtraction."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        if picture.mode == "LAB":
            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        converted = ImageCms.profileToProfile(picture, profile, srgb, outputMode="RGB")
    except (KeyError, TypeError, OSError, ImageCms.PyCMSError):
        converted = None
    return picture.convert("RGB") if converted is None else converted
