"""What a valid manifest is: the rules of its columns and of its rows, and the words for what is wrong."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline.config import Task
from pipeline.schema import CLASSIFIED, OUTPUT, PARAMETERS, PROVENANCE, SOURCES, WORKING

MAX_STEPS: Final = 1000
MAX_SIZE: Final = 4096
"""Pixels: what a row's width or height may be at most, unless the rules say otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What a valid row is, for one task and one model."""

    task: Task = "generate"
    samplers: tuple[str, ...] | None = None
    """The names that exist; `None`: any name is taken."""
    size_multiple: int = 8
    """Pixels: what width and height must be a multiple of."""
    max_size: int = MAX_SIZE
    """Pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: of a row, or of the whole manifest where `row` is None."""

    message: str
    row: int | None = None
    id: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        if self.row is None:
            return self.message
        name = "" if self.id is None else f' (id "{self.id}")'
        return f"row {self.row}{name}: {self.message}"


# ---- the schema


def schema_problems(schema: pa.Schema, rules: Rules) -> list[Problem]:
    """What is wrong with the columns themselves: missing, of a wrong type, or of a name that the output needs."""
    problems = []
    for name in ("id", *(("prompt",) if rules.task == "generate" else ("image",)), *_inpaint_mask(rules)):
        if name not in schema.names:
            hint = "; `latentmill manifest build` writes one" if name == "id" else ""
            problems.append(Problem(column=name, message=f'there is no column "{name}"{hint}'))
    for name in dict.fromkeys(schema.names):
        indices = schema.get_all_field_indices(name)
        if len(indices) > 1:
            problems.append(Problem(column=name, message=f'the column "{name}" is there {len(indices)} times'))
        elif problem := _type_problem(name, schema.field(name).type, rules):
            problems.append(Problem(column=name, message=problem))
    return problems


def _inpaint_mask(rules: Rules) -> tuple[str, ...]:
    return ("mask",) if rules.task == "inpaint" else ()


def _type_problem(name: str, found: pa.DataType, rules: Rules) -> str | None:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if name == "id" or (name in PARAMETERS and rules.task != "classify"):
        wanted = pa.string() if name == "id" else PARAMETERS[name]
        return None if _fits(found, wanted) else f'the column "{name}" is {found}; it must be {wanted}'
    if name in SOURCES:
        return (
            None
            if _holds_pictures(found)
            else (f'the column "{name}" is {found}; it must be string (paths or URLs), binary, or struct<bytes, path>')
        )
    if name in WORKING:
        return f'the column "{name}" has a name that a run needs for itself; rename it'
    written = CLASSIFIED if rules.task == "classify" else {**OUTPUT, **PROVENANCE}
    if name in written or name in ("error_type", "error_message"):
        return f'the column "{name}" would hide the column of the output with this name; rename it'
    return None


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found):
        return True
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    return pa.types.is_integer(found) or (pa.types.is_floating(wanted) and pa.types.is_floating(found))


def _holds_pictures(found: pa.DataType) -> bool:
    if pa.types.is_struct(found):
        inner = {field.name: field.type for field in found}
        return bool(inner) and set(inner) <= {"bytes", "path"} and all(map(_holds_pictures, inner.values()))
    kinds = (
        pa.types.is_null,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    return any(is_kind(found) for is_kind in kinds)


# ---- the rules: what a value must be; a rule gives a message or None

Rule = Callable[[Any, Rules], str | None]

DUPLICATE: Final = "its id is not unique"
_NO_IMAGE: Final = "strength is given, but no image to start from; give an image, or no strength"


def _id_rule(value: Any, rules: Rules) -> str | None:
    return None if value is not None and str(value).strip() else "it has no id; give each row a unique one"


def _prompt_rule(value: Any, rules: Rules) -> str | None:
    missing = rules.task == "generate" and (value is None or not str(value).strip())
    return "it has no prompt; say what to make" if missing else None


def _size_rule(name: str) -> Rule:
    def rule(value: Any, rules: Rules) -> str | None:
        if value is None or rules.task != "generate":
            return None
        if rules.size_multiple <= value <= rules.max_size and value % rules.size_multiple == 0:
            return None
        step = rules.size_multiple
        return f"{name} is {value}; give a multiple of {step} from {step} to {rules.max_size}"

    return rule


def _range_rule(name: str, accepts: Callable[[Any], bool], wanted: str) -> Rule:
    def rule(value: Any, rules: Rules) -> str | None:
        return None if value is None or accepts(value) else f"{name} is {value}; give {wanted}"

    return rule


def _sampler_rule(value: Any, rules: Rules) -> str | None:
    if value is None or rules.samplers is None or value in rules.samplers:
        return None
    near = difflib.get_close_matches(str(value), rules.samplers, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(rules.samplers)}"
    return f'sampler is "{value}", which does not exist; {hint}'


def _source_rule(name: str) -> Rule:
    def rule(value: Any, rules: Rules) -> str | None:
        return f"it has no {name}, which {rules.task} needs" if is_missing(value) else None

    return rule


_RULES: Final[tuple[tuple[str, Rule], ...]] = (
    ("id", _id_rule),
    ("prompt", _prompt_rule),
    ("seed", _range_rule("seed", lambda seed: seed >= 0, "0 or more")),
    ("width", _size_rule("width")),
    ("height", _size_rule("height")),
    (
        "num_inference_steps",
        _range_rule("num_inference_steps", lambda steps: 1 <= steps <= MAX_STEPS, f"1 to {MAX_STEPS}"),
    ),
    (
        "guidance_scale",
        _range_rule("guidance_scale", lambda w: math.isfinite(w) and w >= 0, "a number of 0 or more (1 is off)"),
    ),
    ("guidance_rescale", _range_rule("guidance_rescale", lambda part: 0 <= part <= 1, "0 to 1")),
    ("sampler", _sampler_rule),
    ("eta", _range_rule("eta", lambda eta: 0 <= eta <= 1, "0 to 1")),
    ("strength", _range_rule("strength", lambda part: 0 < part <= 1, "more than 0, at most 1")),
    ("noise_level", _range_rule("noise_level", lambda level: 0 <= level <= MAX_STEPS, f"0 to {MAX_STEPS}")),
)


# ---- the rows


def row_problems(row: Mapping[str, Any], rules: Rules, duplicates: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong with one row, in the words of `validate`; `duplicates` are the ids that stand more than once."""
    found = (rule(row.get(name), rules) for name, rule in rules_for(rules))
    problems = [message for message in found if message]
    if row.get("id") in duplicates:
        problems.append(DUPLICATE)
    if row.get("strength") is not None and is_missing(row.get("image")) and rules.task == "generate":
        problems.append(_NO_IMAGE)
    return problems


def is_missing(source: Any) -> bool:
    """Whether a row's `image` or `mask` holds nothing."""
    return not (source.get("bytes") or source.get("path")) if isinstance(source, Mapping) else not source


def rules_for(rules: Rules) -> tuple[tuple[str, Rule], ...]:
    """The rules that each stand on one column's value."""
    sources = ("image", "mask") if rules.task == "inpaint" else () if rules.task == "generate" else ("image",)
    own = _RULES[:1] if rules.task == "classify" else _RULES
    return (*own, *((name, _source_rule(name)) for name in sources))
