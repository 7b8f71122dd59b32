"""Runs with random faults, restarted by the same command until they finish.

`python -m tests.chaos --seeds 100 --rows 300` prints a line per run and a table of the faults; exit status 1 if a row
was lost, duplicated or has another image. The seeds take turns at the environments, each of which has its own faults.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from tests.chaos.attempt import run_attempt
from tests.chaos.environments import ENVIRONMENTS
from tests.chaos.stories import Story, chaos, table_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", metavar="MANIFEST OUTPUT [ADDRESS]", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--faults", type=int, default=5, help="faults per run")
    parser.add_argument("--environments", nargs="+", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS))
    options = parser.parse_args()
    if options.run:
        return run_attempt(*options.run)
    stories: list[Story] = []
    seeds = range(options.first, options.first + options.seeds)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for story in chaos(seeds, options.rows, options.faults, Path(folder), tuple(options.environments)):
            print(story, flush=True)
            stories.append(story)
    print(table_of(stories))
    wrong = sum(bool(story.problems) for story in stories)
    print(f"{wrong} of {len(stories)} runs were incomplete or differed in the end")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
