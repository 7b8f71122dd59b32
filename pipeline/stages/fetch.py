"""Fetching and decoding the images that a row names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ImageError, attempt
from pipeline.images.decode import MAX_BYTES, decode_image, decode_mask, decode_with_metadata
from pipeline.images.naming import paths_inside
from pipeline.images.resize import center_square
from pipeline.stages.rows import sha256_of

DECODED_TYPE: Final = pa.struct([("pixels", pa.large_binary()), ("width", pa.int32()), ("height", pa.int32())])
"""Raw uint8 (height, width, C) and the size in pixels."""
SOURCE_METADATA_TYPE: Final = pa.struct(
    [("icc_profile", pa.binary()), ("exif", pa.binary()), ("dpi", pa.list_(pa.float64())), ("path", pa.string())]
)
"""`path` is the source file's path below its allowed root; null where the source is not a file."""


@dataclass(frozen=True, slots=True)
class SourceReader:
    """Reads the images that rows name, from the allowed roots."""

    roots: storage.AllowedRoots
    excluded_folder: str | None = None
    """A folder of the run's own pictures, which are not read."""

    def read(self, source: Any) -> tuple[bytes, str | None]:
        """Return the bytes of a row's `image` or `mask`, and its path below its root if it is a file.

        StorageError if the file may not be read, or cannot be."""
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path")
        if isinstance(source, bytes):
            return source, None
        url = self._resolve(source)
        if self.excluded_folder is not None and storage.is_below(url, self.excluded_folder):
            raise storage.StorageError(f"{storage.redact_url(url)}: lies where this run writes its pictures")
        try:
            return storage.read_bytes(url, max_bytes=MAX_BYTES), self.roots.relative_path(url)
        except storage.StorageUnavailableError as error:  # of this row's source, which other rows need not share
            raise storage.StorageError(str(error)) from error

    def _resolve(self, reference: str) -> str:
        """Return the URL of an image reference in the manifest.

        An image file of an output that was moved is found at its path inside the output, if that is the manifest."""
        try:
            return self.roots.resolve(reference)
        except storage.StorageError:
            for inside in paths_inside(reference) if ".." not in reference else ():
                if storage.exists(url := self.roots.resolve(inside)):
                    return url
            raise


@dataclass
class DecodedColumn:
    """The decoded images of one source column, the sha256 of their files, and their metadata."""

    name: str
    reader: SourceReader
    with_metadata: bool = False
    """Images other than masks keep their channels, and their metadata is read."""
    square: int | None = None
    """Pixels of the side of the center square to which images are cropped; None: they are not cropped."""
    pixels: list[dict[str, Any] | None] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)
    metadata: list[dict[str, Any] | None] = field(default_factory=list)

    def append(self, source: Any) -> Exception | None:
        """Append a row's decoded image, null for None; return the error if it cannot be read or decoded."""
        decoded = digest = error = metadata = None
        if source is not None:
            outcome = attempt(lambda: self._decode(source))
            if isinstance(outcome, ImageError | storage.StorageError):
                error = type(outcome)(f"{self.name}: {outcome}")
            elif isinstance(outcome, Exception):
                error = outcome
            else:
                decoded, digest, metadata = outcome
        self.pixels.append(decoded)
        self.hashes.append(digest)
        self.metadata.append(metadata)
        return error

    def _decode(self, source: Any) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
        data, path = self.reader.read(source)
        metadata = None
        if self.name == "mask":
            pixels = decode_mask(data)
        elif self.with_metadata:
            pixels, image_metadata = decode_with_metadata(data)
            metadata = {**asdict(image_metadata), "path": path}
        else:
            pixels = decode_image(data)
        if self.square is not None:
            pixels = center_square(pixels, self.square)
        decoded = {"pixels": pixels.tobytes(), "width": pixels.shape[1], "height": pixels.shape[0]}
        return decoded, sha256_of(data), metadata
