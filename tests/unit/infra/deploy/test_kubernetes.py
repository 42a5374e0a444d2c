"""The Kubernetes objects: as kubectl puts them together, by the published schemas, and against our own commands."""

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from infra.local.processes import STOP_S
from infra.platform.settings import load_settings, variables
from streams.ingest.batch import readers_of
from streams.topics import RECOMMEND_REQUESTS, WATCH_EVENTS
from tests.harness.deployed.manifests import composed, deployed, environ_of, of_kind, pod_of, rendered
from tests.harness.needs import KUBECTL, NPM, needs
from tests.unit.infra.deploy.test_deployment import COMMANDS, is_command

pytestmark = needs(KUBECTL)

OVERLAYS = ("small", "production", "cloud")
BUCKET = "NEXTWATCH_BUNDLES__STORE"
SCHEMAS = "1.34"  # of Kubernetes
CUSTOM = ("PodMonitor", "ScaledObject")
TOPIC_OF = {"serving": RECOMMEND_REQUESTS, "history": WATCH_EVENTS}
PACKAGES = ("@kubernetes-models/keda@0.4", "@kubernetes-models/prometheus-operator@6")
CHECK = """
import { readFileSync } from "node:fs";
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const name = object.apiVersion.startsWith("keda") ? "keda" : "prometheus-operator";
  const models = await import(`@kubernetes-models/${name}/${object.apiVersion}/${object.kind}`);
  new models[object.kind](object).validate();
  console.log(object.kind);
}
"""


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(request.param)


def test_kubernetes_own_schemas_take_every_object(objects):
    own = [each for each in objects if each["kind"] not in CUSTOM]
    assert len(own) > 15
    for each in own:
        kubernetes_validate.validate(each, SCHEMAS, strict=True)
    own[0]["dta"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(own[0], SCHEMAS, strict=True)


@needs(NPM)
def test_the_schemas_of_the_operators_take_theirs(tmp_path: Path) -> None:
    """KEDA's and the Prometheus operator's, as npm has them."""
    (tmp_path / "check.mjs").write_text(CHECK)
    (tmp_path / "package.json").write_text('{"private": true}')
    install = ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", *PACKAGES]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=180)
    custom = [each for each in rendered("production") if each["kind"] in CUSTOM]

    def check(objects: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        run = ["node", "check.mjs"]
        return subprocess.run(
            run, cwd=tmp_path, input=json.dumps(objects), capture_output=True, text=True, timeout=60, check=False
        )

    done = check(custom)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["PodMonitor", "ScaledObject", "ScaledObject"]
    custom[0]["spec"].clear()
    assert check(custom).returncode != 0


def test_there_is_a_deployment_for_each_of_our_processes(objects):
    """The ingest runs where there are topics to map."""
    running = {each.name: each.arguments for each in deployed(objects)}
    expected = COMMANDS if "ingest" in running else {name: of for name, of in COMMANDS.items() if name != "ingest"}
    assert running == expected
    assert set(of_kind(objects, "Deployment")) == set(COMMANDS)
    [task] = of_kind(objects, "Job").values()
    assert is_command(pod_of(task)["containers"][0]["args"])


def test_the_settings_are_ours_those_of_the_compose_file_and_no_secrets(objects):
    environ = environ_of(of_kind(objects, "Deployment")["gateway"], objects)
    gateway = composed()["services"]["gateway"]["environment"]
    assert set(environ) - {BUCKET} == set(gateway)
    every = {name for each in of_kind(objects, "ConfigMap").values() for name in each["data"]}
    assert every <= set(variables())
    assert not [name for name in every if "TOKEN" in name or "PASSWORD" in name]
    assert not of_kind(objects, "Secret")


def test_every_pod_is_shut_and_leaves_time_to_stop(objects):
    for item in of_kind(objects, "Deployment", "Job").values():
        pod = pod_of(item)
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
        inside = container["securityContext"]
        assert inside["readOnlyRootFilesystem"] and inside["capabilities"]["drop"] == ["ALL"]
        assert inside["allowPrivilegeEscalation"] is False
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
        if item["kind"] == "Deployment":
            assert pod["terminationGracePeriodSeconds"] > STOP_S


def test_what_selects_pods_finds_some_and_probes_ask_a_port_that_is_there(objects):
    deployments = of_kind(objects, "Deployment")
    for item in deployments.values():
        [container] = pod_of(item)["containers"]
        ports = {each["name"] for each in container["ports"]}
        assert {container[kind]["httpGet"]["port"] for kind in ("livenessProbe", "readinessProbe")} <= ports
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in deployments.values()]
    [service] = of_kind(objects, "Service").values()
    chosen = [each["spec"]["selector"].get("matchLabels") for each in of_kind(objects, "PodDisruptionBudget").values()]
    chosen += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(objects, "NetworkPolicy").values()]
    for selector in (*chosen, service["spec"]["selector"]):
        assert any(selector.items() <= each.items() for each in labels), selector
    assert len(of_kind(objects, "PodDisruptionBudget")) == len(deployments)


