"""Metadata of the fields of a config: the command-line option, what a resumed run may change, what run.json records.

The metadata is plain data. `jobs/options.py` turns it into click options; `output/run_record.py` records a run by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeVar

Default = TypeVar("Default")
Resume = Literal["fixed", "free"]
"""Whether a later attempt at the same output may change a field: "free" if it may."""
Record = Literal["plain", "redacted", "none"]
"""How run.json holds a field: unchanged, as a URL without its credentials, or not at all."""
Location = Literal["path", "checkpoint"]
"""A path or URL, or one that may also be the name of an embedded checkpoint."""

_KEY: Final = "latentmill"


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """The command-line option of a field; its type follows from the field's annotation."""

    help: str
    commands: tuple[str, ...]
    """The commands that have it."""
    flag: str | None
    """Such as "--label"; `None`: the field's name."""
    metavar: str | None
    bounds: tuple[float, float | None] | None
    """The smallest and the largest number allowed; `None` for no upper limit."""
    open: bool
    """The lower bound itself is not allowed."""
    choices: tuple[int, ...]
    """The numbers allowed, if there are few."""
    default_text: str | None
    """The default in words, if the field's value does not say it."""
    defaults: Mapping[str, Any]
    """The defaults of single commands, if they differ from the field's."""
    required: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The metadata of one field."""

    resume: Resume
    record: Record
    location: Location | None
    option: Option | None
    """`None`: the field has no option of its own."""


def metadata(
    resume: Resume, *, record: Record = "plain", location: Location | None = None, option: Option | None = None
) -> dict[str, Setting]:
    """Return the metadata of a field that has no default."""
    return {_KEY: Setting(resume=resume, record=record, location=location, option=option)}


def setting(default: Default, resume: Resume, *, record: Record = "plain", location: Location | None = None) -> Default:
    """Define a field without an option of its own."""
    return field(default=default, metadata=metadata(resume, record=record, location=location))


def option(
    default: Default,
    resume: Resume,
    commands: tuple[str, ...],
    help: str,
    *,
    record: Record = "plain",
    location: Location | None = None,
    flag: str | None = None,
    metavar: str | None = None,
    bounds: tuple[float, float | None] | None = None,
    open: bool = False,
    choices: tuple[int, ...] = (),
    default_text: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    required: bool = False,
) -> Default:
    """Define a field with a command-line option; the arguments are the fields of Option and Setting."""
    command_line = Option(
        help=help,
        commands=commands,
        flag=flag,
        metavar=metavar,
        bounds=bounds,
        open=open,
        choices=choices,
        default_text=default_text,
        defaults=defaults or {},
        required=required,
    )
    return field(default=default, metadata=metadata(resume, record=record, location=location, option=command_line))


def settings_in(config: type) -> dict[str, Setting]:
    """Return the metadata of a config's fields by name. TypeError if a field has none."""
    by_name: dict[str, Setting] = {}
    for each in fields(config):
        if _KEY not in each.metadata:
            raise TypeError(
                f"{config.__name__}.{each.name} is in none of the lists; define it by option() or setting()"
            )
        by_name[each.name] = each.metadata[_KEY]
    return by_name
