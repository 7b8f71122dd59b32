"""Metadata of image files: color profile, EXIF, resolution."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

_DECIDED_ANEW: Final = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 288, 289, 317, 320),
    *(322, 323, 324, 325, 330, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675),
)
"""TIFF's tags of size, orientation, layout, and of blocks that stand elsewhere in other files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMetadata:
    """What a file says of its pixels beside them, and another file of the same picture should say too."""

    icc_profile: bytes | None = None
    """Of the pixels' own color space: gray or RGB."""
    exif: bytes | None = None
    """Without what the new file decides: orientation, size, layout."""
    dpi: tuple[float, float] | None = None


def read_metadata(picture: Image.Image, kept: Image.Image) -> ImageMetadata:
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
    return ImageMetadata(
        icc_profile=profile if profile and profile[16:20] == space else None,
        exif=exif,
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and all(0 < float(value) < 1e6 for value in dpi) else None,
    )


def save_options(tags: ImageMetadata) -> dict[str, Any]:
    """What Pillow's writers take of the tags beside EXIF."""
    options = {"icc_profile": tags.icc_profile, "dpi": tags.dpi}
    return {name: value for name, value in options.items() if value}


def exif_bytes(metadata: Mapping[str, str] | None, tags: ImageMetadata | None = None) -> bytes:
    exif = Image.Exif()
    if tags is not None and tags.exif:
        exif.load(tags.exif)
    if tags is not None and tags.dpi and not {282, 283} & set(exif):  # for the format that has no other place for it
        exif[282], exif[283], exif[296] = *tags.dpi, 2
    if metadata and 0x010E not in exif:
        exif[0x010E] = "\n".join(f"{key}: {value}" for key, value in metadata.items())
    return exif.tobytes() if len(exif) else b""
