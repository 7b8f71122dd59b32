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

ALL = ("generate", "inpaint", "upscale", "classify", "estimate")
IMAGES = tuple(command for command in ALL if command != "classify")
MODELS = {
    "generate": "shapes",
    "inpaint": "shapes-inpainting",
    "upscale": "upscaler",
    "classify": "shapes-clip",
    "estimate": None,
}
"""The default of --model, by command."""
OPTIONS: dict[str, tuple[tuple[str, ...], Any, str | None]] = {
    "--actors": (ALL, None, "N|MIN:MAX"),
    "--address": (ALL, None, "ADDR"),
    "--aesthetic-score": (("generate", "inpaint"), None, "SCORE"),
    "--allow-root": (ALL, (), "PATH_OR_URL"),
    "--call-limit": (IMAGES, 300.0, "SECONDS"),
    "--clip-score": (("generate", "inpaint"), None, "MODEL"),
    "--clip-skip": (IMAGES, None, "N"),
    "--correct-colors": (("upscale",), None, None),
    "--crop": (("generate", "inpaint"), None, "LEFT TOP"),
    "--device": (ALL, "auto", None),
    "--dtype": (ALL, None, None),
    "--embedding": (("generate", "inpaint", "upscale"), (), "NAME=PATH_OR_URL"),
    "--eta": (IMAGES, None, "PART"),
    "--format": (IMAGES, "png", None),
    "--gpus-per-actor": (ALL, 1.0, "N"),
    "--grace": (ALL, 30.0, "SECONDS"),
    "--guidance-interval": (IMAGES, (0.0, 1.0), "FROM TO"),
    "--guidance-rescale": (IMAGES, None, "PART"),
    "--guidance-scale": (IMAGES, None, "W"),
    "--height": (("generate",), None, "PIXELS"),
    "--image-guidance-scale": (("generate", "estimate"), None, "W"),
    "--label": (("classify",), None, "TEXT"),
    "--lanes": (ALL, 8, "N"),
    "--limit": (ALL, None, "N"),
    "--lora": (IMAGES, (), "NAME=PATH_OR_URL"),
    "--mask-dilate": (("inpaint",), 0, "PIXELS"),
    "--mask-feather": (("inpaint",), 0, "PIXELS"),
    "--mask-invert": (("inpaint",), False, None),
    "--memory-per-actor": (ALL, None, "GIB"),
    "--negative-aesthetic-score": (("generate", "inpaint"), None, "SCORE"),
    "--negative-prompt": (IMAGES, None, "TEXT"),
    "--new-run": (ALL, False, None),
    "--noise-level": (("upscale",), None, "N"),
    "--num-inference-steps": (IMAGES, None, "N"),
    "--original-size": (("generate", "inpaint"), None, "WIDTH HEIGHT"),
    "--overlap": (("upscale",), None, "PIXELS"),
    "--prediction-type": (IMAGES, None, None),
    "--price": (("estimate",), None, "PRICE"),
    "--prompt-syntax": (IMAGES, "plain", None),
    "--quality": (IMAGES, 95, None),
    "--retry-failed": (ALL, False, None),
    "--rows": (("estimate",), None, "N"),
    "--sampler": (IMAGES, None, "NAME"),
    "--seed": (IMAGES, 0, "N"),
    "--shard": (ALL, None, "I/N"),
    "--skip-invalid": (ALL, False, None),
    "--stall-timeout": (ALL, 600.0, "SECONDS"),
    "--store": (("upscale",), "parquet", None),
    "--strength": (("generate", "inpaint", "estimate"), None, "PART"),
    "--target-size": (("generate", "inpaint"), None, "WIDTH HEIGHT"),
    "--task": (("estimate",), "generate", None),
    "--template": (("classify",), "{}", "TEXT"),
    "--threads": (ALL, 1, "N"),
    "--tile": (("upscale",), None, "PIXELS"),
    "--timestep-spacing": (IMAGES, None, None),
    "--tokenizer": (IMAGES, None, "PATH"),
    "--use-lora": (IMAGES, (), "NAME:WEIGHT"),
    "--vae": (IMAGES, None, "PATH_OR_URL"),
    "--width": (("generate",), None, "PIXELS"),
    "--zero-terminal-snr": (IMAGES, None, None),
}
"""The commands that have an option, its default, and its metavar."""
SCALING = ("upscale",)
"""The commands that have --scale, whose default is 4."""
OWN = {"--task", "--rows", "--price"}
"""Options of `estimate` that are not fields."""


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def options_of(command: str) -> dict[str, click.Option]:
    return {option.opts[0]: option for option in command_of(command).params if isinstance(option, click.Option)}


@pytest.mark.parametrize("command", ALL)
def test_every_option_keeps_its_name_its_default_and_its_metavar(command: str) -> None:
    values = command_of(command).make_context(command, [], resilient_parsing=True).params
    actual = {flag: (values[option.name or ""], option.metavar) for flag, option in options_of(command).items()}
    expected = {
        flag: (default, metavar) for flag, (commands, default, metavar) in OPTIONS.items() if command in commands
    }
    expected["--model"] = (MODELS[command], "PATH_OR_URL")
    assert {flag: value for flag, value in actual.items() if flag != "--scale"} == expected
    assert ("--scale" in actual) == (command in SCALING)


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
    known = {*ALL}
    for each in settings_in(config).values():
        assert each.option is None or (each.option.commands and known >= {*each.option.commands})
    flags = {flag for command in ALL for flag in options_of(command)} - OWN
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
