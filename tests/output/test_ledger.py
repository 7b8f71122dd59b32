"""The ledger: what it says is committed, and how rows are removed from it."""

from pipeline.output.ledger import delete_uncommitted, part_key, read_entries, read_ledger, remove_failed_rows
from tests.output.rows import datasink, encoded_rows


def test_an_empty_output_has_no_committed_rows(output: str) -> None:
    ledger = read_ledger(output)
    assert (ledger.ok, ledger.failed, ledger.files) == (0, 0, frozenset())
    assert ledger.id_hashes.count == 0


def test_a_part_key_depends_on_the_rows_and_not_on_their_order() -> None:
    assert part_key(["a", "b"]) == part_key(["b", "a"]) != part_key(["ab"])


def test_removing_failed_rows_leaves_the_good_ones_committed(output: str) -> None:
    datasink(output).write([encoded_rows(["a", "b"], failed=("b",))], None)
    datasink(output).write([encoded_rows(["c"], failed=("c",))], None)
    assert remove_failed_rows(output) == 2
    ledger = read_ledger(output)
    assert (ledger.ok, ledger.failed, len(delete_uncommitted(output, ledger))) == (1, 0, 2)
    datasink(output).write([encoded_rows(["b"]), encoded_rows(["c"])], None)
    assert {row_id for entry in read_entries(output) for row_id in entry["id"].to_pylist()} == {"a", "b", "c"}
