"""Metadata of image files: color profile, EXIF, resolution."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

_FILE_SPECIFIC_TAGS: Final = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 284, 288, 289, 317, 320),
    *(322, 323, 324, 325, 330, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675),
)
"""TIFF tags that hold for one file only: size, orientation, layout, and blocks that other formats store elsewhere."""
_EXIF_IFD: Final = 0x8769
_IFDS: Final = (_EXIF_IFD, 0x8825, 0xA005)
"""Blocks of tags inside the EXIF block: the photograph's, its location, interoperability."""
_CUT: Final = "..."
_EXIF_SIZE_TAGS: Final = (0xA002, 0xA003)
_IMAGE_DESCRIPTION: Final = 0x010E
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMetadata:
    """The metadata of an image file that a new file of the same image should have too."""

    icc_profile: bytes | None = None
    """Profile of the pixels' own color space: gray or RGB."""
    exif: bytes | None = None
    """EXIF block without file-specific tags: orientation, size, layout."""
    dpi: tuple[float, float] | None = None


def read_metadata(picture: Image.Image, converted: Image.Image) -> ImageMetadata:
    """Return the metadata of an upright image that still holds for its converted pixels."""
    profile, dpi = picture.info.get("icc_profile"), picture.info.get("dpi")
    space = b"GRAY" if converted.mode in ("L", "LA") else b"RGB "
    return ImageMetadata(
        icc_profile=profile if profile and profile[16:20] == space else None,
        exif=_portable_exif(picture),
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and all(0 < float(value) < 1e6 for value in dpi) else None,
    )


def save_options(tags: ImageMetadata) -> dict[str, Any]:
    """Return the metadata other than EXIF as options of Pillow's `save`."""
    options = {"icc_profile": tags.icc_profile, "dpi": tags.dpi}
    return {name: value for name, value in options.items() if value}


def exif_bytes(
    metadata: Mapping[str, str] | None, tags: ImageMetadata | None = None, max_bytes: int | None = None
) -> bytes:
    """Return the EXIF block of a new file: the tags, and `metadata` as description if the tags have none.

    In a block of more than `max_bytes`, a description is cut, and the largest of the other tags are left out."""
    exif = Image.Exif()
    if tags is not None and tags.exif:
        exif.load(tags.exif)
    if tags is not None and tags.dpi and not {_X_RESOLUTION, _Y_RESOLUTION} & set(exif):  # WebP stores it only here
        exif[_X_RESOLUTION], exif[_Y_RESOLUTION], exif[_RESOLUTION_UNIT] = *tags.dpi, 2
    if metadata and _IMAGE_DESCRIPTION not in exif:
        exif[_IMAGE_DESCRIPTION] = "\n".join(f"{key}: {value}" for key, value in metadata.items())
    block = exif.tobytes() if len(exif) else b""
    while max_bytes is not None and len(block) > max_bytes:
        _shorten(exif, len(block) - max_bytes)
        block = exif.tobytes() if len(exif) else b""
    return block


def _shorten(exif: Image.Exif, excess: int) -> None:
    """Cut the description by `excess` bytes, at most by half, if it is the largest tag; else remove the largest."""
    blocks: list[Any] = [exif, *(exif.get_ifd(ifd) for ifd in _IFDS)]
    sizes = [(_size(value), index, tag) for index, ifd in enumerate(blocks) for tag, value in ifd.items()]
    size, index, tag = max(sizes)
    if (index, tag) == (0, _IMAGE_DESCRIPTION) and size > 4 * len(_CUT):
        exif[tag] = str(exif[tag])[: max(size - excess, size // 2) - len(_CUT)] + _CUT
    else:
        del blocks[index][tag]


def _size(value: Any) -> int:
    """Return about how many bytes a tag takes; those of a block of tags are its tags'."""
    if isinstance(value, Mapping):
        return 1
    return len(value) if isinstance(value, str | bytes) else 8 * (len(value) if isinstance(value, tuple) else 1)


def _portable_exif(picture: Image.Image) -> bytes | None:
    """Return the EXIF block without file-specific tags; None if there is none or it is damaged."""
    try:
        exif = picture.getexif()
        for tag in _FILE_SPECIFIC_TAGS:
            exif.pop(tag, None)
        for tag in _EXIF_SIZE_TAGS:
            exif.get_ifd(_EXIF_IFD).pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except Exception:  # noqa: BLE001 - the pixels are usable without the EXIF block
        return None