def test_a_policy_lets_kafka_milvus_and_the_scraper_through(objects):
    policies = of_kind(objects, "NetworkPolicy")
    environ = environ_of(of_kind(objects, "Deployment")["serving"], objects)
    out = {each["port"] for each in policies["nextwatch"]["spec"]["egress"][0]["ports"]}
    needed = {int(environ[name].rpartition(":")[2]) for name in ("NEXTWATCH_KAFKA__BOOTSTRAP", "NEXTWATCH_MILVUS__URI")}
    assert needed < out
    [scraped] = policies["nextwatch"]["spec"]["ingress"][0]["ports"]
    assert scraped["port"] == int(environ["NEXTWATCH_METRICS__PORT"])


def test_with_a_bucket_nobody_waits_for_a_volume_and_all_may_reach_it() -> None:
    objects = rendered("cloud")
    assert not of_kind(objects, "PersistentVolumeClaim") and of_kind(rendered("small"), "PersistentVolumeClaim")
    users = of_kind(objects, "Deployment", "Job", "CronJob").values()
    assert all(BUCKET in environ_of(each, objects) for each in users)
    volumes = [volume for each in users for volume in pod_of(each)["volumes"] if volume["name"] == "bundles"]
    assert len(volumes) == len(users) and all(set(each) == {"name", "emptyDir"} for each in volumes)
    policy = of_kind(objects, "NetworkPolicy")["object-storage"]["spec"]
    assert policy["egress"] == [{"ports": [{"port": 443}]}] and policy["policyTypes"] == ["Egress"]
    assert policy["podSelector"] == of_kind(objects, "NetworkPolicy")["nextwatch"]["spec"]["podSelector"]


def test_the_topics_of_the_ingest_are_told_to_it_alone_and_are_a_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = rendered("cloud")
    told = {each.name: each.environ for each in deployed(objects)}
    name = "NEXTWATCH_INGEST__TOPICS"
    assert [process for process, environ in told.items() if name in environ] == ["ingest"]
    monkeypatch.setenv(name, told["ingest"][name])
    [mapping] = load_settings().ingest.topics
    assert mapping.becomes == WATCH_EVENTS and readers_of(load_settings())


def test_scaling_looks_at_a_group_and_a_topic_that_exist():
    objects = rendered("production")
    for name, item in of_kind(objects, "ScaledObject").items():
        [trigger] = item["spec"]["triggers"]
        assert item["spec"]["scaleTargetRef"]["name"] == name
        assert trigger["metadata"]["topic"] == TOPIC_OF[name]
        assert trigger["metadata"]["consumerGroup"] == f"nextwatch-{name}"
        assert "replicas" not in of_kind(objects, "Deployment")[name]["spec"], "KEDA counts them"
