"""Prompts from a template and lists."""

import math
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.errors import BuildError
from pipeline.manifest.sources import read_lines
from pipeline.manifest.values import Row, Source, convert_value
from pipeline.schema import PARAMETERS, SOURCES


def from_template(
    template: str, lists: Mapping[str, Sequence[str]], *, sample: int | None = None, seed: int = 0
) -> Source:
    """Prompts of a template such as `"a {size} {color} {shape}"`: every combination of the lists, in a fixed order
    (the last field runs fastest), or a seeded sample of `sample` different ones.

    `a(n)` becomes `a` or `an` by the word after it. A list that the template does not name must be one of the
    manifest's parameters (`sampler`, `num_inference_steps`, ...), and then varies that column. Each list becomes a
    column, so that the labels of a synthetic data set come with its pictures."""
    fields = _fields(template)
    _check_lists(fields, lists)
    names = [*fields, *(name for name in lists if name not in fields)]
    sizes = [len(lists[name]) for name in names]
    total = math.prod(sizes)
    if sample is not None and not 1 <= sample <= total:
        raise BuildError(f"a sample of {sample:,} cannot be drawn: there are {total:,} combinations")
    columns = {"prompt": pa.string()} | {name: PARAMETERS.get(name, pa.string()) for name in names}

    def rows() -> Iterator[Row]:
        chosen = range(total) if sample is None else random.Random(seed).sample(range(total), sample)
        for index in chosen:
            values = {name: lists[name][place] for name, place in zip(names, _places(index, sizes), strict=True)}
            typed = {name: convert_value(name, value, "a list") for name, value in values.items()}
            yield {"prompt": _with_articles(template.format_map(values)), **typed}

    return Source(columns=columns, rows=rows)


def read_list(text: str) -> list[str]:
    """The values of a list as it is given: `red,green,blue`, or `@FILE` with one a line."""
    if text.startswith("@"):
        return [line.strip() for line in read_lines(text[1:]) if line.strip()]
    return [value.strip() for value in text.split(",") if value.strip()]


# ---- templates


def _fields(template: str) -> list[str]:
    """The template's fields in the order in which they first stand there."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BuildError(f'the template "{template}": {error}; write a brace as {{{{ or }}}}') from error
    for _, name, spec, conversion in parsed:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise BuildError(f'the template "{template}": a field is a plain name such as {{color}}, not {{{name}}}')
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
            raise BuildError(f'the list "{name}" is used nowhere: the template has no {{{name}}}')
        if name in ("id", "prompt", *SOURCES):
            raise BuildError(f'a list cannot be named "{name}": the manifest has a column of this name')


def _places(index: int, sizes: list[int]) -> list[int]:
    places = []
    for size in reversed(sizes):
        index, place = divmod(index, size)
        places.append(place)
    return places[::-1]


def _with_articles(prompt: str) -> str:
    return re.sub(r"\b([aA])\(n\)(\s+)(?=(\w))", lambda m: m[1] + ("n" if m[3] in "aeiouAEIOU" else "") + m[2], prompt)
