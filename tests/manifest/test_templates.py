"""Prompts from a template and lists."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BuildError
from pipeline.manifest.templates import from_template, read_list
from tests.sample_manifests import build_rows

LISTS = {"size": ["small", "large"], "color": ["red", "orange"], "shape": ["circle", "star", "ring"]}


def test_a_template_gives_all_combinations_in_a_fixed_order(tmp_path: Path) -> None:
    rows = build_rows(from_template("a(n) {color} {shape}, {size}", LISTS), tmp_path)
    expected = itertools.product(LISTS["color"], LISTS["shape"], LISTS["size"])
    assert [(row["color"], row["shape"], row["size"]) for row in rows] == list(expected)
    assert rows[0]["prompt"] == "a red circle, small"
    assert rows[-1]["prompt"] == "an orange ring, large"


def test_a_list_that_names_a_parameter_makes_a_grid(tmp_path: Path) -> None:
    lists = {"color": ["red"], "sampler": ["ddim", "euler"], "num_inference_steps": ["5", "20"]}
    rows = build_rows(from_template("a {color} {{ring}}", lists), tmp_path)
    assert {row["prompt"] for row in rows} == {"a red {ring}"}
    grid = [("ddim", 5), ("ddim", 20), ("euler", 5), ("euler", 20)]
    assert [(row["sampler"], row["num_inference_steps"]) for row in rows] == grid


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99), st.data())
def test_a_sample_is_seeded_and_without_repetition(sizes: list[int], seed: int, data: st.DataObject) -> None:
    lists = {f"f{n}": [f"v{value}" for value in range(size)] for n, size in enumerate(sizes)}
    template = " ".join(f"{{{name}}}" for name in lists)
    total = len(list(from_template(template, lists).rows()))
    sample = data.draw(st.integers(1, total))
    drawn = [row["prompt"] for row in from_template(template, lists, sample=sample, seed=seed).rows()]
    assert drawn == [row["prompt"] for row in from_template(template, lists, sample=sample, seed=seed).rows()]
    assert len(set(drawn)) == sample
    assert set(drawn) <= {" ".join(values) for values in itertools.product(*lists.values())}


def test_sampling_from_very_many_combinations_is_fast() -> None:
    lists = {f"f{n}": [str(value) for value in range(100)] for n in range(8)}
    source = from_template(" ".join(f"{{{name}}}" for name in lists), lists, sample=100)
    assert len({row["prompt"] for row in source.rows()}) == 100


@pytest.mark.parametrize(
    ("template", "lists", "message"),
    [
        ("a {color}", {}, r"{color} has no list; give --list color=ONE,TWO"),
        ("a cat", {"color": ["red"]}, r'"color" is not used'),
        ("a {color}", {"color": []}, '"color" is empty'),
        ("a {color.x}", {"color": ["red"]}, "use a plain name"),
        ("a {color", {"color": ["red"]}, "write a brace as"),
        ("a {id}", {"id": ["red"]}, 'cannot be named "id"'),
    ],
)
def test_an_invalid_template_is_refused(template: str, lists: dict[str, list[str]], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        from_template(template, lists)


def test_a_list_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "colors.txt").write_text("red\n\n light blue \n")
    assert read_list(f"@{tmp_path}/colors.txt") == ["red", "light blue"]
    assert read_list("red, light blue,") == ["red", "light blue"]
    with pytest.raises(BuildError, match="cannot be read"):
        read_list("@/nowhere.txt")
