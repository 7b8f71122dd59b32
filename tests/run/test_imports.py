"""The public API is imported lazily, and what needs no torch does not import it."""

import subprocess
import sys
from types import ModuleType

import pytest

import pipeline


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.config",
        "pipeline.report.write",
        "pipeline.output.audit",
        "pipeline.stages.prepare",
        "pipeline.stages.encode",
    ],
)
def test_a_module_does_not_import_torch(module: str) -> None:
    run_python(f"import sys, {module}; assert 'torch' not in sys.modules")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["check", "--help"]])
def test_a_help_text_needs_neither_torch_nor_ray(arguments: list[str]) -> None:
    run_python(
        f"import sys; from jobs.cli import run; run({arguments}); assert not {{'torch', 'ray'}} & set(sys.modules)"
    )


def test_the_config_needs_neither_ray_nor_torch() -> None:
    run_python("import sys; from pipeline import RunConfig, run; assert not {'torch', 'ray'} & set(sys.modules)")


def test_the_public_names() -> None:
    assert pipeline.__all__ == ["RowDefaults", "RunConfig", "build_processor", "check", "estimate", "run"]
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    assert isinstance(pipeline.run, ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        _ = pipeline.walk  # pyright: ignore[reportAttributeAccessIssue]
