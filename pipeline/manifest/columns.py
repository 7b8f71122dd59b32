"""The rules for the columns of a manifest: which must exist, their types, and names that the output needs."""

from typing import Final

import pyarrow as pa

from pipeline.manifest.rules import Problem, Rules
from pipeline.schema import CLASSIFIED, OUTPUT, PARAMETERS, PROVENANCE, SOURCES, WORKING


def schema_problems(schema: pa.Schema, rules: Rules) -> list[Problem]:
    """Return the problems of the columns: missing, of a wrong type, repeated, or with a reserved name."""
    problems = []
    for name in _required_columns(rules):
        if name not in schema.names:
            hint = "; `latentmill manifest build` writes one" if name == "id" else ""
            problems.append(Problem(column=name, message=f'there is no column "{name}"{hint}'))
    for name in dict.fromkeys(schema.names):
        indices = schema.get_all_field_indices(name)
        if len(indices) > 1:
            problems.append(Problem(column=name, message=f'there are {len(indices)} columns "{name}"; keep one'))
        elif message := _column_problem(name, schema.field(name).type, rules):
            problems.append(Problem(column=name, message=message))
    return problems


def _required_columns(rules: Rules) -> tuple[str, ...]:
    if rules.task == "generate":
        return "id", "prompt"
    return ("id", "image", "mask") if rules.task == "inpaint" else ("id", "image")


def _column_problem(name: str, column_type: pa.DataType, rules: Rules) -> str | None:
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    if name == "id" or (name in PARAMETERS and rules.task != "classify"):
        if name == "loras":
            return None if _is_lora_type(column_type) else _LORA_TYPES.format(column_type)
        expected = pa.string() if name == "id" else PARAMETERS[name]
        if _is_accepted(column_type, expected) or (name == "id" and pa.types.is_integer(column_type)):
            return None
        hint = ", or integers, which are taken as text; cast it" if name == "id" else ""
        return f'the column "{name}" is {column_type}; it must be {expected}{hint}'
    if name in SOURCES:
        if _is_image_type(column_type):
            return None
        return (
            f'the column "{name}" is {column_type}; it must be string (paths or URLs), binary, or struct<bytes, path>'
        )
    if name in WORKING:
        return f'the column name "{name}" is reserved for the run itself; rename it'
    output_columns = CLASSIFIED if rules.task == "classify" else {**OUTPUT, **PROVENANCE}
    if name in output_columns or name in ("error_type", "error_message"):
        return f'the column "{name}" has the name of a column that the output writes; rename it'
    return None


def _is_accepted(column_type: pa.DataType, expected: pa.DataType) -> bool:
    types = pa.types
    if types.is_null(column_type):
        return True
    if types.is_string(expected):
        return types.is_string(column_type) or types.is_large_string(column_type) or types.is_string_view(column_type)
    return types.is_integer(column_type) or (types.is_floating(expected) and types.is_floating(column_type))


_LORA_TYPES: Final = (
    'the column "loras" is {}; it must be list<struct<name: string, weight: double>>, or string (name:weight, ...)'
)


def _is_lora_type(column_type: pa.DataType) -> bool:
    types = pa.types
    if _is_accepted(column_type, pa.string()):
        return True
    if not (types.is_list(column_type) or types.is_large_list(column_type) or types.is_fixed_size_list(column_type)):
        return False
    item = column_type.value_type
    if not types.is_struct(item):
        return _is_accepted(item, pa.string())
    fields = {field.name: field.type for field in item}
    expected = {"name": pa.string(), "weight": pa.float64()}
    return "name" in fields and all(
        name in expected and _is_accepted(kind, expected[name]) for name, kind in fields.items()
    )


def _is_image_type(column_type: pa.DataType) -> bool:
    if pa.types.is_struct(column_type):
        fields = {field.name: field.type for field in column_type}
        return bool(fields) and set(fields) <= {"bytes", "path"} and all(map(_is_image_type, fields.values()))
    accepted = (
        pa.types.is_null,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_string_view,
        pa.types.is_binary_view,
    )
    return any(is_type(column_type) for is_type in accepted)
