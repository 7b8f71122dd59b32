"""Every option of the run commands comes from a field of RunConfig or RowDefaults, and stays what it is."""

from dataclasses import dataclass, fields
from typing import Any

import click
import pytest

from jobs.cli import COMMANDS, cli
from jobs.options import config_of
from pipeline.adapters import AdapterWeight, NamedPath
from pipeline.config import RowDefaults, RunConfig
from pipeline.output.run_record import settings_of
from pipeline.settings import setting, settings_in

OPTIONS: dict[str, dict[str, Any]] = {
    "generate": {
        "--actors": (None, "N|MIN:MAX"),
        "--address": (None, "ADDR"),
        "--allow-root": (None, "PATH_OR_URL"),
        "--call-limit": (300.0, "SECONDS"),
        "--clip-score": (None, "MODEL"),
        "--device": ("auto", None),
        "--dtype": (None, None),
        "--eta": (None, "PART"),
        "--format": ("png", None),
        "--gpus-per-actor": (1.0, "N"),
        "--grace": (30.0, "SECONDS"),
        "--guidance-interval": ((0.0, 1.0), "FROM TO"),
        "--guidance-rescale": (None, "PART"),
        "--guidance-scale": (None, "W"),
        "--height": (None, "PIXELS"),
        "--lanes": (8, "N"),
        "--limit": (None, "N"),
        "--memory-per-actor": (None, "GIB"),
        "--model": ("shapes", "PATH_OR_URL"),
        "--negative-prompt": ("", None),
        "--new-run": (False, None),
        "--num-inference-steps": (None, "N"),
        "--quality": (95, None),
        "--retry-failed": (False, None),
        "--sampler": (None, "NAME"),
        "--seed": (0, "N"),
        "--shard": (None, "I/N"),
        "--skip-invalid": (False, None),
        "--stall-timeout": (600.0, "SECONDS"),
        "--strength": (None, "PART"),
        "--threads": (1, "N"),
        "--width": (None, "PIXELS"),
    },
    "inpaint": {
        "--actors": (None, "N|MIN:MAX"),
        "--address": (None, "ADDR"),
        "--allow-root": (None, "PATH_OR_URL"),
        "--call-limit": (300.0, "SECONDS"),
        "--clip-score": (None, "MODEL"),
        "--device": ("auto", None),
        "--dtype": (None, None),
        "--eta": (None, "PART"),
        "--format": ("png", None),
        "--gpus-per-actor": (1.0, "N"),
        "--grace": (30.0, "SECONDS"),
        "--guidance-interval": ((0.0, 1.0), "FROM TO"),
        "--guidance-rescale": (None, "PART"),
        "--guidance-scale": (None, "W"),
        "--lanes": (8, "N"),
        "--limit": (None, "N"),
        "--mask-dilate": (0, "PIXELS"),
        "--mask-feather": (0, "PIXELS"),
        "--mask-invert": (False, None),
        "--memory-per-actor": (None, "GIB"),
        "--model": ("shapes-inpainting", "PATH_OR_URL"),
        "--negative-prompt": ("", None),
        "--new-run": (False, None),
        "--num-inference-steps": (None, "N"),
        "--quality": (95, None),
        "--retry-failed": (False, None),
        "--sampler": (None, "NAME"),
        "--seed": (0, "N"),
        "--shard": (None, "I/N"),
        "--skip-invalid": (False, None),
        "--stall-timeout": (600.0, "SECONDS"),
        "--strength": (None, "PART"),
        "--threads": (1, "N"),
    },
    "upscale": {
        "--actors": (None, "N|MIN:MAX"),
        "--address": (None, "ADDR"),
        "--allow-root": (None, "PATH_OR_URL"),
        "--call-limit": (300.0, "SECONDS"),
        "--correct-colors": (None, None),
        "--device": ("auto", None),
        "--dtype": (None, None),
        "--eta": (None, "PART"),
        "--format": ("png", None),
        "--gpus-per-actor": (1.0, "N"),
        "--grace": (30.0, "SECONDS"),
        "--guidance-interval": ((0.0, 1.0), "FROM TO"),
        "--guidance-rescale": (None, "PART"),
        "--guidance-scale": (None, "W"),
        "--lanes": (8, "N"),
        "--limit": (None, "N"),
        "--memory-per-actor": (None, "GIB"),
        "--model": ("upscaler", "PATH_OR_URL"),
        "--negative-prompt": ("", None),
        "--new-run": (False, None),
        "--noise-level": (None, "N"),
        "--num-inference-steps": (None, "N"),
        "--overlap": (None, "PIXELS"),
        "--quality": (95, None),
        "--retry-failed": (False, None),
        "--sampler": (None, "NAME"),
        "--scale": ("4", None),
        "--seed": (0, "N"),
        "--shard": (None, "I/N"),
        "--skip-invalid": (False, None),
        "--stall-timeout": (600.0, "SECONDS"),
        "--store": ("parquet", None),
        "--threads": (1, "N"),
        "--tile": (None, "PIXELS"),
    },
    "classify": {
        "--actors": (None, "N|MIN:MAX"),
        "--address": (None, "ADDR"),
        "--allow-root": (None, "PATH_OR_URL"),
        "--device": ("auto", None),
        "--dtype": (None, None),
        "--gpus-per-actor": (1.0, "N"),
        "--grace": (30.0, "SECONDS"),
        "--label": (None, "TEXT"),
        "--lanes": (8, "N"),
        "--limit": (None, "N"),
        "--memory-per-actor": (None, "GIB"),
        "--model": ("shapes-clip", "PATH_OR_URL"),
        "--new-run": (False, None),
        "--retry-failed": (False, None),
        "--shard": (None, "I/N"),
        "--skip-invalid": (False, None),
        "--stall-timeout": (600.0, "SECONDS"),
        "--template": ("{}", "TEXT"),
        "--threads": (1, "N"),
    },
    "estimate": {
        "--actors": (None, "N|MIN:MAX"),
        "--address": (None, "ADDR"),
        "--allow-root": (None, "PATH_OR_URL"),
        "--call-limit": (300.0, "SECONDS"),
        "--device": ("auto", None),
        "--dtype": (None, None),
        "--eta": (None, "PART"),
        "--format": ("png", None),
        "--gpus-per-actor": (1.0, "N"),
        "--grace": (30.0, "SECONDS"),
        "--guidance-interval": ((0.0, 1.0), "FROM TO"),
        "--guidance-rescale": (None, "PART"),
        "--guidance-scale": (None, "W"),
        "--lanes": (8, "N"),
        "--limit": (None, "N"),
        "--memory-per-actor": (None, "GIB"),
        "--model": (None, "PATH_OR_URL"),
        "--negative-prompt": ("", None),
        "--new-run": (False, None),
        "--num-inference-steps": (None, "N"),
        "--price": (None, "PRICE"),
        "--quality": (95, None),
        "--retry-failed": (False, None),
        "--rows": (None, "N"),
        "--sampler": (None, "NAME"),
        "--seed": (0, "N"),
        "--shard": (None, "I/N"),
        "--skip-invalid": (False, None),
        "--stall-timeout": (600.0, "SECONDS"),
        "--strength": (None, "PART"),
        "--task": ("generate", None),
        "--threads": (1, "N"),
    },
}
"""The default and the metavar of each option, by command."""
OWN = {"--task", "--rows", "--price"}
"""Options of `estimate` that are not fields."""


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def options_of(command: str) -> dict[str, click.Option]:
    return {option.opts[0]: option for option in command_of(command).params if isinstance(option, click.Option)}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_keeps_its_name_its_default_and_its_metavar(command: str) -> None:
    values = command_of(command).make_context(command, [], resilient_parsing=True).params
    actual = {flag: (values[option.name or ""], option.metavar) for flag, option in options_of(command).items()}
    expected = {
        flag: (int(default) if flag == "--scale" else default, metavar)
        for flag, (default, metavar) in OPTIONS[command].items()
    }
    loras = {} if command == "classify" else {"--lora": ((), "NAME=PATH_OR_URL"), "--use-lora": ((), "NAME:WEIGHT")}
    loras |= {} if command == "classify" else {"--vae": (None, "PATH_OR_URL"), "--tokenizer": (None, "PATH")}
    if command != "classify":
        loras |= dict.fromkeys(("--timestep-spacing", "--prediction-type", "--zero-terminal-snr"), (None, None))
    loras |= {"--image-guidance-scale": (None, "W")} if command in ("generate", "estimate") else {}
    assert actual == expected | loras | {"--allow-root": ((), "PATH_OR_URL")}


