"""Drawn scenes in other styles, from which a LoRA learns a style. Their captions do not name it."""

from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from pipeline.training.data.drawing import draw_lines
from pipeline.training.data.examples import Example, scenes
from pipeline.training.data.scenes import Background, Scene, vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Lines around the things of a scene, and what is inside and outside of them."""

    line: str | None
    """The color of the lines; None is that of each thing."""
    filled: bool
    """Whether things have their color inside of the lines, and not the background's."""
    background: str | None = None
    """The color of every background; None is the scene's own background."""
    instead: str
    """The color of a line that would have the color of the thing or of the background."""

    def draw(self, scene: Scene, width: int = 64) -> Image.Image:
        """Return the scene as an RGB image of `width` x `width` pixels."""
        if self.background is not None:
            scene = replace(scene, background=Background("plain", (self.background,)))
        lines = [self.line or thing.color for thing in scene.things]
        hidden = [{thing.color} if self.filled else {self.background} for thing in scene.things]
        colors = [self.instead if line in unseen else line for line, unseen in zip(lines, hidden, strict=True)]
        return draw_lines(scene, width, colors, filled=self.filled)


STYLES: Final[dict[str, Style]] = {
    "outlined": Style(line="black", filled=True, instead="white"),
    "blueprint": Style(line="white", filled=False, background="blue", instead="white"),
    "neon": Style(line=None, filled=False, background="black", instead="white"),
}


@dataclass(frozen=True, slots=True)
class StyledScenes:
    """Scenes in one of STYLES."""

    style: str
    size: None = None

    def words(self) -> tuple[str, ...]:
        return vocabulary()

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        style = STYLES[self.style]
        return [(style.draw(scene, width), scene.caption()) for scene in scenes(seed, start, count)]
