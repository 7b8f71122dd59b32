"""The filesystem for each scheme."""

from pipeline import storage


def test_hugging_face_urls_are_served() -> None:
    filesystem, path = storage.locate("hf://datasets/someone/prompts/m.parquet")
    assert (type(filesystem).__name__, path) == ("HfFileSystem", "datasets/someone/prompts/m.parquet")
    roots = storage.AllowedRoots("", ("hf://datasets/someone/prompts",))
    assert roots.resolve("a.png") == "hf://datasets/someone/prompts/a.png"