def test_loras_are_given_by_name() -> None:
    arguments = ["--lora", "a=one.safetensors", "--lora", "b=s3://bucket/two", "--use-lora", "a:0.5", "--use-lora", "b"]
    options = command_of("generate").make_context("generate", ["in", "out", *arguments]).params
    given = {name: value for name, value in options.items() if name not in ("manifest", "output")}
    config = config_of("generate", "in", "out", given)
    assert config.loras == (NamedPath("a", "one.safetensors"), NamedPath("b", "s3://bucket/two"))
    assert config.defaults.use_loras == (AdapterWeight("a", 0.5), AdapterWeight("b", 1.0))
    with pytest.raises(click.BadParameter, match="'one' is not NAME=PATH_OR_URL"):
        command_of("generate").make_context("generate", ["in", "out", "--lora", "one"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command: str) -> None:
    assert [flag for flag, option in options_of(command).items() if not option.help] == []


@pytest.mark.parametrize("config", [RowDefaults, RunConfig])
def test_every_field_says_how_it_is_given_recorded_and_compared(config: type) -> None:
    assert list(settings_in(config)) == [field.name for field in fields(config)]
    known = {*OPTIONS}
    for each in settings_in(config).values():
        assert each.option is None or (each.option.commands and known >= {*each.option.commands})
    flags = {flag for command in OPTIONS for flag in options_of(command)} - OWN
    given = {(each.option.flag or f"--{name.replace('_', '-')}") for name, each in _options_in(config).items()}
    assert given <= flags


def _options_in(config: type) -> dict[str, Any]:
    return {name: each for name, each in settings_in(config).items() if each.option is not None}


def test_a_field_without_metadata_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Grown:
        lanes: int = setting(8, "fixed")
        shade: int = 3

    with pytest.raises(TypeError, match="Grown.shade is in none of the lists"):
        settings_in(Grown)


def test_the_record_of_a_run_has_every_field_that_is_not_of_one_attempt() -> None:
    left_out = {field.name for field in fields(RunConfig)} - set(settings_of(RunConfig(task="generate")))
    assert left_out == {"address", "retry_failed", "new_run", "stall_timeout", "grace", "call_limit"}


def test_what_a_resumed_run_may_not_change() -> None:
    fixed = {name for name, each in settings_in(RunConfig).items() if each.resume == "fixed"}
    assert fixed == {
        *("task", "defaults", "seed", "lanes", "threads", "format", "quality", "store", "shard"),
        *("clip_score", "labels", "template", "timestep_spacing", "prediction_type", "zero_terminal_snr"),
    }
    assert {each.resume for each in settings_in(RowDefaults).values()} == {"fixed"}
