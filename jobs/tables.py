"""Tables that commands print."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def terminal() -> Console:
    """Return a console as wide as the terminal, or of 160 characters if the output is not a terminal."""
    return Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=160)


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]], **column: Any) -> None:
    """Print rows of texts under the names of their columns. `column`: arguments of rich's Table.add_column."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, **column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    terminal().print(table)
