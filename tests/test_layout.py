"""Import rules between folders, read from the sources: a wrong import fails even where no test runs it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("pipeline", "jobs", "cluster") for path in (ROOT / folder).rglob("*.py"))

BASE = ("adapters", "errors", "config", "schema", "settings")
DATA = ("manifest", "images", "storage")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "adapters": (),
    "errors": (),
    "schema": (),
    "settings": (),
    "config": ("schema", "manifest.identity"),
    "storage": (),
    "images": (),
    "manifest": ("storage",),
    "diffusion": (),
    "models": ("images",),
    "tasks": ("models", "diffusion", "images"),
    "inference": ("tasks", "models", "diffusion", "images", "storage"),
    "output": (*DATA, "stages.rows"),
    "stages": (*DATA, "inference", "tasks", "models", "output.provenance"),
    "run": (*DATA, "stages", "inference", "output", "diffusion", "models"),
    "report": (*DATA, "output", "run.progress", "stages.fetch"),
    "training": (*DATA, "models", "diffusion", "stages.fetch"),
    "__init__": ("run", "output", "manifest"),
}
"""A folder or file of the package, and what else of the package it may import beside itself and BASE."""

RAY = ("run", "output/sink.py", "training/ray_train.py")
NO_TORCH = ("adapters", "errors", "config", "settings", "schema", "storage", "manifest", "output", "report", "images")
TORCH_IMAGES = ("images/colors.py", "images/masks.py", "images/visible_colors.py")
PURE = ("models", "diffusion", "tasks", "images")
IMPURE_MODULES = ("fsspec", "s3fs", "click", "rich", "pipeline.storage")
NEVER_AT_RUN_TIME = ("diffusers", "accelerate", "peft", "datasets", "pandas", "pytest", "hypothesis")


def imports(path: Path) -> Iterator[str]:
    return imported(path.read_text(), path.relative_to(ROOT).with_suffix("").parts)


def imported(source: str, module: tuple[str, ...]) -> Iterator[str]:
    """Every module that a source imports, anywhere in it; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module[: -node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def below(path: Path, folders: tuple[str, ...]) -> bool:
    relative = path.relative_to(ROOT / "pipeline").with_suffix("").as_posix()
    return any(relative == folder.removesuffix(".py") or relative.startswith(folder + "/") for folder in folders)


def forbidden_of(path: Path, names: set[str]) -> list[str]:
    """The imports of one file that its folder does not allow."""
    own = names & {name for name in names if within(name, NEVER_AT_RUN_TIME)}
    package = path.relative_to(ROOT).parts[0]
    if package != "pipeline":
        layers = ("tests", "jobs") if package == "cluster" else ("tests",)
        return sorted(own | {name for name in names if within(name, layers)})
    folder = path.relative_to(ROOT / "pipeline").with_suffix("").parts[0]
    allowed = tuple(f"pipeline.{name}" for name in (*BASE, folder, *MAY_IMPORT[folder]))
    own |= {name for name in names if within(name, ("jobs", "cluster", "tests"))}
    own |= {name for name in names if name.startswith("pipeline.") and not _allows(allowed, name)}
    if not below(path, RAY):
        own |= {name for name in names if within(name, ("ray",))}
    if below(path, NO_TORCH) and not below(path, TORCH_IMAGES):
        own |= {name for name in names if within(name, ("torch", "transformers"))}
    if below(path, PURE):
        own |= {name for name in names if within(name, IMPURE_MODULES)}
    return sorted(own)


def _allows(allowed: tuple[str, ...], name: str) -> bool:
    """Whether a module is allowed, or is a parent package of what is (`from pipeline import storage`)."""
    return within(name, allowed) or any(module.startswith(name + ".") for module in allowed)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_its_folder_allows(path: Path) -> None:
    assert forbidden_of(path, set(imports(path))) == []


def test_relative_and_lazy_imports_are_seen() -> None:
    source = "def f():\n    from ..models import unet\n    import ray.data\n"
    names = set(imported(source, ("pipeline", "diffusion", "probe")))
    assert {"pipeline.models", "pipeline.models.unet", "ray.data"} <= names
    assert {"pipeline.models.unet", "ray.data"} <= set(forbidden_of(ROOT / "pipeline/diffusion/probe.py", names))
