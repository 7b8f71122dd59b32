"""Who may import whom: read from the sources, so a wrong import fails even where no test runs it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("pipeline", "jobs", "cluster") for path in (ROOT / folder).rglob("*.py"))

RULES: dict[str, tuple[str, ...]] = {
    "pipeline": ("jobs", "cluster", "tests"),
    "pipeline/diffusion": ("pipeline.models", "pipeline.tasks", "transformers", "safetensors", "diffusers"),
    "pipeline/models": ("pipeline.diffusion", "pipeline.tasks"),
    "pipeline/tasks": ("pipeline.stages", "pipeline.run", "pipeline.sink"),
    "pipeline/stages.py": ("pipeline.run", "pipeline.sink"),
    "pipeline/schema.py": ("pipeline",),
    "pipeline/config.py": ("torch",),
    "pipeline/images.py": ("torch",),
    "pipeline/storage.py": ("torch",),
    "pipeline/manifest.py": ("torch",),
    "cluster": ("jobs",),
}
"""A folder or file, and the modules that it may not import."""

PURE = ("pipeline/models", "pipeline/diffusion", "pipeline/tasks", "pipeline/images.py")
IMPURE_MODULES = ("ray", "fsspec", "s3fs", "click", "rich", "pipeline.storage", "pipeline.run", "pipeline.sink")
MAY_IMPORT_RAY = (
    "pipeline/run.py",
    "pipeline/ray_cluster.py",
    "pipeline/sink.py",
    "pipeline/training",
    "jobs",
    "cluster",
)
NEVER_AT_RUN_TIME = ("diffusers", "accelerate", "datasets", "pandas", "pytest", "hypothesis")


def imports(path: Path) -> Iterator[str]:
    return imported(path.read_text(), path.relative_to(ROOT).with_suffix("").parts)


def imported(source: str, place: tuple[str, ...]) -> Iterator[str]:
    """Every module that a source imports, anywhere in it; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(place[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def below(path: Path, places: tuple[str, ...]) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return any(relative == place or relative.startswith(place + "/") for place in places)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_its_place_allows(path: Path) -> None:
    forbidden = tuple(module for place, modules in RULES.items() if below(path, (place,)) for module in modules)
    if below(path, PURE):
        forbidden += IMPURE_MODULES
    if not below(path, MAY_IMPORT_RAY):
        forbidden += ("ray",)
    if not path.name.startswith("bench"):
        forbidden += NEVER_AT_RUN_TIME
    assert sorted(name for name in set(imports(path)) if within(name, forbidden)) == []


def test_ray_stands_in_one_training_file_at_most() -> None:
    users = [path.name for path in SOURCES if below(path, ("pipeline/training",)) and "ray" in set(imports(path))]
    assert len(users) <= 1


def test_relative_and_lazy_imports_are_seen() -> None:
    source = "def f():\n    from ..models import unet\n    import ray.data\n"
    assert {"pipeline.models", "pipeline.models.unet", "ray.data"} <= set(
        imported(source, ("pipeline", "diffusion", "probe"))
    )
