"""What the files that deploy us say of each process: its command, its environment, where it is asked how it is."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.harness.needs import KUBECTL, require

DEPLOY = Path(__file__).parents[3] / "infra" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@dataclass(frozen=True)
class Deployed:
    """One kind of process."""

    name: str
    arguments: tuple[str, ...]
    environ: dict[str, str]
    probes: dict[str, str]  # path by kind of probe


def composed() -> dict[str, Any]:
    """The compose file."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text("utf-8"))
    return found


def rendered(overlay: str) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` would send for this overlay."""
    command = [str(require(KUBECTL)), "kustomize", str(KUBERNETES / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    """Those of these kinds, by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] in kinds}


def pod_of(item: dict[str, Any]) -> dict[str, Any]:
    """The pod's spec in a Deployment or Job."""
    pod: dict[str, Any] = item["spec"]["template"]["spec"]
    return pod


def environ_of(item: dict[str, Any], objects: list[dict[str, Any]]) -> dict[str, str]:
    """What the pods of a Deployment, Job or CronJob are told by ConfigMaps."""
    maps = of_kind(objects, "ConfigMap")
    [container] = pod_of(item)["containers"]
    names = [each["configMapRef"]["name"] for each in container["envFrom"] if "configMapRef" in each]
    return {name: value for each in names for name, value in maps[each]["data"].items()}


def deployed(objects: list[dict[str, Any]]) -> list[Deployed]:
    """The processes of these objects that run, as their pods would start them; ports by number."""
    found = []
    for name, item in of_kind(objects, "Deployment").items():
        if item["spec"].get("replicas") == 0:
            continue
        [container] = pod_of(item)["containers"]
        probes = {kind: container[kind]["httpGet"]["path"] for kind in PROBES}
        found.append(Deployed(name, tuple(container["args"]), environ_of(item, objects), probes))
    return found
