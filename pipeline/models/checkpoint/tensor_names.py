"""The names of stored tensors, and which of a network's tensors are made of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from torch import Tensor

Change = Literal["none", "transposed", "first third", "second third", "last third"]
"""How a network's tensor is made of the stored one: OpenCLIP stacks queries, keys and values in one tensor."""
_THIRDS: Final = {"first third": 0, "second third": 1, "last third": 2}


def changed(tensor: Tensor, change: Change) -> Tensor:
    """Return the network's tensor of a stored one; it shares no memory with the other parts of that."""
    if change == "transposed":
        return tensor.T.contiguous()
    return tensor if change == "none" else tensor.chunk(3)[_THIRDS[change]].clone()


class Target(NamedTuple):
    """A network's tensor that is made of a stored one."""

    name: str
    change: Change = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorNames:
    """The mapping from the tensor names in a component's files to those of its network."""

    strip: str = ""
    """A prefix of the names in old files."""
    renames: tuple[tuple[str, str], ...] = ()
    """Pairs of an old part of a name and the new one."""
    ignored: tuple[str, ...] = ()
    """Suffixes of the names of tensors that are not weights."""

    def targets(self, stored: str) -> Sequence[Target]:
        """Return the network's tensors that are made of a stored one; none if it is not a weight."""
        if self.ignored and stored.endswith(self.ignored):
            return ()
        name = stored.removeprefix(self.strip)
        for old, new in self.renames:
            name = name.replace(old, new)
        return (Target(name),)


PLAIN_NAMES: Final = TensorNames()

REFERENCES: Final = "single_file.index.json"
"""The file in a component's folder that refers to the tensors of a single-file checkpoint.

It has the name of each of the network's tensors, with the stored name and the change. The folder above has a link to
the file (`SINGLE_FILE` of layout.py)."""

StoredTensors = Mapping[str, tuple[str, Change]]
"""A component's tensors by their names in the network: the stored name, and the change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ReferencedNames(TensorNames):
    """The names that a component's references give; the file's other tensors are those of other components."""

    by_stored: Mapping[str, Sequence[Target]]

    def targets(self, stored: str) -> Sequence[Target]:
        return self.by_stored.get(stored, ())


def write_references(folder: Path, tensors: StoredTensors) -> None:
    """Write a component's references to the tensors of a single-file checkpoint."""
    (folder / REFERENCES).write_text(json.dumps(tensors, indent=0) + "\n", encoding="utf-8")


def referenced_names(folder: Path) -> TensorNames | None:
    """Return the names that a component's references give; None if it has weights of its own."""
    if not (folder / REFERENCES).is_file():
        return None
    by_stored: dict[str, list[Target]] = {}
    for name, (stored, change) in json.loads((folder / REFERENCES).read_text(encoding="utf-8")).items():
        by_stored.setdefault(stored, []).append(Target(name, change))
    return _ReferencedNames(by_stored=by_stored)
