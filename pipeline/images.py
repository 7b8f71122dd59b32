"""Image bytes <-> pixels, and resizing: the one place that decodes pictures from outside, which it does not trust.

Two forms of pixels: uint8 (H, W, 3) as files hold them, and float32 (3, H, W) in [-1, 1] as the networks take them.
Where a picture is to stay what it is, its file may also hold grey, grey and alpha, or RGBA: (H, W, C), C of 1 to 4.
"""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

MAX_BYTES: Final = 64 * 2**20
MAX_PIXELS: Final = 64 * 10**6
"""What one picture may take: 64 MB as a file, 64 million pixels (192 MB) decoded."""

MAX_SIDE: Final = 16_384
"""Pixels of a picture's width or height, whatever the other is."""

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's decoders that are used; others (PSD, ICNS, EPS, which starts a program, ...) are never tried."""

_MAX_SIDES: Final = {"jpeg": 65_535, "webp": 16_383}
_SIXTEEN_BITS: Final = ("I;16", "I;16B", "I;16L", "I")
_DECIDED_ANEW: Final = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 288, 289, 317, 320),
    *(322, 323, 324, 325, 330, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675),
)
"""TIFF's tags of size, orientation, layout, and of blocks that stand elsewhere in other files."""

Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
_LONG: Final = 8
"""How many times as long as wide a picture is looked at where only its middle square is wanted."""
_FILTERS: Final = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


class ImageError(ValueError):
    """A picture that cannot be used; the text is one line that says why."""


def decode(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, background: int = 255
) -> NDArray[np.uint8]:
    """The picture as uint8 RGB (H, W, 3), turned upright by its EXIF orientation.

    What is transparent is laid on a grey of level `background`; 16-bit greys keep their upper eight bits.
    ImageError: not a picture of FORMATS, more than one frame, over a limit, cut off or damaged."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_flattened(_upright(picture), background), np.uint8)


def decode_mask(image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """The same as one channel (H, W), white (255) where the picture is white; transparency counts as black."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_flattened(_upright(picture), 0).convert("L"), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """What a file says of its pixels beside them, and another file of the same picture should say too."""

    icc_profile: bytes | None = None
    """Of the pixels' own colour space: grey or RGB."""
    exif: bytes | None = None
    """Without what the new file decides: orientation, size, layout."""
    dpi: tuple[float, float] | None = None


def decode_kept(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[NDArray[np.uint8], Tags]:
    """The picture as `decode` gives it, but grey, grey and alpha, RGB or RGBA, as it is; and its tags.

    Palettes become RGB or RGBA, CMYK RGB by its profile; 16-bit greys keep their upper eight bits. ImageError as of
    `decode`, and for floating-point pixels."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        upright = _upright(picture)
        try:
            kept = _kept(upright)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"the image is damaged: {_line(error)}") from error
        values = np.asarray(kept, np.uint8)
        return values if values.ndim == 3 else values[..., None], _tags_of(upright, kept)


def encode(
    pixels: NDArray[np.uint8],
    image_format: Literal["png", "webp", "jpeg"] = "png",
    *,
    quality: int = 95,
    metadata: Mapping[str, str] | None = None,
    tags: Tags | None = None,
) -> bytes:
    """uint8 (H, W, C) as a file: the same pixels, settings and Pillow give the same bytes.

    `quality` (1 to 100) is of webp and jpeg. `metadata` goes into PNG text chunks, into the EXIF description (as
    `key: value` lines) elsewhere, if `tags` have none. ImageError: alpha in a jpeg, or more pixels than the format
    takes."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise ValueError(f"pixels must be uint8 (H, W, 1 to 4), not {pixels.dtype} {pixels.shape}")
    if max(pixels.shape[:2]) > (most := _MAX_SIDES.get(image_format, 2**31)):
        raise ImageError(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too many for {image_format} ({most} a side)"
        )
    if image_format == "jpeg" and pixels.shape[2] in (2, 4):
        raise ImageError("the picture is transparent in part, which jpeg cannot hold; give png or webp")
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    kept = _options_of(tags or Tags())
    if image_format == "png":
        text = PngImagePlugin.PngInfo()
        for key, value in (metadata or {}).items():
            text.add_itxt(key, value) if not value.isascii() else text.add_text(key, value)
        if tags is not None and tags.exif:
            kept["exif"] = tags.exif
        picture.save(buffer, "PNG", compress_level=6, pnginfo=text, **kept)
    elif image_format == "webp":
        picture.save(buffer, "WEBP", quality=quality, method=4, exif=_exif(metadata, tags), **kept)
    elif image_format == "jpeg":
        subsampling = 0 if quality >= 90 else 2
        picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling, exif=_exif(metadata, tags), **kept)
    else:
        raise ValueError(f"image format {image_format!r}: use png, webp or jpeg")
    return buffer.getvalue()


