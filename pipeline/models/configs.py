"""Reading the field's `config.json` into typed configs: what is not understood is refused, not ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self


class CheckpointError(ValueError):
    """A checkpoint that can't be loaded: one line that names the file, the key or the tensor, and what would be right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A network's config: its fields are the keys that are used, CONSTANTS the keys that have but one meaning here."""

    CONSTANTS: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> Self:
        """The config in `source` (a file's name, for errors); keys that no network here knows pass when empty."""
        names = {field.name for field in fields(cls)}
        for key, allowed in cls.CONSTANTS.items():
            if key in config and config[key] not in allowed:
                raise CheckpointError(f"{source}: {key} is {config[key]!r}; only {allowed[0]!r} is supported")
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in names}
        return cls(**values)
