"""URLs: schemes, and what messages may show of them."""

import pytest

from pipeline import storage
from pipeline.errors import StorageError
from tests.s3 import CREDENTIALS


def test_messages_contain_no_secret() -> None:
    assert storage.redact_url("https://user:hunter2@host/a?X-Amz-Signature=abc") == "https://host/a"
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("ftp://user:hunter2@host/a")
    assert "hunter2" not in str(caught.value)
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
