"""The cluster files are valid: by Ray's schema for the cluster launcher, and by a table of KubeRay's fields."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster"
UNITS = {"Gi": 2**30, "Mi": 2**20}

POD = {"nodeSelector", "tolerations", "containers", "volumes", "terminationGracePeriodSeconds"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"}
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
JOB = {"submissionMode", "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
"""Fields of ray.io/v1 that the files may use: the API server silently drops an unknown one."""


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def cluster_spec(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec["rayClusterSpec"] if read(name)["kind"] == "RayJob" else spec


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_a_launcher_file_conforms_to_rays_schema(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = read(name)
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["head"]["resources"]["CPU"] == 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_worker": 3}, schema)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_a_kuberay_file_has_known_fields_and_consistent_sizes(name: str) -> None:
    document, spec = read(name), cluster_spec(name)
    assert document["apiVersion"] == "ray.io/v1"
    if document["kind"] == "RayJob":
        assert set(document["spec"]) <= JOB | {"rayClusterSpec"}
    assert set(spec) <= CLUSTER and spec["enableInTreeAutoscaling"] is True
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert set(group) <= GROUP
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert set(pod) <= POD
        (container,) = pod["containers"]
        (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert size(shm["sizeLimit"]) > int(group["rayStartParams"]["object-store-memory"])
        assert size(container["resources"]["limits"]["memory"]) > 2 * size(shm["sizeLimit"])
        assert container["envFrom"] == [{"secretRef": {"name": "latentmill-storage"}}]
    (gpu,) = spec["workerGroupSpecs"]
    assert gpu["minReplicas"] <= gpu["replicas"] <= gpu["maxReplicas"]
    pod = gpu["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert any("spot" in (rule["key"] + rule.get("value", "")) for rule in pod["tolerations"])


def test_the_two_kuberay_files_define_the_same_cluster() -> None:
    assert cluster_spec("raycluster.yaml") == cluster_spec("rayjob.yaml")


def test_the_image_has_the_ray_that_the_tests_ran_with() -> None:
    (version,) = [
        line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    ]
    assert f"rayproject/ray:{version}-py311" in (FOLDER / "Dockerfile").read_text()
    assert cluster_spec("rayjob.yaml")["rayVersion"] == version


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]
