"""`latentmill manifest`: build, validate and show manifests."""

from typing import Any, Final, get_args

import click

from jobs.cli import EXIT_BAD_ROWS
from pipeline.config import Task

_SHOWN_PROBLEMS: Final = 1000


@click.group()
def manifest() -> None:
    """Build, validate and show manifests, the Parquet tables of a run's rows."""


@manifest.command()
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] MANIFEST")
@click.option("--template", help='Build prompts from a template and lists: "a {size} {color} {shape}".')
@click.option(
    "--list",
    "lists",
    multiple=True,
    metavar="NAME=A,B,C",
    help="Values, or NAME=@FILE with one per line; repeatable.",
)
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Draw N different combinations instead of all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of --sample.")
@click.option(
    "--images-per-prompt",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    metavar="N",
    help="Rows per prompt.",
)
@click.option(
    "--prompt-column",
    default="prompt",
    show_default=True,
    metavar="NAME",
    help="Column with the prompts.",
)
@click.option(
    "--set",
    "constants",
    multiple=True,
    metavar="NAME=VALUE",
    help="Column value for rows without one; repeatable.",
)
@click.option(
    "--include", multiple=True, metavar="GLOB", help="Images to include from a folder; repeatable. [default: all]"
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Images to exclude from a folder; repeatable.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use only the first N rows.")
def build(paths: tuple[str, ...], **options: Any) -> None:
    """Build MANIFEST (.parquet) from SOURCE, or from a --template.

    SOURCE is a .csv, .tsv, .jsonl, .txt (one prompt per line) or .parquet file, or a folder of images, which is read
    recursively; a local path or URL. Rows without an id get one.

    \b
    latentmill manifest build prompts.csv prompts.parquet
    latentmill manifest build s3://archive/scans scans.parquet --exclude "*/thumbnails/*"
    latentmill manifest build shapes.parquet --template "a {size} {color} {shape}" \\
        --list size=small,large --list color=red,green,blue --list shape=@shapes.txt --images-per-prompt 4
    """
    from pipeline import storage
    from pipeline.manifest.build import build

    source = _source(paths, options)
    rows = build(
        source,
        paths[-1],
        images_per_prompt=options["images_per_prompt"],
        constants=dict(_pair(text, "--set") for text in options["constants"]),
        limit=options["limit"],
    )
    left_out = f"; left out: {'; '.join(source.left_out)}" if source.left_out else ""
    click.echo(f"{rows:,} rows written to {storage.redact_url(paths[-1])}{left_out}")


@manifest.command()
@click.argument("path", metavar="MANIFEST")
@click.option(
    "--task", type=click.Choice(get_args(Task)), default="generate", show_default=True, help="Task to validate for."
)
@click.option(
    "--size-multiple",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Divisor of widths and heights, in pixels.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use only the first N rows.")
def validate(path: str, task: Task, size_multiple: int, limit: int | None) -> int:
    """Print every problem of MANIFEST with its row (counted from 0) and id.

    Exit status: 0, no problem; 1, the manifest cannot be read; 3, there are problems.
    """
    from pipeline.diffusion.catalog import canonical_name
    from pipeline.manifest.read import count_rows
    from pipeline.manifest.rules import Rules
    from pipeline.manifest.validate import validate as problems_in

    rules = Rules(task=task, sampler_name=canonical_name, size_multiple=size_multiple)
    count = 0
    for problem in problems_in(path, rules, limit=limit):
        count += 1
        if count <= _SHOWN_PROBLEMS:
            click.echo(str(problem))
    if count > _SHOWN_PROBLEMS:
        click.echo(f"... and {count - _SHOWN_PROBLEMS:,} more")
    rows = min(count_rows(path), limit or 2**63)
    click.echo(f"{rows:,} rows, {'no problem' if not count else f'{count:,} problem' + 's' * (count > 1)}")
    return EXIT_BAD_ROWS if count else 0


@manifest.command()
@click.argument("path", metavar="MANIFEST")
@click.option("--rows", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Number of rows to show.")
def show(path: str, rows: int) -> None:
    """Show the first rows of MANIFEST, its columns, and its numbers of rows and distinct prompts."""
    from rich.text import Text

    from jobs.tables import print_table, terminal
    from pipeline.manifest.summary import summarize

    summary = summarize(path, rows)
    names = [name for name in summary.columns if any(row.get(name) is not None for row in summary.first_rows)]
    if summary.first_rows:
        print_table(names, ([_cell(row.get(name)) for name in names] for row in summary.first_rows), no_wrap=True)
    console = terminal()
    console.print(Text(f"{summary.rows:,} rows, {summary.distinct_prompts:,} distinct prompts"))
    console.print(Text("columns: " + ", ".join(f"{name} ({kind})" for name, kind in summary.columns.items())))


def _source(paths: tuple[str, ...], options: dict[str, Any]) -> Any:
    from pipeline import storage
    from pipeline.manifest.image_folder import from_folder
    from pipeline.manifest.sources import from_file
    from pipeline.manifest.templates import from_template, read_list

    if options["template"] is not None:
        if len(paths) != 1:
            raise click.UsageError("with --template give only MANIFEST: the template is the source")
        lists = {name: read_list(values) for name, values in (_pair(text, "--list") for text in options["lists"])}
        return from_template(options["template"], lists, sample=options["sample"], seed=options["seed"])
    if options["lists"] or options["sample"]:
        raise click.UsageError("--list and --sample need --template")
    if len(paths) != 2:
        raise click.UsageError("give SOURCE and MANIFEST, or --template and MANIFEST")
    if not paths[0].lower().rstrip("/").endswith(".parquet") and storage.is_folder(paths[0]):
        return from_folder(paths[0], paths[1], include=options["include"], exclude=options["exclude"])
    return from_file(paths[0], prompt_column=options["prompt_column"])


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise click.UsageError(f"{option} {text}: write NAME=VALUE")
    return name.strip(), value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return f"{len(value['bytes']):,} bytes"
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
