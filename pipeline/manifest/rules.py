"""The rules for the rows of a manifest, and the messages for rows that break them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.adapters import adapter_weights
from pipeline.config import MAX_SIZE, Task
from pipeline.errors import printable
from pipeline.manifest.arrow_values import Unreadable

_MAX_STEPS: Final = 1000
_MAX_SEED: Final = 2**64 - 1
"""The largest seed that torch takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The parameters of the rules: the task, and the limits of the model."""

    task: Task = "generate"
    sampler_name: Callable[[str], str] | None = None
    """Returns the sampler that a name means; ValueError if there is none. `None`: any name is accepted."""
    loras: tuple[str, ...] | None = None
    """The names of LoRAs that exist; `None`: any name is accepted."""
    needs_image: bool = False
    """Whether each row that is generated needs an image, which the model edits."""
    size_multiple: int = 8
    """Divisor of a row's width and height, in pixels."""
    max_size: int = MAX_SIZE
    """Limit on a row's width and on its height, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem of a row, or of the whole manifest if `row` is None."""

    message: str
    row: int | None = None
    id: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        if self.row is None:
            return printable(self.message)
        name = "" if self.id is None else f' (id "{self.id}")'
        return printable(f"row {self.row}{name}: {self.message}")


Rule = Callable[[Any, Rules], str | None]
"""A function that takes a column's value and returns a message if it is invalid, else None."""

DUPLICATE: Final = "its id is not unique"
_NO_IMAGE: Final = "strength is given, but no image to start from; give an image, or no strength"


def _id_rule(value: Any, rules: Rules) -> str | None:
    return None if value is not None and str(value).strip() else "it has no id; give each row a unique one"


def _prompt_rule(value: Any, rules: Rules) -> str | None:
    missing = rules.task == "generate" and value is None
    return 'it has no prompt (null); give a text, or "" for an unconditional image' if missing else None


def _size_rule(name: str) -> Rule:
    def rule(value: Any, rules: Rules) -> str | None:
        if value is None or rules.task != "generate":
            return None
        if rules.size_multiple <= value <= rules.max_size and value % rules.size_multiple == 0:
            return None
        step = rules.size_multiple
        return f"{name} is {value}; give a multiple of {step} from {step} to {rules.max_size}"

    return rule


def _range_rule(name: str, accepts: Callable[[Any], bool], allowed: str) -> Rule:
    def rule(value: Any, rules: Rules) -> str | None:
        return None if value is None or accepts(value) else f"{name} is {value}; give {allowed}"

    return rule


def _scale_rule(name: str, off: str) -> Rule:
    return _range_rule(name, lambda scale: math.isfinite(scale) and scale >= 0, f"a number of 0 or more ({off})")


def _sampler_rule(value: Any, rules: Rules) -> str | None:
    if value is None or rules.sampler_name is None:
        return None
    try:
        rules.sampler_name(str(value))
    except ValueError as error:
        return str(error)
    return None


def _loras_rule(value: Any, rules: Rules) -> str | None:
    try:
        adapter_weights(value, rules.loras)
    except ValueError as error:
        return f"loras: {error}"
    return None


def _source_rule(name: str) -> Rule:
    def rule(value: Any, rules: Rules) -> str | None:
        needing = "this model" if rules.needs_image else rules.task
        return f"it has no {name}, which {needing} needs" if is_missing(value) else None

    return rule


_RULES: Final[tuple[tuple[str, Rule], ...]] = (
    ("id", _id_rule),
    ("prompt", _prompt_rule),
    ("seed", _range_rule("seed", lambda seed: 0 <= seed <= _MAX_SEED, f"0 to {_MAX_SEED}")),
    ("width", _size_rule("width")),
    ("height", _size_rule("height")),
    (
        "num_inference_steps",
        _range_rule("num_inference_steps", lambda steps: 1 <= steps <= _MAX_STEPS, f"1 to {_MAX_STEPS}"),
    ),
    ("guidance_scale", _scale_rule("guidance_scale", "0 to 1 is off")),
    ("image_guidance_scale", _scale_rule("image_guidance_scale", "below 1, guidance is off")),
    ("guidance_rescale", _range_rule("guidance_rescale", lambda part: 0 <= part <= 1, "0 to 1")),
    ("sampler", _sampler_rule),
    ("loras", _loras_rule),
    ("eta", _range_rule("eta", lambda eta: 0 <= eta <= 1, "0 to 1")),
    ("strength", _range_rule("strength", lambda part: 0 < part <= 1, "more than 0, at most 1")),
    ("noise_level", _range_rule("noise_level", lambda level: 0 <= level <= _MAX_STEPS, f"0 to {_MAX_STEPS}")),
    ("clip_skip", _range_rule("clip_skip", lambda layers: layers >= 0, "0 or more")),
)


def row_problems(row: Mapping[str, Any], rules: Rules, duplicates: frozenset[str] = frozenset()) -> list[str]:
    """Return the messages of all problems of one row; `duplicates` are the ids that are not unique."""
    problems = [
        message for name, rule in column_rules(rules) if (message := value_problem(name, row.get(name), rule, rules))
    ]
    if row.get("id") in duplicates:
        problems.append(DUPLICATE)
    if row.get("strength") is not None and is_missing(row.get("image")) and rules.task == "generate":
        problems.append(_NO_IMAGE)
    return problems


def value_problem(name: str, value: Any, rule: Rule, rules: Rules) -> str | None:
    """Return the message if a column's value is invalid."""
    if isinstance(value, Unreadable):
        return f'{name} is not UTF-8 text ("{value[:40]}"); write it in UTF-8'
    return rule(value, rules)


def is_missing(source: Any) -> bool:
    """Return True if a row's `image` or `mask` is empty."""
    return not (source.get("bytes") or source.get("path")) if isinstance(source, Mapping) else not source


def column_rules(rules: Rules) -> tuple[tuple[str, Rule], ...]:
    """Return the columns that have a rule for their values, and the rules."""
    without = rules.task == "generate" and not rules.needs_image
    sources = ("image", "mask") if rules.task == "inpaint" else () if without else ("image",)
    parameters = _RULES[:1] if rules.task == "classify" else _RULES
    return (*parameters, *((name, _source_rule(name)) for name in sources))
