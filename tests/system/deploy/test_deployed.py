"""Every command, variable and probe of the Kubernetes objects and the compose file, run as a plain process with the
same environment: there is no container engine here. Only addresses differ, and nothing listens beyond loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

from kafka.admin import NewTopic

from infra.platform.guarded_process import start_guarded
from infra.platform.port_locks import free_port
from infra.platform.settings import ENV_PREFIX, Kafka
from streams.topics import TOPICS, open_admin
from tests.harness.deployed.manifests import composed, deployed, of_kind, pod_of, rendered
from tests.harness.needs import KUBECTL, needs
from tests.harness.system import Cluster, cli, wait_until

pytestmark = needs(KUBECTL)

READY_S = 90.0
MAPPED = "NEXTWATCH_INGEST__TOPICS"


def answers(port: str, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as page:
            return bool(page.status == 200)
    except OSError:  # urllib's errors are OSErrors
        return False


def test_what_is_deployed_starts_and_answers_its_probes(kafka: str, milvus_uri: str, tmp_path: Path):
    own = Kafka(bootstrap=kafka, topic_prefix=f"t{uuid.uuid4().hex[:8]}-")
    objects = rendered("cloud")
    processes = deployed(objects)
    token = "a-token-of-this-test"
    ours = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
    here = {
        "NEXTWATCH_KAFKA__BOOTSTRAP": kafka,
        "NEXTWATCH_MILVUS__URI": milvus_uri,
        "NEXTWATCH_METRICS__HOST": "127.0.0.1",
        "NEXTWATCH_GATEWAY__HOST": "127.0.0.1",
        "NEXTWATCH_BUNDLES__STORE": f"file://{tmp_path}/bucket",
    }
    assert set(processes[0].environ) == {*here, "NEXTWATCH_METRICS__PORT"}
    (tmp_path / "bucket").mkdir()
    more = {  # what a cluster has and this machine does not: a place of one's own, topics of one's own, the Secret
        "NEXTWATCH_KAFKA__TOPIC_PREFIX": own.topic_prefix,
        "NEXTWATCH_GATEWAY__TOKEN": token,
        "NEXTWATCH_GATEWAY__PORT": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")])),
    }
    [job] = of_kind(objects, "Job").values()
    environ = ours | processes[0].environ | here | more | {"NEXTWATCH_DATA_DIR": str(tmp_path / "topics")}
    run = cli(*pod_of(job)["containers"][0]["args"])
    done = subprocess.run(run, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with Cluster(own) as cluster:
        assert all(cluster.ends(topic.name) for topic in TOPICS)
    [mapped] = [each.environ[MAPPED] for each in processes if MAPPED in each.environ]
    theirs = own.topic_prefix + "plays"
    more[MAPPED] = json.dumps([each | {"topic": theirs} for each in json.loads(mapped)])
    with open_admin(own) as admin:
        admin.create_topics([NewTopic(theirs, 1, 1)])
    with contextlib.ExitStack() as stack:
        ports = dict[str, str]()
        for each in processes:
            port = ports[each.name] = str(free_port(0, "metrics.port"))
            apart = {"NEXTWATCH_METRICS__PORT": port, "NEXTWATCH_DATA_DIR": str(tmp_path / each.name)}
            log = tmp_path / f"{each.name}.log"
            environ = ours | each.environ | here | more | apart
            started = start_guarded(each.name, cli(*each.arguments), log=log, environ=environ, grace_s=20.0)
            stack.callback(started.stop)
        for each in processes:
            for kind, path in each.probes.items():
                late = f"{each.name}: {kind} {path}"
                wait_until(lambda port=ports[each.name], path=path: answers(port, path), late, READY_S)  # type: ignore[misc]
        service = composed()["services"]["serving"]
        check = service["healthcheck"]["test"][2:]
        check[-1] = check[-1].replace(service["environment"]["NEXTWATCH_METRICS__PORT"], ports["serving"])
        assert subprocess.run([sys.executable, *check], timeout=60, check=False).returncode == 0
