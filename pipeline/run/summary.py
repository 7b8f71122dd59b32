"""The summary of a run."""

from dataclasses import dataclass

from pipeline import storage
from pipeline.config import Task
from pipeline.run.progress import duration_of, rate_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """The result of a run."""

    ok: int
    """Good rows in the output, those of earlier attempts included."""
    failed: int
    """Failed rows in the output, those of earlier attempts included."""
    already_done: int
    """Rows that were committed before this attempt."""
    completed: int
    """Rows that this attempt committed."""
    seconds: float
    images_per_second: float
    """Of this attempt, the loading of the model included."""
    output: str
    run_id: str
    task: Task = "generate"

    @property
    def data(self) -> str:
        return storage.join(self.output, "data")

    @property
    def failed_rows(self) -> str:
        return storage.join(self.output, "failed")

    def __str__(self) -> str:
        earlier = f"{self.already_done:,} rows were there already. " if self.already_done else ""
        pace = f" in {duration_of(self.seconds)} ({rate_of(self.images_per_second)})" if self.completed else ""
        results = "classified images" if self.task == "classify" else "images"
        text = f"{earlier}{self.completed:,} rows completed{pace}: "
        text += f"{self.ok:,} {results} are in {storage.redact_url(self.data)}"
        if self.failed:
            text += f"\n{self.failed:,} rows failed; the reasons are in {storage.redact_url(self.failed_rows)}"
        return text