def resize(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """uint8 (H, W, 3) or (H, W), stretched to the size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), _FILTERS[how]), np.uint8)


def resize_to_cover(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """Scaled with its proportions kept until it covers the size, and cut about its centre."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height), _FILTERS[how]), np.uint8)


def middle_square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scaled until its shorter side is `side`, and cut to the square about its centre, as CLIP is shown pictures."""
    shorter = min(pixels.shape[:2])
    most = _LONG * shorter  # of a very thin picture: scaled whole it would be very large
    top, left = (max(length - most, 0) // 2 for length in pixels.shape[:2])
    pixels = pixels[top : top + most, left : left + most]
    height, width = pixels.shape[:2]
    scaled = resize(pixels, side * width // shorter, side * height // shorter, "bicubic")
    top, left = (scaled.shape[0] - side) // 2, (scaled.shape[1] - side) // 2
    return scaled[top : top + side, left : left + side]


def grey_of(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma (H, W) of uint8 RGB (H, W, 3), by the weights of ITU-R BT.601."""
    return np.asarray(Image.fromarray(pixels).convert("L"), np.uint8)


def floats_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (H, W, 3) -> float32 (3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))


def bytes_of(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 (3, H, W) in [-1, 1], clipped there -> uint8 (H, W, 3); rounded as diffusers rounds (half to even)."""
    levels = np.clip(pixels.astype(np.float32) / np.float32(2) + np.float32(0.5), 0, 1) * np.float32(255)
    return np.ascontiguousarray(levels.round().astype(np.uint8).transpose(1, 2, 0))


def _opened(image_bytes: bytes, max_pixels: int, max_bytes: int) -> Image.Image:
    """A picture whose header has been checked and whose pixels have been read."""
    if not image_bytes:
        raise ImageError("the image is empty (0 bytes)")
    if len(image_bytes) > max_bytes:
        raise ImageError(f"the image has {len(image_bytes):,} bytes; at most {max_bytes:,} are decoded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags, and of sizes, for which the limit is our own
            picture = Image.open(io.BytesIO(image_bytes), formats=FORMATS)
            _check_header(picture, max_pixels)
            picture.load()
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"is no picture that can be read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image has far more than {max_pixels:,} pixels, which is the limit") from error
    except Exception as error:
        if "truncated" in str(error):
            raise ImageError("the image is cut off: its end is missing") from error
        raise ImageError(f"the image is damaged: {_line(error)}") from error
    return picture


def _check_header(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} x {height} pixels; at most {max_pixels:,} are decoded")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"the image has {width} x {height} pixels; no side may have over {MAX_SIDE:,}")
    if getattr(picture, "is_animated", False):  # not n_frames, for which all of a GIF's are read
        raise ImageError("the image has several frames; one is needed")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - a damaged EXIF block does not make the pixels useless
        return picture


def _flattened(picture: Image.Image, background: int) -> Image.Image:
    """RGB, with what is transparent laid on a grey."""
    try:
        if picture.mode in _SIXTEEN_BITS:
            return _eight_bits(picture).convert("RGB")
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            base = Image.new("RGBA", layer.size, (background, background, background, 255))
            return Image.alpha_composite(base, layer).convert("RGB")
        return picture.convert("RGB")
    except Exception as error:
        raise ImageError(f"the image is damaged: {_line(error)}") from error


def _kept(picture: Image.Image) -> Image.Image:
    """L, LA, RGB or RGBA, whichever the picture is."""
    if picture.mode in _SIXTEEN_BITS:
        return _eight_bits(picture)
    if picture.mode == "F":
        raise ImageError("the image has floating-point pixels; 8 or 16 bits are read")
    if picture.mode == "CMYK":
        return _rgb_of_cmyk(picture)
    alpha = picture.has_transparency_data
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("LA" if alpha else "L")
    return picture.convert("RGBA" if alpha else "RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    levels = np.asarray(picture).astype(np.int64)
    return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))


def _rgb_of_cmyk(picture: Image.Image) -> Image.Image:
    """sRGB by the picture's own profile; without a usable one, by plain subtraction."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        found = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (KeyError, TypeError, OSError, ImageCms.PyCMSError):
        found = None
    return picture.convert("RGB") if found is None else found


def _tags_of(picture: Image.Image, kept: Image.Image) -> Tags:
    """The tags of an upright picture that hold for what is kept of it."""
    profile, dpi = picture.info.get("icc_profile"), picture.info.get("dpi")
    space = b"GRAY" if kept.mode in ("L", "LA") else b"RGB "
    exif: bytes | None = None
    try:
        found = picture.getexif()
        for tag in _DECIDED_ANEW:
            found.pop(tag, None)
        for tag in (0xA002, 0xA003):
            found.get_ifd(0x8769).pop(tag, None)
        exif = found.tobytes() if len(found) else None
    except Exception:  # noqa: BLE001 - a damaged EXIF block does not make the pixels useless
        exif = None
    return Tags(
        icc_profile=profile if profile and profile[16:20] == space else None,
        exif=exif,
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and all(0 < float(value) < 1e6 for value in dpi) else None,
    )


def _options_of(tags: Tags) -> dict[str, Any]:
    """What Pillow's writers take of the tags beside EXIF."""
    options = {"icc_profile": tags.icc_profile, "dpi": tags.dpi}
    return {name: value for name, value in options.items() if value}


def _exif(metadata: Mapping[str, str] | None, tags: Tags | None = None) -> bytes:
    exif = Image.Exif()
    if tags is not None and tags.exif:
        exif.load(tags.exif)
    if tags is not None and tags.dpi and not {282, 283} & set(exif):  # for the format that has no other place for it
        exif[282], exif[283], exif[296] = *tags.dpi, 2
    if metadata and 0x010E not in exif:
        exif[0x010E] = "\n".join(f"{key}: {value}" for key, value in metadata.items())
    return exif.tobytes() if len(exif) else b""


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
