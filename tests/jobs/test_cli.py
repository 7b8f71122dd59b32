"""The command line: its output, its errors and its exit status."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from jobs.generate import generate
from jobs.options import config_of
from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import one_line
from pipeline.manifest.identity import Shard

Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    status = cli.run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def config(*arguments: str) -> RunConfig:
    options = dict(generate.make_context("generate", list(arguments)).params)
    return config_of("generate", options.pop("manifest"), options.pop("output"), options)


def test_help_is_fast_and_imports_neither_torch_nor_ray() -> None:
    started = time.perf_counter()
    code = "import sys; from jobs.cli import run; run(['--help']); assert not {'torch', 'ray'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 5
    for command in cli.COMMANDS:
        assert f"  {command}" in result.stdout


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).parent / "latentmill"
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("latentmill, version ")


@pytest.mark.parametrize("command", ["generate", "manifest", "report", "train"])
def test_the_line_of_a_command_agrees_with_its_help(capsys: Captured, command: str) -> None:
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert cli.COMMANDS[command][1].split(":")[0].rstrip(".") in " ".join(out.split())


def test_a_manifest_goes_from_csv_to_a_table(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,label\na cat,1\na dog,2\n")
    path = f"{tmp_path}/m.parquet"
    assert run(capsys, "manifest", "build", f"{tmp_path}/p.csv", path) == (0, f"2 rows written to {path}\n", "")
    status, out, _ = run(capsys, "manifest", "show", path, "--rows", "1")
    assert status == 0
    assert "a cat" in out
    assert "a dog" not in out
    assert "2 rows, 2 distinct prompts" in out
    assert run(capsys, "manifest", "validate", path) == (0, "2 rows, no problem\n", "")


def test_a_template_is_built_from_the_command_line(capsys: Captured, tmp_path: Path) -> None:
    path = f"{tmp_path}/m.parquet"
    lists = ["--list", "color=red,green,blue", "--list", "shape=circle,star"]
    arguments = ["--template", "a {color} {shape}", *lists, "--sample", "4", "--seed", "1", "--images-per-prompt", "2"]
    assert run(capsys, "manifest", "build", path, *arguments)[0] == 0
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 8
    assert len({row["prompt"] for row in rows}) == 4


def test_every_problem_is_printed_and_the_status_is_3(capsys: Captured, tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "a", "c"], "prompt": ["x", "y", None], "sampler": ["eulr", None, None]})
    pq.write_table(table, tmp_path / "m.parquet")
    status, out, err = run(capsys, "manifest", "validate", f"{tmp_path}/m.parquet")
    assert (status, err) == (3, "")
    assert out.splitlines() == [
        'row 0 (id "a"): sampler is "eulr", which does not exist; did you mean "euler", "euler_a"?',
        'row 2 (id "c"): it has no prompt (null); give a text, or "" for an unconditional image',
        'row 0 (id "a"): its id is not unique: row 1 has it too',
        'row 1 (id "a"): its id is not unique: row 0 has it too',
        "3 rows, 4 problems",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["manifest", "show", "absent.parquet"], "Error: absent.parquet: there is no such file or folder\n"),
        (["manifest", "build", "absent.csv", "m.parquet"], "Error: absent.csv: cannot be read; there is no such file"),
        (["manifest", "build", "m.parquet"], "Error: give SOURCE and MANIFEST, or --template and MANIFEST"),
        (["manifest", "build", "p.csv", "m.csv"], "Error: "),
        (["manifest", "build", "m.parquet", "--template", "a {x}", "--list", "x"], "Error: --list x: write NAME=VALUE"),
        (["manifest", "show", "ftp://host/m.parquet"], "Error: ftp://host/m.parquet: cannot use ftp:// URLs"),
        (["generate", "m.parquet", "out", "--num-inference-steps", "0"], "0 is not in the range 1<=x<=1000"),
        (["generate", "m.parquet", "out.parquet"], "OUTPUT is a folder; out.parquet looks like a file"),
        (["generate", "m.parquet", "out", "--lanes", "1"], "--lanes 1 has no room for guidance"),
        (["train", "shapes-diffusion", "out"], "out has no vae; train shapes-autoencoder into it first"),
        (["train", "upscaler", "out"], "out has no vae; train textures-autoencoder into it first"),
        (["generate", "m.parquet", "out", "--guidance-scale", "nan"], "--guidance-scale"),
        (["generate", "m.parquet", "out", "--guidance-interval", "0.8", "0.2"], "the first must be smaller"),
        (["generat", "m.parquet"], "No such command"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_status_1(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("Error")]) == 1


@pytest.mark.parametrize(
    ("recipe", "maker"),
    [("shapes-inpainting", "shapes-diffusion"), ("shapes-diffusion-clip", "shapes-diffusion-frozen-clip")],
)
def test_a_recipe_names_the_recipe_that_must_come_first(
    capsys: Captured, tmp_path: Path, recipe: str, maker: str
) -> None:
    for component in ("vae", "unet"):
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text("{}")
    status, _, err = run(capsys, "train", recipe, str(tmp_path))
    assert status == 1
    assert f"has no text_encoder; train {maker} into it first" in err


def test_debug_shows_the_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_DEBUG", "1")
    assert "Traceback" in run(capsys, "manifest", "show", "absent.parquet")[2]


def test_an_error_of_an_actor_is_described_by_its_cause() -> None:
    class RayTaskError(Exception):
        cause = ValueError("the checkpoint has no unet\nmore")

    assert one_line(RayTaskError("ray::Denoise()\n  File ...")) == "the checkpoint has no unet"
    assert one_line(RuntimeError("first\nlast")) == "RuntimeError: last"


def test_flags_become_the_config() -> None:
    assert config("m.parquet", "out") == RunConfig(task="generate", manifest="m.parquet", output="out")
    flags = (
        "--sampler euler --num-inference-steps 7 --guidance-scale 3 --guidance-interval 0.1 0.9 --width 64 --height 32"
    )
    flags += " --strength 0.5 --eta 1 --guidance-rescale 0.7 --negative-prompt blurry --seed 9 --lanes 4 --threads 2"
    flags += " --actors 3 --device cpu --dtype bfloat16 --format webp --quality 80 --allow-root a --allow-root s3://b"
    flags += " --skip-invalid --address auto --limit 5 --model m"
    assert config("m.parquet", "out", *flags.split()) == RunConfig(
        task="generate",
        manifest="m.parquet",
        output="out",
        model="m",
        defaults=RowDefaults(
            negative_prompt="blurry",
            width=64,
            height=32,
            num_inference_steps=7,
            guidance_scale=3.0,
            guidance_rescale=0.7,
            guidance_interval=(0.1, 0.9),
            sampler="euler",
            eta=1.0,
            strength=0.5,
        ),
        seed=9,
        lanes=4,
        threads=2,
        actors=3,
        device="cpu",
        dtype="bfloat16",
        format="webp",
        quality=80,
        allow_roots=("a", "s3://b"),
        skip_invalid=True,
        address="auto",
        limit=5,
    )


def test_a_closed_pipe_gives_no_traceback(tmp_path: Path) -> None:
    rows = 20_000
    pq.write_table(
        pa.table({"id": [str(n) for n in range(rows)], "prompt": pa.nulls(rows, pa.string())}), tmp_path / "m.parquet"
    )
    command = f'"{sys.executable}" -m jobs.cli manifest validate "{tmp_path}/m.parquet" | head -n 1'
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=root, env=os.environ, check=True)
    assert "it has no prompt" in done.stdout
    assert "Traceback" not in done.stderr


def test_actors_are_a_number_or_a_range(capsys: Captured) -> None:
    assert (config("m", "o").actors, config("m", "o").max_actors) == (None, None)
    assert (config("m", "o", "--actors", "3").actors, config("m", "o", "--actors", "3").max_actors) == (3, None)
    ranged = config("m", "o", "--actors", "2:8")
    assert (ranged.actors, ranged.max_actors) == (2, 8)
    for wrong in ("0", "3:2", "2:", "x", "-1"):
        status, _, err = run(capsys, "generate", "m", "o", "--actors", wrong)
        assert status == 1
        assert "give N, 1 or more, or MIN:MAX" in err


def test_a_shard_is_one_of_a_count(capsys: Captured) -> None:
    assert config("m", "o", "--shard", "2/3").shard == Shard(2, 3)
    for wrong in ("0/3", "4/3", "2", "a/b", "2/"):
        status, _, err = run(capsys, "generate", "m", "o", "--shard", wrong)
        assert status == 1
        assert "give I/N, such as 1/4, with I from 1 to N" in err
