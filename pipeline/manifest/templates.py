"""Prompts from a template and lists of values."""

import math
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.errors import BuildError
from pipeline.manifest.sources import Row, Source, read_lines
from pipeline.manifest.values import convert_value
from pipeline.schema import PARAMETERS, SOURCES


def from_template(
    template: str, lists: Mapping[str, Sequence[str]], *, sample: int | None = None, seed: int = 0
) -> Source:
    """Return the prompts of a template such as `"a {size} {color} {shape}"`.

    They are all combinations of the lists, in a fixed order (the last field varies fastest), or a seeded sample of
    `sample` different ones. `a(n)` becomes `a` or `an`, depending on the next word. Each list becomes a column, so that
    a synthetic dataset has its labels. A list that the template does not name must be a parameter of the manifest
    (`sampler`, `num_inference_steps`, ...). BuildError if template and lists do not fit."""
    fields = _fields(template)
    _check_lists(fields, lists)
    names = [*fields, *(name for name in lists if name not in fields)]
    sizes = [len(lists[name]) for name in names]
    total = math.prod(sizes)
    if sample is not None and not 1 <= sample <= total:
        raise BuildError(f"the sample is {sample:,}; give 1 to {total:,}, the number of combinations")
    columns = {"prompt": pa.string()} | {name: PARAMETERS.get(name, pa.string()) for name in names}

    def rows() -> Iterator[Row]:
        indices = range(total) if sample is None else random.Random(seed).sample(range(total), sample)
        for index in indices:
            values = {name: lists[name][digit] for name, digit in zip(names, _digits(index, sizes), strict=True)}
            typed = {name: convert_value(name, value, "a list") for name, value in values.items()}
            yield {"prompt": _with_articles(template.format_map(values)), **typed}

    return Source(columns=columns, rows=rows)


def read_list(text: str) -> list[str]:
    """Parse a list: `red,green,blue`, or `@FILE` with one value per line."""
    if text.startswith("@"):
        return [line.strip() for line in read_lines(text[1:]) if line.strip()]
    return [value.strip() for value in text.split(",") if value.strip()]


def _fields(template: str) -> list[str]:
    """Return the template's fields in the order of their first use."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BuildError(f'the template "{template}": {error}; write a brace as {{{{ or }}}}') from error
    for _, name, spec, conversion in parsed:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise BuildError(
                f'the template "{template}": {{{name}}} is not a field; use a plain name such as {{color}}'
            )
    return list(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))


def _check_lists(fields: list[str], lists: Mapping[str, Sequence[str]]) -> None:
    for name in fields:
        if name not in lists:
            raise BuildError(
                f"the template's {{{name}}} has no list; give --list {name}=ONE,TWO or --list {name}=@FILE"
            )
    for name, values in lists.items():
        if not values:
            raise BuildError(f'the list "{name}" is empty')
        if name not in fields and name not in PARAMETERS:
            raise BuildError(f'the list "{name}" is not used: the template has no {{{name}}}')
        if name in ("id", "prompt", *SOURCES):
            raise BuildError(f'a list cannot be named "{name}": a manifest has its own column with this name')


def _digits(index: int, sizes: list[int]) -> list[int]:
    """Return the digits of a number in the mixed radix `sizes`: one index per list."""
    digits = []
    for size in reversed(sizes):
        index, digit = divmod(index, size)
        digits.append(digit)
    return digits[::-1]


def _with_articles(prompt: str) -> str:
    return re.sub(r"\b([aA])\(n\)(\s+)(?=(\w))", lambda m: m[1] + ("n" if m[3] in "aeiouAEIOU" else "") + m[2], prompt)
