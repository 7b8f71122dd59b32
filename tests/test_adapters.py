"""Names and weights of LoRAs as options and rows give them."""

from typing import Any

import pytest

from pipeline.adapters import AdapterWeight, NamedPath, adapter_weights, parse_adapter_weight, parse_named_path


def test_a_named_path_has_a_name_and_a_path_or_url() -> None:
    assert parse_named_path("style=s3://bucket/a=b.safetensors") == NamedPath("style", "s3://bucket/a=b.safetensors")
    assert str(NamedPath("style", "a.safetensors")) == "style=a.safetensors"


@pytest.mark.parametrize("text", ["style", "=a.safetensors", "style=", "a:b=c", "a,b=c", "folder/a=c"])
def test_a_named_path_that_rows_could_not_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not NAME=PATH_OR_URL|must not have"):
        parse_named_path(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("a", (AdapterWeight("a", 1.0),)),
        ("a:0.5, b : -1", (AdapterWeight("a", 0.5), AdapterWeight("b", -1.0))),
        (
            [{"name": "a", "weight": None}, {"name": "b", "weight": 2}],
            (AdapterWeight("a", 1.0), AdapterWeight("b", 2.0)),
        ),
        ((AdapterWeight("a", 0.5), ("b", 2)), (AdapterWeight("a", 0.5), AdapterWeight("b", 2.0))),
    ],
)
def test_a_row_names_its_loras_as_a_list_or_as_text(value: Any, expected: tuple[AdapterWeight, ...]) -> None:
    assert adapter_weights(value, ["a", "b"]) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("c:1", "there is no LoRA 'c'; the run has a, b"),
        ("a, b:0.5, a", "'a' comes twice"),
        ("a:nan", "'a:nan' needs a weight that is a finite number"),
        ("a:strong", "'a:strong' needs a weight"),
        (":1", "has no name"),
        ([{"name": "a", "weight": float("inf")}], "'a' needs a weight"),
        ([{"weight": 1.0}], "has no name"),
        ([3], "3 has no name"),
    ],
)
def test_loras_that_no_run_could_use_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter_weights(value, ["a", "b"])


def test_a_weight_is_optional() -> None:
    assert parse_adapter_weight("a") == ("a", 1.0)
