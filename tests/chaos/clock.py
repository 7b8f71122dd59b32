"""The wall clock of a machine, which jumps; needs a C compiler."""

import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("clock.c")
_LONGEST_JUMP: Final = 12 * 3600


@dataclass(frozen=True)
class Clock:
    """The wall clock of the Python processes that are started with its variables; it starts at the true time."""

    variables: Mapping[str, str]
    _path: Path

    @classmethod
    def create(cls, folder: Path, name: str) -> "Clock":
        library, path = folder / "clock.so", folder / f"{name}.clock"
        if not library.exists():
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
        path.write_bytes(bytes(8))
        preload = {"LD_PRELOAD": str(library), "RAY_LD_PRELOAD_ON_WORKERS": "1"}
        return cls({**preload, "CHAOS_CLOCK": str(path)}, path)

    def jump(self, chance: random.Random) -> None:
        """Set the clock forward or back by up to twelve hours; it stays so until the next jump."""
        offset = chance.choice((-1, 1)) * chance.randint(60, _LONGEST_JUMP)
        with open(self._path, "r+b", buffering=0) as file:  # the processes have mapped this file
            file.write(offset.to_bytes(8, "little", signed=True))
