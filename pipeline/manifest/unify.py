"""One schema for the files of a manifest, which several tools or versions of a tool may have written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline.errors import ManifestError

HUGGING_FACE: Final = b"huggingface"
"""The key of a schema's metadata under which `datasets` keeps the features: names of labels, images, ..."""
_TABLE_METADATA: Final = (b"pandas", b"ARROW:schema", b"org.apache.spark.", b"parquet.avro.", b"iceberg.", b"writer.")
"""Keys, or their beginnings, that describe one whole table and would be wrong for a table with other columns."""
_FIELD_METADATA: Final = (b"PARQUET:",)


def unify_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the union of the columns of several files, in the order in which they appear.

    Types that differ are unified without loss: int32 and int64, string and large_string, null and any type, a
    dictionary or a view and the plain type. Integers as `id` are text. ManifestError if a column's types do not fit."""
    types: dict[str, list[pa.Field]] = {}
    for schema in schemas:
        for name in schema.names:
            if len(schema.get_all_field_indices(name)) > 1:
                raise ManifestError(f'there are {len(schema.get_all_field_indices(name))} columns "{name}"; keep one')
            types.setdefault(name, []).append(schema.field(name))
    return pa.schema([_unified_field(name, fields) for name, fields in types.items()], metadata=_metadata(schemas))


def features_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the features that `datasets` wrote into a schema's metadata; none if they cannot be read."""
    try:
        features = json.loads((metadata or {})[HUGGING_FACE])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _unified_field(name: str, fields: Sequence[pa.Field]) -> pa.Field:
    metadata = {
        key: value
        for field in reversed(fields)
        for key, value in (field.metadata or {}).items()
        if not key.startswith(_FIELD_METADATA)
    }
    types = list(dict.fromkeys(field.type for field in fields))
    if name == "id":
        types = list(dict.fromkeys(_id_type(kind) for kind in types))
    if len(types) > 1:
        types = [_unified_type(name, types)]
    return pa.field(name, types[0], metadata=metadata or None)


def _id_type(kind: pa.DataType) -> pa.DataType:
    plain = _plain_type(kind)
    is_text = pa.types.is_integer(plain) or pa.types.is_large_string(plain) or pa.types.is_string(plain)
    return pa.string() if is_text else kind


def _unified_type(name: str, types: Sequence[pa.DataType]) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, _plain_type(kind))]) for kind in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        listed = " and ".join(map(str, types))
        raise ManifestError(f'its files differ in the column "{name}": {listed}; write it with one type') from error


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type without dictionaries, views and run-end encoding."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _metadata(schemas: Sequence[pa.Schema]) -> dict[bytes, bytes] | None:
    metadata: dict[bytes, bytes] = {}
    features: dict[str, Any] = {}
    for schema in schemas:
        for key, value in (schema.metadata or {}).items():
            if not key.startswith(_TABLE_METADATA):
                metadata.setdefault(key, value)
        for name, feature in features_of(schema.metadata).items():
            if features.setdefault(name, feature) != feature:
                raise ManifestError(f'its files differ in the Hugging Face feature of the column "{name}"')
    if features:
        metadata[HUGGING_FACE] = json.dumps({"info": {"features": features}}).encode()
    return metadata or None
