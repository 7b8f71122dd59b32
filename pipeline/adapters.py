"""Files that a run adds to its checkpoint under names, and the weights with which rows use LoRAs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

LANE_INPUTS: Final = ("lora_indices", "lora_weights")
"""The network's inputs (M,) with the low-rank adapters of a row, on the CPU: those that it uses first, then -1 and 0.

A call gets as many terms as one of its rows uses, which may be none; the others change no bit."""


class NamedPath(NamedTuple):
    """A file that a run declares by `NAME=PATH_OR_URL`."""

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name}={self.path}"


class AdapterWeight(NamedTuple):
    """A LoRA that a row uses, by its name in the run, and the factor of its effect."""

    name: str
    weight: float

    def __str__(self) -> str:
        return f"{self.name}:{self.weight:g}"


def parse_named_path(text: str) -> NamedPath:
    """Return the parts of `NAME=PATH_OR_URL`; ValueError if one is missing, or the name has characters of lists."""
    name, equals, path = (part.strip() for part in text.partition("="))
    if not (name and equals and path):
        raise ValueError(f"{text!r} is not NAME=PATH_OR_URL, such as style=style.safetensors")
    if set(name) & set(":,=/") or name != name.strip() or not name.isprintable():
        raise ValueError(f"the name {name!r} of {path} must not have :, comma or slash; it is what rows write")
    return NamedPath(name, path)


def parse_adapter_weight(text: str) -> AdapterWeight:
    """Return the parts of `NAME:WEIGHT` or `NAME`, whose weight is 1. ValueError if it is neither."""
    name, colon, weight = (part.strip() for part in text.partition(":"))
    try:
        number = float(weight) if colon else 1.0
    except ValueError:
        number = math.nan
    return _checked(name, number, f"{text.strip()!r}")


def adapter_weights(value: Any, names: Iterable[str] | None = None) -> tuple[AdapterWeight, ...]:
    """Return the LoRAs of a row's `loras`; None, "" and an empty list have none.

    The value is a list of {name, weight}, where a weight of None is 1, or the text `name:weight, name:weight`.
    ValueError if it is neither, a name comes twice, a weight is not a finite number, or a name is not among `names`."""
    if isinstance(value, str):
        found = [parse_adapter_weight(part) for part in value.split(",") if part.strip()]
    else:
        found = [_from_item(item) for item in value or ()]
    seen: set[str] = set()
    for name, _ in found:
        if name in seen:
            raise ValueError(f"{name!r} comes twice; give each LoRA once")
        seen.add(name)
    if names is not None and (unknown := [name for name, _ in found if name not in (known := tuple(names))]):
        given = f"the run has {', '.join(known)}" if known else "the run has none"
        raise ValueError(f"there is no LoRA {unknown[0]!r}; {given}; declare it with --lora {unknown[0]}=PATH_OR_URL")
    return tuple(found)


def _from_item(item: Any) -> AdapterWeight:
    if isinstance(item, str):
        return parse_adapter_weight(item)
    if isinstance(item, tuple) and len(item) == 2:
        item = {"name": item[0], "weight": item[1]}
    if not isinstance(item, Mapping):
        raise ValueError(f"{item!r} has no name; give a name and a weight")
    name, weight = item.get("name"), item.get("weight")
    return _checked(name or "", 1.0 if weight is None else float(weight), f"{name!r}")


def _checked(name: str, weight: float, shown: str) -> AdapterWeight:
    if not name:
        raise ValueError(f"{shown} has no name; give name:weight")
    if not math.isfinite(weight):
        raise ValueError(f"{shown} needs a weight that is a finite number, such as {name}:0.8")
    return AdapterWeight(name, weight)
