"""The schema of the files in OUTPUT/data, which is one for ever: every reader opens the folder as one table."""

import json
from collections.abc import Collection, Iterator
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import RunError
from pipeline.manifest.unify import HUGGING_FACE, features_of
from pipeline.schema import DATA

_HUGGING_FACE_IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Exactly the type of `datasets.Image`."""
_MANIFEST_VERSION: Final = b"latentmill_manifest_version"


def file_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a data file for an output's columns.

    Its metadata is the manifest's, with the Hugging Face features of the columns that are carried, and of `image`."""
    features = {name: feature for name, feature in features_of(schema.metadata).items() if name in schema.names}
    fields = list(schema)
    if "image" in schema.names:
        position = schema.get_field_index("image")
        fields[position] = fields[position].with_type(_HUGGING_FACE_IMAGE)
        features["image"] = {"_type": "Image"}
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != _MANIFEST_VERSION}
    if features:
        metadata[HUGGING_FACE] = json.dumps({"info": {"features": features}}).encode()
    return pa.schema(fields, metadata=metadata or None)


def refuse_other_columns(output: str, files: Collection[str], schema: pa.Schema) -> None:
    """Raise RunError if `schema` differs from the columns of an output's data files.

    A manifest may have got another column, or a column another type; a later version may write more columns."""
    earlier = next(_read_schemas(output, files), None)
    if earlier is None:
        return
    sink = pa.BufferOutputStream()
    pq.write_table(file_schema(schema).empty_table(), sink)  # Parquet changes some types: seconds to milliseconds
    now = pq.read_schema(pa.BufferReader(sink.getvalue()))
    differences = [f'"{name}" is new' for name in now.names if name not in earlier.names]
    differences += [f'"{name}" is missing now' for name in earlier.names if name not in now.names]
    differences += [
        f'"{name}" is {now.field(name).type}, was {earlier.field(name).type}'
        for name in now.names
        if name in earlier.names and now.field(name).type != earlier.field(name).type
    ]
    if differences:
        raise RunError(
            f"{storage.redact_url(output)} holds files with other columns: {'; '.join(differences)}; "
            "give another OUTPUT, or --new-run to start over"
        )


def _read_schemas(output: str, files: Collection[str]) -> Iterator[pa.Schema]:
    """Yield the schemas of data files that can be read."""
    for file in sorted(file for file in files if file.startswith(f"{DATA}/")):
        filesystem, path = storage.arrow_filesystem(storage.join(output, file))
        try:
            yield pq.read_schema(path, filesystem=filesystem)
        except (pa.ArrowException, OSError):
            continue
