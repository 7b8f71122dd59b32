"""The labelling stage without Ray: what it reports, and what it leaves when a run stops."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.images.encode import encode_image
from pipeline.inference.journal import Journal
from pipeline.manifest.rules import Rules
from pipeline.stages.classify import Classify
from pipeline.stages.prepare import PrepareRows
from pipeline.training.data.examples import SCENES

ROWS, LANES = 10, 4


class StopsAfter(Journal):
    """Says that the run stops once it has been asked so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def stopping(self) -> bool:
        self.times -= 1
        return self.times < 0


def labeled(folder: Path, journal: Journal, amounts: list[dict[str, float]]) -> list[dict[str, Any]]:
    examples = SCENES.examples(1, 0, ROWS - 1, 64)
    rows = [
        {"id": f"r{index}", "image": encode_image(np.asarray(picture)), "__index_level_0__": index}
        for index, (picture, _) in enumerate(examples)
    ]
    rows.insert(2, {"id": "broken", "image": b"no picture", "__index_level_0__": 99})
    config = RunConfig(
        task="classify",
        manifest=str(folder / "m.parquet"),
        output=str(folder / "out"),
        model="shapes-clip",
        labels=tuple(caption for _, caption in examples[:3]),
        lanes=LANES,
    )
    table = pa.Table.from_pylist(rows)
    prepared = PrepareRows(config=config, rules=Rules(task="classify"), manifest=table.schema, square=64)(table)
    return Classify(config, "run", "cpu", lambda reported: amounts.append(dict(reported)), journal)(
        prepared
    ).to_pylist()


def test_each_call_is_reported_and_pictures_find_their_labels(tmp_path: Path) -> None:
    amounts: list[dict[str, float]] = []
    result = labeled(tmp_path, Journal(), amounts)
    assert [row["__index_level_0__"] for row in result] == [0, 1, 99, *range(2, ROWS - 1)]
    assert result[2]["label"] is None and result[2]["error_type"]
    assert [row["label_scores"].index(max(row["label_scores"])) for row in (result[0], result[1], result[3])] == [
        0,
        1,
        2,
    ]
    calls = [reported["rows"] for reported in amounts if "network_seconds" in reported]
    assert calls == [4, 4, 1] and sum(reported.get("rows", 0) for reported in amounts) == ROWS


def test_a_run_that_stops_keeps_what_has_its_labels(tmp_path: Path) -> None:
    result = labeled(tmp_path, StopsAfter(1), [])
    assert [row["id"] for row in result] == ["r0", "r1", "broken", "r2", "r3"]
    assert all(row["label"] or row["error_type"] for row in result)
