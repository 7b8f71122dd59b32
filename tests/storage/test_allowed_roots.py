"""The roots from which a manifest may read images: no reference leads out of them."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.storage import AllowedRoots


@pytest.fixture
def roots(tmp_path: Path) -> AllowedRoots:
    (tmp_path / "m" / "pictures").mkdir(parents=True)
    (tmp_path / "m" / "pictures" / "a.png").write_bytes(b"a")
    (tmp_path / "m" / "rows.parquet").write_bytes(b"")
    (tmp_path / "m-secret").mkdir()
    (tmp_path / "m-secret" / "a.png").write_bytes(b"secret")
    (tmp_path / "m" / "link").symlink_to(tmp_path / "m-secret")
    return AllowedRoots(str(tmp_path / "m" / "rows.parquet"), ("s3://pictures/public",))


@pytest.mark.parametrize("reference", ["pictures/a.png", "./pictures/a.png"])
def test_relative_paths_are_below_the_manifest(roots: AllowedRoots, tmp_path: Path, reference: str) -> None:
    assert roots.resolve(reference) == str(tmp_path / "m" / "pictures" / "a.png")


def test_absolute_paths_and_urls_below_a_root_are_read(roots: AllowedRoots, tmp_path: Path) -> None:
    assert roots.resolve(str(tmp_path / "m" / "pictures" / "a.png")).endswith("a.png")
    assert roots.resolve(f"file://{tmp_path}/m/pictures/a.png").endswith("a.png")
    for start in ("file://localhost", "file:", "FILE://"):
        assert roots.resolve(f"{start}{tmp_path}/m/pict%75res/a.png") == str(tmp_path / "m" / "pictures" / "a.png")
    assert roots.resolve("s3://pictures/public/a.png") == "s3://pictures/public/a.png"


@pytest.mark.parametrize(
    "reference",
    [
        "../m-secret/a.png",
        "pictures/../../m-secret/a.png",
        "link/a.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "file://localhost/etc/passwd",
        "file:///etc/%70asswd",
        "file:///%2e%2e/etc/passwd",
        "s3://pictures/private/a.png",
        "s3://pictures/publicity/a.png",
        "s3://pictures/public/../private/a.png",
        "http://169.254.169.254/latest",
        "simplecache::file:///etc/passwd",
        "a\0b",
        "",
    ],
)
def test_a_reference_outside_the_roots_is_refused(roots: AllowedRoots, tmp_path: Path, reference: str) -> None:
    with pytest.raises(StorageError):
        roots.resolve(reference)
    with pytest.raises(StorageError):
        roots.resolve(f"{tmp_path}/m-secret/a.png")


def test_a_root_may_be_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    roots = AllowedRoots("../m", ("../pictures",))
    assert roots.resolve(f"{tmp_path}/pictures/a.png") == f"{tmp_path}/pictures/a.png"
    assert roots.resolve("a.png") == f"{tmp_path}/m/a.png"


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://roots/{tmp_path.name}"
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_bucket")


@pytest.mark.parametrize("name", ["manifest", "manifest-2025.11.25", "prompts.parquet", "v1.2/m.x"])
def test_a_folder_is_the_root_whatever_its_name_is(store: str, name: str) -> None:
    storage.write_bytes(storage.join(store, name, "part-0"), b"")
    storage.write_bytes(storage.join(store, "theirs", "a.png"), b"")
    for url in (storage.join(store, name), storage.join(store, name) + "/"):
        roots = AllowedRoots(url)
        assert roots.resolve("a.png") == storage.join(store, name, "a.png")
        with pytest.raises(StorageError):
            roots.resolve(storage.join(store, "theirs", "a.png"))


@pytest.mark.parametrize("name", ["rows", "rows.parquet", "rows.v2"])
def test_the_root_of_a_file_is_its_folder_whatever_its_name_is(store: str, name: str) -> None:
    storage.write_bytes(storage.join(store, "m", name), b"")
    assert AllowedRoots(storage.join(store, "m", name)).resolve("a.png") == storage.join(store, "m", "a.png")


def test_a_manifest_that_does_not_exist_allows_nothing_beside_it(store: str) -> None:
    storage.write_bytes(storage.join(store, "theirs", "a.png"), b"")
    with pytest.raises(StorageError):
        AllowedRoots(storage.join(store, "absent.parquet")).resolve(storage.join(store, "theirs", "a.png"))


@given(st.lists(st.sampled_from(["..", ".", "a", "link", "~", "%2e%2e", "...", "", "file:", "\\.."]), max_size=6))
def test_no_spelling_of_a_path_leaves_the_root(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    base = os.path.realpath(tmp_path_factory.getbasetemp())
    try:
        path = AllowedRoots(base).resolve("/".join(parts))
    except StorageError:
        return
    assert os.path.commonpath([base, os.path.realpath(path)]) == base
