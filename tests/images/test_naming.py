"""File names of images: valid on every file system, and different for different ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.naming import file_name, stored_name


@given(st.text())
def test_a_name_is_short_and_has_no_separator(row_id: str) -> None:
    name = file_name(row_id, "png")
    assert len(name.encode()) <= 200 and not name.startswith(".")
    assert not set(name) & set('/\\:*?"<>| \n\0')


@given(st.text(), st.text())
def test_different_ids_have_different_names(one: str, other: str) -> None:
    assert (file_name(one, "png") == file_name(other, "png")) == (one == other)


@pytest.mark.parametrize(("one", "other"), [("a b", "a\nb"), ("a/b", "a_b"), ("x" * 300, "x" * 301), ("", "image")])
def test_ids_that_look_alike_have_different_names(one: str, other: str) -> None:
    assert file_name(one, "png") != file_name(other, "png")


def test_a_plain_id_is_the_name() -> None:
    assert file_name("cat-1_Würfel.x", "jpeg") == "cat-1_Würfel.x.jpg"


def test_a_long_path_is_shortened_in_bytes() -> None:
    photo = "фото" * 50
    path = stored_name("a", f"{photo}/{photo}.png", "png")
    assert all(len(part.encode()) <= 200 for part in path.split("/")) and len(path.split("/")) == 3
    assert stored_name("a", "/".join(["folder" * 20] * 20) + "/x.png", "png").startswith("files/x-")
    assert stored_name("a", "b/c.png", "png") == "files/b/c-ca978112.png"
    assert stored_name("红" * 100, None, "png") != stored_name("红" * 101, None, "png")
