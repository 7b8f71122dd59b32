"""A short fuzz run, and proof that it detects errors of a decoder."""

from pipeline.errors import ImageError
from tests.fuzz_images import FORMATS, Finding, damaged_file, decode_verdict, run


def test_no_damaged_file_crashes_hangs_or_fails_without_a_reason() -> None:
    results = list(run(1, 1_200))
    assert len(results) == 1_200
    assert [result for result in results if isinstance(result, Finding)] == []
    decoded = {kind for kind, verdicts in (r for r in results if not isinstance(r, Finding)) if "decoded" in verdicts}
    assert decoded == set(FORMATS)  # some damaged files of each format still decode


def test_a_seed_fixes_the_files_and_a_decoder_error_is_a_finding() -> None:
    assert damaged_file(1, 7) == damaged_file(1, 7) != damaged_file(2, 7)

    def verdict_for(error: Exception) -> str:
        def decode(content: bytes, max_pixels: int) -> None:
            raise error

        return decode_verdict(b"", decode)

    assert verdict_for(ImageError("the image is damaged")) == "the image is damaged"
    assert verdict_for(ImageError("two\nlines")).startswith("! ")
    assert verdict_for(MemoryError()).startswith("! ")
