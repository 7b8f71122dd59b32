"""run.json: what a run is, how it goes, and what a later attempt may not change."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.output.provenance import software_versions, utc_now
from pipeline.settings import settings_in


def read_run(output: str) -> dict[str, Any]:
    """run.json of an output, empty if there is none; RunError if it is damaged."""
    url = storage.join(output, "run.json")
    if not storage.exists(url):
        return {}
    try:
        return json.loads(storage.read_bytes(url))
    except ValueError as error:
        raise RunError(f"{storage.redact_url(url)}: is no JSON; delete it, or give another OUTPUT") from error


def write_run(config: RunConfig, run_id: str, attempt: int, figures: dict[str, Any]) -> None:
    """Write run.json: what the run is, without secrets, and what is known of how it goes."""
    earlier = read_run(config.output)
    earlier = earlier if earlier.get("run_id") == run_id else {}
    run = {
        "run_id": run_id,
        "attempt": attempt,
        "started_at": earlier.get("started_at") or utc_now().isoformat(timespec="seconds"),
        "task": config.task,
        "config": settings_of(config),
        "manifest": earlier.get("manifest") or {},
        "software": software_versions(),
        **figures,
    }
    text = json.dumps({**earlier, **run}, indent=2, ensure_ascii=False)
    storage.write_bytes(storage.join(config.output, "run.json"), text.encode() + b"\n")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the run's options as run.json records them: no credentials, and nothing of one attempt only."""
    recorded = {name: setting for name, setting in settings_in(RunConfig).items() if setting.record != "none"}
    values = {name: value for name, value in asdict(config).items() if name in recorded}
    for name, setting in recorded.items():
        if setting.record == "redacted":
            values[name] = _redact(values[name])
    return json.loads(json.dumps(values))


def _redact(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_redact(url) for url in value]
    return storage.redact_url(value) if value else value


def refuse_differences(config: RunConfig, now: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """RunError if this attempt would give other images than those that the output already holds."""
    same = [name for name, setting in settings_in(RunConfig).items() if setting.resume == "fixed"]
    options, was = now.get("config", {}), earlier.get("config", {})
    differences = [_difference(name, options[name], was[name]) for name in same if name in options and name in was]
    for name, words in (("model", "the model's weights"), ("clip", "the CLIP's weights")):
        digests = [about.get(name, {}).get("weights_sha256") for about in (now, earlier)]
        if None not in digests:
            differences.append(_difference(words, *digests))
    for name in ("dtype", "device"):
        if name in now and name in earlier:
            differences.append(_difference(name, now[name], earlier[name]))
    found = "; ".join(difference for difference in differences if difference)
    if found:
        output = storage.redact_url(config.output)
        raise RunError(f"{output} holds a run that differs: {found}; give another OUTPUT, or --new-run to begin anew")


def _difference(name: str, now: Any, earlier: Any) -> str:
    if isinstance(now, dict) and isinstance(earlier, dict):
        parts = [_difference(inner, now[inner], earlier[inner]) for inner in now if inner in earlier]
        return "; ".join(part for part in parts if part)
    return "" if now == earlier else f"{name} is {now}, was {earlier}"
