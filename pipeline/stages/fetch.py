"""Fetching and decoding the pictures that a row names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ImageError
from pipeline.images.decode import MAX_BYTES, decode_image, decode_mask, decode_with_metadata
from pipeline.images.resize import center_square

if TYPE_CHECKING:
    pass
from pipeline.stages.rows import sha256_of

SOURCE_TYPE: Final = pa.struct([("pixels", pa.large_binary()), ("width", pa.int32()), ("height", pa.int32())])


@dataclass
class DecodedSources:
    """One column's decoded pictures, what their files say beside them, and the sha256 of these."""

    keeps: bool = False
    """Channels and tags are kept."""
    square: int | None = None
    pixels: list[dict[str, Any] | None] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)
    tags: list[dict[str, Any] | None] = field(default_factory=list)

    def add(self, name: str, source: Any, roots: storage.AllowedRoots, kept_out: str) -> Exception | None:
        """Decode a row's picture, none for None, and none of the folder `kept_out`; what is wrong with it."""
        decoded = digest = error = tags = None
        if source is not None:
            try:
                data, place = source_file(source, roots, kept_out)
                if self.keeps:
                    values, found = decode_with_metadata(data)
                    tags = {**asdict(found), "place": place}
                else:
                    values = decode_image(data) if name == "image" else decode_mask(data)
                values = values if self.square is None else center_square(values, self.square)
                decoded = {"pixels": values.tobytes(), "width": values.shape[1], "height": values.shape[0]}
                digest = sha256_of(data)
            except storage.StorageUnavailableError:
                raise
            except (ImageError, storage.StorageError) as found:
                error = type(found)(f"{name}: {found}")
        self.pixels.append(decoded)
        self.hashes.append(digest)
        self.tags.append(tags)
        return error


def source_file(source: Any, roots: storage.AllowedRoots, kept_out: str | None = None) -> tuple[bytes, str | None]:
    """The bytes of a manifest's `image` or `mask`, and where their file stands below its root, if it is one.

    A StorageError where that is below the folder `kept_out`."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return source, None
    url = roots.resolve(source)
    if kept_out is not None and storage.is_below(url, kept_out):
        raise storage.StorageError(f"{storage.redact_url(url)}: lies where this run writes its pictures")
    return storage.read_bytes(url, max_bytes=MAX_BYTES), roots.relative_path(url)
