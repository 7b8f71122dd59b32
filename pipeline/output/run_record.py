"""run.json: the options and the status of a run, and the check that a later attempt does not change its images."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.output.provenance import software_versions, utc_now
from pipeline.settings import settings_in

Status = Literal["running", "stopped", "failed", "incomplete", "finished"]
"""A "stopped" run got a signal; an "incomplete" one ended without an error but lacks rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The record of one attempt at a run, in OUTPUT/run.json. Each method writes the whole file."""

    config: RunConfig
    run_id: str
    attempt: int
    """Counted from 1."""

    @property
    def url(self) -> str:
        return _url(self.config.output)

    def start(
        self,
        *,
        manifest: Mapping[str, Any],
        model: Mapping[str, Any],
        clip: Mapping[str, Any] | None,
        loras: Mapping[str, Mapping[str, Any]] | None = None,
        embeddings: Mapping[str, str] | None = None,
        device: str,
        dtype: str,
        actors: int,
    ) -> None:
        """Record that the attempt runs. RunError if its images would differ from those of earlier attempts.

        `manifest` holds `rows` and `sha256`; `model` and `clip` hold `name` and `weights_sha256`,
        `loras` that of each LoRA by name, `embeddings` the sha256 of each textual inversion by name."""
        facts = {"manifest": manifest, "model": model, "device": device, "dtype": dtype, "actors": actors}
        facts |= {} if clip is None else {"clip": clip}
        facts |= {"loras": loras} if loras else {}
        facts |= {"embeddings": embeddings or {}}
        refuse_differences(self.config, facts, self._earlier())
        self._write("running", facts)

    def stop(self, status: Literal["stopped", "failed"], reason: str | None = None) -> None:
        """Record that the attempt ended early."""
        self._write(status, {} if reason is None else {"reason": reason})

    def finish(self, *, complete: bool, ok: int, failed: int, last_attempt: Mapping[str, Any]) -> None:
        """Record that the attempt came to its end; `ok` and `failed` count the output's rows."""
        facts = {"finished_at": utc_now().isoformat(timespec="seconds"), "ok": ok, "failed": failed}
        self._write("finished" if complete else "incomplete", {**facts, "last_attempt": last_attempt})

    def repair(self, *, ok: int, failed: int) -> None:
        """Record that the run is finished, if an earlier attempt committed the last row but could not record it."""
        earlier = self._earlier()
        if (earlier.get("status"), earlier.get("ok"), earlier.get("failed")) != ("finished", ok, failed):
            self.finish(complete=True, ok=ok, failed=failed, last_attempt=earlier.get("last_attempt") or {})

    def _earlier(self) -> dict[str, Any]:
        """Return what run.json holds of this run; nothing if it is another run's."""
        earlier = read_run(self.config.output)
        return earlier if earlier.get("run_id") == self.run_id else {}

    def _write(self, status: Status, facts: Mapping[str, Any]) -> None:
        earlier = self._earlier()
        earlier.pop("reason", None)  # of an attempt that failed
        run = {
            **earlier,
            "run_id": self.run_id,
            "attempt": self.attempt,
            "started_at": earlier.get("started_at") or utc_now().isoformat(timespec="seconds"),
            "task": self.config.task,
            "config": settings_of(self.config),
            "manifest": earlier.get("manifest") or {},
            "software": software_versions(),
            "status": status,
            **facts,
        }
        storage.write_bytes(self.url, json.dumps(run, indent=2, ensure_ascii=False).encode() + b"\n")


def read_run(output: str) -> dict[str, Any]:
    """Return run.json of an output, empty if it does not exist. RunError if it is damaged."""
    url = _url(output)
    if not storage.exists(url):
        return {}
    try:
        return json.loads(storage.read_bytes(url))
    except ValueError as error:
        raise RunError(f"{storage.redact_url(url)}: is not JSON; delete it, or give another OUTPUT") from error


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the run's options as run.json records them: no credentials, and nothing of one attempt only."""
    values = asdict(config)
    for name, setting in settings_in(RunConfig).items():
        if setting.record == "none":
            del values[name]
        elif setting.record == "redacted":
            values[name] = _redact(values[name])
    return json.loads(json.dumps(values))


def refuse_differences(config: RunConfig, facts: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """RunError if an attempt with these facts would give other images than those that the output already holds.

    `facts` and `earlier` have the structure of run.json; what one of them lacks is not compared."""
    options, earlier_options = facts.get("config", {}), earlier.get("config", {})
    fixed = [name for name, setting in settings_in(RunConfig).items() if setting.resume == "fixed"]
    pairs = [
        (name, options[name], earlier_options[name]) for name in fixed if {name} <= options.keys() & earlier_options
    ]
    for name, words in (("model", "the model's weights"), ("clip", "the CLIP's weights")):
        hashes = [run.get(name, {}).get("weights_sha256") for run in (facts, earlier)]
        pairs += [(words, *hashes)] if None not in hashes else []
    loras, earlier_loras = facts.get("loras", {}), earlier.get("loras", {})
    for name in loras.keys() & earlier_loras.keys():
        pairs.append((f"the LoRA {name}", loras[name]["weights_sha256"], earlier_loras[name]["weights_sha256"]))
    if "embeddings" in facts and "embeddings" in earlier:
        pairs += [
            (f"the textual inversion {name}", facts["embeddings"].get(name), earlier["embeddings"].get(name))
            for name in sorted(facts["embeddings"].keys() | earlier["embeddings"].keys())
        ]
    pairs += [(name, facts[name], earlier[name]) for name in ("dtype", "device") if name in facts and name in earlier]
    differences = "; ".join(filter(None, (_difference(*pair) for pair in pairs)))
    if differences:
        output = storage.redact_url(config.output)
        raise RunError(
            f"{output} holds a run that differs: {differences}; give another OUTPUT, or --new-run to start over"
        )


def _difference(name: str, value: Any, earlier: Any) -> str:
    if isinstance(value, dict) and isinstance(earlier, dict):
        parts = [_difference(inner, value[inner], earlier[inner]) for inner in value if inner in earlier]
        return "; ".join(part for part in parts if part)
    return "" if value == earlier else f"{name} is {value}, was {earlier}"


def _redact(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_redact(url) for url in value]
    return storage.redact_url(value) if value else value


def _url(output: str) -> str:
    return storage.join(output, "run.json")
