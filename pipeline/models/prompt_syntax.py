"""Weights in prompts, in the syntax of AUTOMATIC1111's web UI.

`(word)` multiplies a weight by 1.1, `[word]` divides it by 1.1, `(word:1.3)` multiplies it by 1.3; a backslash makes a
bracket plain text, `BREAK` starts a new window, and a bracket that is not closed reaches to the end.
"""

import re
from typing import Final, NamedTuple

from pipeline.config import PromptSyntax

_FACTOR: Final = 1.1
_PIECE: Final = re.compile(
    r"\\(?P<literal>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])"
)
_BREAK: Final = re.compile(r"\s*\bBREAK\b\s*")


class Segment(NamedTuple):
    """A part of a prompt, and the weight of its tokens."""

    text: str
    weight: float = 1.0


def parse_prompt(prompt: str, syntax: PromptSyntax) -> list[list[Segment]]:
    """Return the segments of a prompt, in a list for each part between `BREAK`s; a plain prompt is one segment."""
    if syntax == "plain":
        return [[Segment(prompt)]]
    parts: list[list[Segment]] = [[]]
    for text, weight in _weighted(prompt):
        first, *others = _BREAK.split(text)
        for number, piece in enumerate([first, *others]):
            if number:
                parts.append([])
            if piece:
                _append(parts[-1], Segment(piece, weight))
    return [part or [Segment("")] for part in parts]


def _weighted(prompt: str) -> list[Segment]:
    """Return the pieces of a prompt with their weights, brackets removed."""
    pieces: list[Segment] = []
    opened: list[tuple[str, int]] = []  # the bracket, and the number of pieces before it
    for match in _PIECE.finditer(prompt):
        bracket, close, weight = match["open"], match["close"], match["weight"]
        if bracket:
            opened.append((bracket, len(pieces)))
        elif weight and _is_open(opened, "("):
            _multiply(pieces, _pop(opened, "("), float(weight))
        elif close and _is_open(opened, "(" if close == ")" else "["):
            _close(pieces, opened, "(" if close == ")" else "[")
        else:
            pieces.append(Segment(match["literal"] or match[0]))
    while opened:
        _close(pieces, opened, opened[-1][0])
    return pieces


def _is_open(opened: list[tuple[str, int]], bracket: str) -> bool:
    return any(kind == bracket for kind, _ in opened)


def _pop(opened: list[tuple[str, int]], bracket: str) -> int:
    """Remove the last open bracket of a kind; return the number of pieces before it."""
    index = max(index for index, (kind, _) in enumerate(opened) if kind == bracket)
    return opened.pop(index)[1]


def _close(pieces: list[Segment], opened: list[tuple[str, int]], bracket: str) -> None:
    _multiply(pieces, _pop(opened, bracket), _FACTOR if bracket == "(" else 1 / _FACTOR)


def _multiply(pieces: list[Segment], start: int, factor: float) -> None:
    pieces[start:] = [Segment(text, weight * factor) for text, weight in pieces[start:]]


def _append(part: list[Segment], segment: Segment) -> None:
    """Add a segment to a part, joined with the last one if that has the same weight."""
    if part and part[-1].weight == segment.weight:
        part[-1] = Segment(part[-1].text + segment.text, segment.weight)
    else:
        part.append(segment)
