"""Tables of the terminal: what several commands print."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def terminal() -> Console:
    """Where tables are printed: as wide as the terminal, or 160 letters where there is none."""
    return Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=160)


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]], **column: Any) -> None:
    """Print rows of texts under their names. `column`: what rich's Table.add_column takes for each of them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, **column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    terminal().print(table)
