"""The doctor's findings, on a real Ray and a real bucket."""

import pytest
from click.testing import CliRunner

from jobs.cli import cli


@pytest.mark.usefixtures("local_ray")
def test_what_is_well_is_ok_and_what_is_not_says_what_to_do(s3_bucket: str) -> None:
    arguments = ["doctor", "--storage", f"{s3_bucket}/runs", "--storage", "s3://no-such-bucket-anywhere/x"]
    result = CliRunner().invoke(cli, [*arguments, "--model", "shapes"], standalone_mode=False)
    lines = result.output.splitlines()
    assert result.return_value == 1
    assert any(line.startswith("ok   cluster") and "1 nodes" in line for line in lines)
    assert any(line.startswith("ok   node") and "the same versions as this host" in line for line in lines)
    assert any(line.startswith(f"ok   storage {s3_bucket}/runs") for line in lines)
    bad = next(index for index, line in enumerate(lines) if line.startswith("BAD"))
    assert "no-such-bucket-anywhere" in lines[bad]
    assert lines[bad + 1].strip().startswith("-> check the URL")
    assert any(line.startswith("ok   model shapes") and "loaded on a worker" in line for line in lines)
