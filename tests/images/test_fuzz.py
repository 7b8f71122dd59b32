"""The fuzz run in a short form, and that it sees what it looks for."""

from pipeline.errors import ImageError
from tests.fuzz_images import FORMATS, Finding, file_of, run, verdict


def test_no_damaged_file_ends_the_process_hangs_or_goes_without_a_reason() -> None:
    results = list(run(1, 1_200))
    assert len(results) == 1_200
    assert [result for result in results if isinstance(result, Finding)] == []
    decoded = {kind for kind, verdicts in (r for r in results if not isinstance(r, Finding)) if "decoded" in verdicts}
    assert decoded == set(FORMATS)  # the damage is not so great that nothing is decoded


def test_a_seed_names_its_files_and_a_fault_of_the_decoder_is_a_finding() -> None:
    assert file_of(1, 7) == file_of(1, 7) != file_of(2, 7)

    def raises(error: Exception) -> str:
        def decode(content: bytes, max_pixels: int) -> None:
            raise error

        return verdict(b"", decode)

    assert raises(ImageError("the image is damaged")) == "the image is damaged"
    assert raises(ImageError("two\nlines")).startswith("! ")
    assert raises(MemoryError()).startswith("! ")
