"""The command `latentmill`: finds a command's file when it is asked for, and turns errors into one line.

Exit status: 0, all is well; 1, could not start or did not finish; 3, finished, and some rows are bad.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from pipeline.errors import one_line
from pipeline.run.ray_token import use_token

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "check": ("jobs.check", "Audit OUTPUT: every row once, every file and picture whole."),
    "classify": ("jobs.classify", "Say which of some labels each picture of MANIFEST fits best."),
    "doctor": ("jobs.doctor", "Check a cluster, a storage and a checkpoint, and say what to do."),
    "estimate": ("jobs.estimate", "Make a few rows of MANIFEST and say what all of them would take."),
    "generate": ("jobs.generate", "Make pictures of the rows of MANIFEST, as Parquet in OUTPUT."),
    "inpaint": ("jobs.inpaint", "Make the masked part of pictures anew, as Parquet in OUTPUT."),
    "manifest": ("jobs.manifest", "Build, validate and show manifests."),
    "upscale": ("jobs.upscale", "Make pictures four times as wide and high, as Parquet in OUTPUT."),
    "submit": ("jobs.submit", "Run a command as a job on a Ray cluster: submit -- generate MANIFEST OUTPUT."),
    "list": ("jobs.cluster_jobs", "List the jobs of a cluster."),
    "status": ("jobs.cluster_jobs", "Say how a job stands."),
    "logs": ("jobs.cluster_jobs", "Print a job's log."),
    "stop": ("jobs.cluster_jobs", "Stop a job; what is finished stays."),
    "report": ("jobs.report", "Write a gallery and figures of a run into OUTPUT/report."),
    "train": ("jobs.train", "Train RECIPE into the checkpoint folder OUTPUT."),
}
"""A command's module, which holds a function of the command's name, and what it does in one line.

The lines stand here so that `latentmill --help` imports none of the modules."""

EXIT_BAD_ROWS: Final = 3


class Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="latentmill", prog_name="latentmill")
@click.option("--debug", is_flag=True, envvar="LATENTMILL_DEBUG", help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Latent diffusion over tables: a Parquet manifest in, images and their provenance out, on Ray."""
    context.obj = debug
    if debug:
        os.environ["LATENTMILL_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit status of one command line."""
    use_token()
    try:
        status = cli.main(args=arguments, prog_name="latentmill", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped. The same command goes on from here.", err=True)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it ends
        return 1
    except Exception as error:  # noqa: BLE001 - the door: whatever it is, a person reads one line
        if os.environ.get("LATENTMILL_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        hint = "" if isinstance(error, ValueError | OSError) else " (LATENTMILL_DEBUG=1 shows where)"
        click.echo(f"Error: {one_line(error)}{hint}", err=True)
        return 1
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
