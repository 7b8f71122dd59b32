"""The command `latentmill`: imports the module of a command when it is used, and prints an error as one line.

Exit status: 0, success; 1, it could not start or did not finish; 3, it finished and some rows failed.
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
    "check": ("jobs.check", "Check that OUTPUT holds every row once, and that every file and image is intact."),
    "classify": ("jobs.classify", "Find the label that fits each image of MANIFEST best."),
    "convert": ("jobs.convert", "Write a single-file checkpoint as a folder in diffusers' layout."),
    "doctor": ("jobs.doctor", "Diagnose a cluster, its storage and a checkpoint."),
    "estimate": ("jobs.estimate", "Estimate time, cost and output size from a few rows of MANIFEST."),
    "generate": ("jobs.generate", "Generate the images of the rows of MANIFEST."),
    "inpaint": ("jobs.inpaint", "Repaint the masked area of each image of MANIFEST."),
    "manifest": ("jobs.manifest", "Build, validate and show manifests."),
    "upscale": ("jobs.upscale", "Upscale the images of MANIFEST."),
    "submit": ("jobs.submit", "Submit a command as a job to a Ray cluster."),
    "list": ("jobs.cluster_jobs", "List the jobs of a Ray cluster."),
    "status": ("jobs.cluster_jobs", "Show the status of a job."),
    "logs": ("jobs.cluster_jobs", "Print the log of a job."),
    "stop": ("jobs.cluster_jobs", "Stop a job; its committed rows remain."),
    "report": ("jobs.report", "Write a gallery, figures and failures of a run to OUTPUT/report."),
    "train": ("jobs.train", "Train the checkpoint of RECIPE in the folder OUTPUT."),
}
"""The module of each command, which has a function of the command's name, and its line in `latentmill --help`.

The lines are here so that `latentmill --help` does not import the modules."""

EXIT_BAD_ROWS: Final = 3


class Commands(click.Group):
    """A click group that imports a command when it is used."""

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
    """Run a command and exit with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    use_token()
    try:
        status = cli.main(args=arguments, prog_name="latentmill", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped. Run the same command again to continue.", err=True)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports the closed pipe at exit
        return 1
    except Exception as error:  # noqa: BLE001 - the outermost frame: every error becomes one line
        if os.environ.get("LATENTMILL_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        hint = "" if isinstance(error, ValueError | OSError) else " (set LATENTMILL_DEBUG=1 for the traceback)"
        click.echo(f"Error: {one_line(error)}{hint}", err=True)
        return 1
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
