"""The resources that the autoscaler of a Ray cluster can start."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.state import state


def startable_resources() -> dict[str, float]:
    """Return the most that the connected cluster can have of each resource; empty if the cluster does not say.

    Some autoscalers report their node types to Ray. Those of `ray up` and `ray start --autoscaling-config` keep them
    in a file on the head node, where the driver of a submitted job runs."""
    reported = state.get_max_resources_from_cluster_config()
    if reported is not None:
        return {name: float(amount) for name, amount in reported.items()}
    config = _config_of_monitor()
    return {} if config is None else resources_of_node_types(config)


def resources_of_node_types(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the most of each resource that the nodes of an autoscaler's config have, the head node included."""
    head, most = config.get("head_node_type"), defaultdict[str, float](float)
    limit = config.get("max_workers", 0)
    for name, kind in config.get("available_node_types", {}).items():
        count = min(kind.get("max_workers", limit), limit) + (name == head)
        for resource, amount in kind.get("resources", {}).items():
            most[resource] += count * amount
    return dict(most)


def _config_of_monitor() -> dict[str, Any] | None:
    """Return the config of the connected cluster's autoscaler, if it runs on this machine."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().decode().split("\0")
            options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
            path = options.get("--autoscaling-config")
            if path and options.get("--gcs-address") == ray.get_runtime_context().gcs_address:
                return yaml.safe_load(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError):  # a process that has ended, or another user's
            continue
    return None
