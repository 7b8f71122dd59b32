"""The options of the run commands, derived from the fields of a run's config, and the config that they give."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import click

from pipeline.adapters import AdapterWeight, NamedPath, parse_adapter_weight, parse_named_path
from pipeline.config import RowDefaults, RunConfig, Task
from pipeline.manifest.identity import Shard
from pipeline.settings import Option, settings_in

Function = TypeVar("Function", bound=Callable[..., Any])


class ActorRange(NamedTuple):
    """The value of `--actors`: how many actors a run starts with and, if it may add some, the most of them."""

    minimum: int
    maximum: int | None

    def __str__(self) -> str:
        return str(self.minimum) if self.maximum is None else f"{self.minimum}:{self.maximum}"


class ShardType(click.ParamType):
    """`I/N`."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        index, _, count = str(value).partition("/")
        if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
            return Shard(int(index), int(count))
        self.fail(f"{value!r} is not a shard; give I/N, such as 1/4, with I from 1 to N", param, ctx)


class ActorRangeType(click.ParamType):
    """`N`, or `MIN:MAX`."""

    name = "actors"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ActorRange:
        minimum, colon, maximum = str(value).partition(":")
        if minimum.isdecimal() and (maximum.isdecimal() or not colon):
            actors = ActorRange(int(minimum), int(maximum) if colon else None)
            if actors.minimum >= 1 and (actors.maximum is None or actors.maximum >= actors.minimum):
                return actors
        self.fail(
            f"{value!r} is not a number of actors; give N, 1 or more, or MIN:MAX with MIN not above MAX", param, ctx
        )


class ParsedType(click.ParamType):
    """Text that a function parses; ValueError of the function is a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


_CONFIGS: Final = (RowDefaults, RunConfig)
_TYPES: Final[dict[Any, click.ParamType]] = {
    str: click.STRING,
    Shard: ShardType(),
    NamedPath: ParsedType("name=path", parse_named_path),
    AdapterWeight: ParsedType("name:weight", parse_adapter_weight),
}
_TYPES_BY_NAME: Final[dict[str, click.ParamType]] = {"actors": ActorRangeType()}
"""The types of options whose text sets more than their own field."""


def run_options(command: str) -> Callable[[Function], Function]:
    """Return a decorator that adds to a command the options that the fields of a run's config give it."""
    options = [option for config in _CONFIGS for option in _options(config, command)]

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def config_of(task: Task, manifest: str, output: str, options: Mapping[str, Any]) -> RunConfig:
    """Return the config that a command line asks for. click.UsageError if options exclude each other."""
    given = dict(options)
    given["actors"], given["max_actors"] = given["actors"] or (None, None)
    defaults = RowDefaults(**_given(RowDefaults, given))
    _check(task, defaults, options, output)
    return RunConfig(task=task, manifest=manifest, output=output, defaults=defaults, **_given(RunConfig, given))


def _given(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: options[field.name] for field in fields(config) if field.name in options}


def _options(config: type, command: str) -> list[Callable[[Any], Any]]:
    hints, defaults = get_type_hints(config), {field.name: field.default for field in fields(config)}
    return [
        _click_option(name, hints[name], setting.option.defaults.get(command, defaults[name]), setting.option)
        for name, setting in settings_in(config).items()
        if setting.option is not None and command in setting.option.commands
    ]


def _click_option(name: str, hint: Any, default: Any, option: Option) -> Callable[[Any], Any]:
    """Return the click option of a field; its type follows from the annotation."""
    flag = option.flag or "--" + name.replace("_", "-")
    text = option.help if option.default_text is None else f"{option.help} [default: {option.default_text}]"
    kind = next((part for part in get_args(hint) if part is not NoneType), hint) if NoneType in get_args(hint) else hint
    settings: dict[str, Any] = {"default": default, "metavar": option.metavar, "help": text}
    if kind is bool:
        if default is None:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
            return click.option(flag, name, default=None, help=text)
        return click.option(flag, name, is_flag=True, help=text)
    settings["show_default"] = option.default_text is None and default not in (None, "", ())
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        kind = parts[0]
        settings |= {"multiple": True, "required": option.required} if ... in parts else {"nargs": len(parts)}
        if ... in parts:
            del settings["default"]
    if option.choices:
        settings |= {"default": str(default), "callback": lambda context, parameter, value: int(value)}
    return click.option(flag, name, type=_click_type(name, kind, option), **settings)


def _click_type(name: str, kind: Any, option: Option) -> click.ParamType:
    if name in _TYPES_BY_NAME:
        return _TYPES_BY_NAME[name]
    if option.choices:
        return click.Choice([str(choice) for choice in option.choices])
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind in (int, float):
        if option.bounds is None:
            return click.INT if kind is int else click.FLOAT
        ranged: Any = click.IntRange if kind is int else click.FloatRange
        return ranged(*option.bounds, min_open=option.open)
    return _TYPES[kind]


def _check(task: Task, defaults: RowDefaults, options: Mapping[str, Any], output: str) -> None:
    start, end = defaults.guidance_interval
    if start >= end:
        raise click.UsageError(f"--guidance-interval {start} {end}: the first must be smaller")
    if defaults.guidance_scale is not None and not math.isfinite(defaults.guidance_scale):
        raise click.UsageError("--guidance-scale must be a finite number")
    if task != "classify" and options["lanes"] < 2 and (defaults.guidance_scale is None or defaults.guidance_scale > 1):
        raise click.UsageError("--lanes 1 has no room for guidance; give --lanes 2 or more, or --guidance-scale 1")
    if output.endswith(".parquet"):
        raise click.UsageError(f"OUTPUT is a folder; {output} looks like a file")
